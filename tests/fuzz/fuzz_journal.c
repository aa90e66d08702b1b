/*
 * fuzz_journal - recovery from a segment of any content; what was found must be found again after writing on. With an
 * odd first byte sums are mended before: no changed record would get past its sum otherwise.
 */
#include "fuzz/fuzz.h"

#include <endian.h>
#include <string.h>

#include "base/crypto.h"
#include "base/mem.h"
#include "io/journal_store.h"

#define SEGMENT 4096u

static void mend(uint8_t *p, size_t size)
{
	const uint64_t number = htole64(1);
	for (size_t at = JOURNAL_FILE_HEADER; at + JOURNAL_FILE_RECORD <= size; at += 8) {
		uint32_t n, crc;
		memcpy(&n, p + at + 16, 4);
		if (memcmp(p + at, "RFJ1", 4) != 0 || le32toh(n) > size - at - JOURNAL_FILE_RECORD)
			continue;
		memset(p + at + 14, 0, 2); /* numbers that a journal can come to */
		crc = crypto_crc32c(crypto_crc32c(0, &number, 8), p + at, 20);
		crc = htole32(crypto_crc32c(crc, p + at + JOURNAL_FILE_RECORD, le32toh(n)));
		memcpy(p + at + 20, &crc, 4);
	}
}

/* Opens the journal and reads all that is open; what is staged then is closed with it. The number of open records. */
static size_t look(const char *more)
{
	struct buf payload = BUF_INIT((size_t)1 << 20);
	struct journal_store s;
	ALWAYS(journal_store_open(&s, fuzz_folder(), SEGMENT, 16 * SEGMENT, false, NULL) == 0);
	uint64_t *seqs = journal_index_seqs(&s.index);
	size_t n = s.index.n;
	for (size_t i = 0; i < n; i++) {
		const struct journal_place *at = journal_index_find(&s.index, seqs[i]);
		ALWAYS(at != NULL && at->seq < s.next_seq);
		ALWAYS(journal_segment_read(&s.dir, &at->segment->name, at->offset, at->seq, &payload) == 0);
	}
	ALWAYS(journal_store_stage(&s, s.next_seq, more, strlen(more)) == 0);
	journal_store_close(&s);
	mem_free(seqs);
	buf_fini(&payload);
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct journal_ops ops = journal_file_real_ops;
	struct journal_name name;
	if (size < 1 || size > 4 * SEGMENT)
		return 0;
	ops.fsync = ops.fdatasync = fuzz_no_sync;
	journal_file_set_ops(&ops);
	uint8_t *content = mem_alloc(size);
	memcpy(content, data + 1, size - 1);
	if (data[0] & 1)
		mend(content, size - 1);
	fuzz_empty_folder();
	journal_name_make(1, 1, &name);
	fuzz_write_file(name.name, content, size - 1);
	mem_free(content);
	size_t n = look("more");
	ALWAYS(look("and more") == n + 1);
	return 0;
}

/*
 * fuzz_conf - a configuration file. One that loads must dump to one that loads and dumps to the same.
 */
#include "fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/conf.h"

#define KEYRING "k1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
#define SECRET "a secret of sixteen bytes and more\n"

static struct conf *load(const char *name, const void *p, size_t n)
{
	char *path = mem_printf("%s/%s", fuzz_folder(), name);
	struct conf_errors errors = { NULL, 0 };
	struct conf *c = NULL;

	fuzz_write_file(name, p, n);
	int rc = conf_load(path, &c, &errors);
	ALWAYS((rc == 0) == (c != NULL) && (rc == 0) == (errors.n == 0));
	conf_errors_fini(&errors);
	mem_free(path);
	return c;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool ready;

	/* Nothing outside of the folder is to be opened, and a pattern may walk over the whole disk. */
	if (memmem(data, size, "include", 7) != NULL && (memchr(data, '/', size) || memchr(data, '*', size) || memchr(data, '?', size)))
		return 0;
	if (!ready) {
		fuzz_write_file("keyring", KEYRING, sizeof(KEYRING) - 1);
		fuzz_write_file("secret", SECRET, sizeof(SECRET) - 1);
		ALWAYS(setenv("FOLDER", fuzz_folder(), 1) == 0);
		ready = true;
	}
	struct conf *first = load("first.yaml", data, size);
	if (first == NULL)
		return 0;
	struct buf a = BUF_INIT((size_t)16 << 20), b = BUF_INIT((size_t)16 << 20);
	ALWAYS(conf_dump(first, &a) == 0);
	struct conf *second = load("second.yaml", buf_str(&a), a.len);
	ALWAYS(second != NULL && conf_dump(second, &b) == 0 && buf_equals(&a, buf_str(&b), b.len));
	buf_reset(&b);
	ALWAYS(conf_diff_restart(first, second, &b) == 0 && b.len == 0);
	conf_unref(first);
	conf_unref(second);
	buf_fini(&a);
	buf_fini(&b);
	return 0;
}

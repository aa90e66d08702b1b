/*
 * buf, mem and status: limits, growth, wiping, files, faults.
 *
 * That secrets are wiped is read from the blocks themselves, before they go back to the allocator or
 * in a buffer that keeps its block; freed memory is never looked at.
 */
#include "unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/bytes.h"
#include "base/mem.h"

static bool all_zero(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (p[i] != 0)
			return false;
	}
	return true;
}

/* Run fn in a child and return its wait status; what it writes to stderr lands in `text`. */
static int status_of_child(void (*fn)(void), char *text, size_t size)
{
	int fds[2];
	size_t used = 0;
	int status;

	ck_ok(pipe(fds));
	pid_t pid = fork();
	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		struct rlimit no_core = {0, 0};
		setrlimit(RLIMIT_CORE, &no_core);
		signal(SIGABRT, SIG_DFL);
		dup2(fds[1], STDERR_FILENO);
		fn();
		_exit(0);
	}
	close(fds[1]);
	for (ssize_t n; used < size - 1 && (n = read(fds[0], text + used, size - 1 - used)) > 0;)
		used += (size_t)n;
	text[used] = '\0';
	close(fds[0]);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	return status;
}

static void assert_aborts(void (*fn)(void), const char *words)
{
	char text[4096];
	int status = status_of_child(fn, text, sizeof(text));

	ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	ck_assert_msg(strstr(text, words) != NULL, "\"%s\" not in \"%s\"", words, text);
}

/* --- status */

START_TEST(status_has_a_text_for_every_code)
{
#define X(name, value, text)                                                                                 \
	ck_assert_str_eq(status_text(name), text);                                                           \
	ck_assert_int_eq(name, value);
	STATUS_LIST(X)
#undef X
	ck_assert_str_eq(status_text(1), "unknown status");
	ck_assert_str_eq(status_text(-1000), "unknown status");
}
END_TEST

START_TEST(status_of_an_errno)
{
	ck_assert_int_eq(status_of_errno(ENOENT), ST_NOT_FOUND);
	ck_assert_int_eq(status_of_errno(EACCES), ST_DENIED);
	ck_assert_int_eq(status_of_errno(EROFS), ST_DENIED);
	ck_assert_int_eq(status_of_errno(ENOSPC), ST_NO_SPACE);
	ck_assert_int_eq(status_of_errno(EDQUOT), ST_NO_SPACE);
	ck_assert_int_eq(status_of_errno(EADDRINUSE), ST_EXISTS);
	ck_assert_int_eq(status_of_errno(EADDRNOTAVAIL), ST_INVALID);
	ck_assert_int_eq(status_of_errno(ENOTDIR), ST_IO); /* it is there, and not what was meant */
}
END_TEST

START_TEST(numbers_have_the_order_that_was_asked_for)
{
	uint8_t b[9];
	bytes_put_be32(b + 1, 0x01020304);
	ck_assert_mem_eq(b + 1, "\x01\x02\x03\x04", 4);
	bytes_put_le32(b + 1, 0x01020304);
	ck_assert_mem_eq(b + 1, "\x04\x03\x02\x01", 4);
	ck_assert_uint_eq(bytes_get_le32(b + 1), 0x01020304);
	bytes_put_be64(b + 1, UINT64_C(0x0102030405060708));
	ck_assert_mem_eq(b + 1, "\x01\x02\x03\x04\x05\x06\x07\x08", 8);
	ck_assert_uint_eq(bytes_get_be64(b + 1), UINT64_C(0x0102030405060708));
	bytes_put_le64(b + 1, UINT64_C(0x0102030405060708));
	ck_assert_mem_eq(b + 1, "\x08\x07\x06\x05\x04\x03\x02\x01", 8);
	ck_assert_uint_eq(bytes_get_le64(b + 1), UINT64_C(0x0102030405060708));
}
END_TEST

START_TEST(fault_is_set_and_wrapped)
{
	struct fault f = {0};

	ck_assert_int_eq(fault_set(&f, ST_RANGE, "value %d", 7), ST_RANGE);
	ck_assert_int_eq(f.code, ST_RANGE);
	ck_assert_str_eq(f.text, "value 7");
	/* The first code stays: it is the cause. */
	ck_assert_int_eq(fault_wrap(&f, ST_IO, "%s:%d", "file", 3), ST_RANGE);
	ck_assert_str_eq(f.text, "file:3: value 7");
	ck_assert_int_eq(fault_set(&f, ST_IO, "again: %s", f.text), ST_IO);
	ck_assert_str_eq(f.text, "again: file:3: value 7");
}
END_TEST

START_TEST(fault_wrap_fills_an_empty_fault)
{
	struct fault f = {0};

	ck_assert_int_eq(fault_wrap(&f, ST_CLOSED, "alone"), ST_CLOSED);
	ck_assert_int_eq(f.code, ST_CLOSED);
	ck_assert_str_eq(f.text, "alone");
}
END_TEST

START_TEST(fault_may_be_null)
{
	ck_assert_int_eq(fault_set(NULL, ST_IO, "x"), ST_IO);
	ck_assert_int_eq(fault_wrap(NULL, ST_FULL, "x"), ST_FULL);
}
END_TEST

START_TEST(fault_text_is_one_line)
{
	struct fault f = {0};

	fault_set(&f, ST_IO,
		"a\nb\tc\x7f"
		"d\x1b[0m");
	ck_assert_str_eq(f.text, "a b c d [0m");
}
END_TEST

START_TEST(fault_survives_a_text_that_cannot_be_formatted)
{
	struct fault f = {0};
	volatile wint_t no_character = 0x7fffffff;

	ck_assert_int_eq(fault_set(&f, ST_IO, "%lc", no_character), ST_IO);
	ck_assert_str_eq(f.text, "");
	fault_set(&f, ST_IO, "kept");
	ck_assert_int_eq(fault_wrap(&f, ST_FULL, "%lc", no_character), ST_IO);
	ck_assert_str_eq(f.text, ": kept");
}
END_TEST

START_TEST(fault_text_is_cut_at_a_character)
{
	struct fault f = {0};
	char text[600];

	memset(text, 'x', sizeof(text));
	text[599] = '\0';
	fault_set(&f, ST_IO, "%s", text);
	ck_assert_uint_eq(strlen(f.text), sizeof(f.text) - 1);
	/* A character of four bytes over the cut, at each of its offsets. */
	for (size_t at = 395; at < 400; at++) {
		memset(text, 'x', sizeof(text));
		memcpy(text + at, "\xf0\x9f\x94\x91", 4);
		text[599] = '\0';
		fault_set(&f, ST_IO, "%s", text);
		ck_assert_uint_eq(strlen(f.text), at == 395 ? 399 : at);
		fault_set(&f, ST_IO, "y");
		fault_wrap(&f, ST_IO, "%s", text);
		ck_assert_uint_eq(strlen(f.text), at == 395 ? 399 : at);
	}
	fault_set(&f, ST_IO, "%s", text);
	fault_wrap(&f, ST_IO, "front");
	ck_assert_uint_eq(strlen(f.text), sizeof(f.text) - 1);
	ck_assert_int_eq(strncmp(f.text, "front: xxx", 10), 0);
}
END_TEST

/* --- mem */

START_TEST(mem_zeroes_and_copies)
{
	uint8_t *p = mem_alloc(100);
	ck_assert(all_zero(p, 100));
	p = mem_realloc(p, 50, 4);
	ck_assert(all_zero(p, 100));
	p = mem_realloc(p, 0, 4);
	mem_free(p);
	mem_free(mem_alloc(0));
	mem_free(mem_calloc(0, 8));
	mem_free(mem_calloc(SIZE_MAX, 0));
	mem_free(NULL);

	char *s = mem_strdup("abc");
	ck_assert_str_eq(s, "abc");
	mem_free(s);
	s = mem_strndup("abcdef", 3);
	ck_assert_str_eq(s, "abc");
	mem_free(s);
	s = mem_strndup("ab", 10);
	ck_assert_str_eq(s, "ab");
	mem_free(s);
	s = mem_printf("%s-%d", "x", 5);
	ck_assert_str_eq(s, "x-5");
	mem_free(s);
}
END_TEST

START_TEST(mem_wipe_clears)
{
	uint8_t bytes[16];

	memset(bytes, 0xaa, sizeof(bytes));
	mem_wipe(bytes, 8);
	ck_assert(all_zero(bytes, 8));
	ck_assert_uint_eq(bytes[8], 0xaa);
	mem_wipe(NULL, 0);
}
END_TEST

static void realloc_overflow(void)
{
	volatile size_t n = SIZE_MAX / 2;
	mem_free(mem_realloc(NULL, n, 3));
}

static void break_invariant(void)
{
	volatile int two = 2;
	ALWAYS(two == 3);
}

static void long_invariant(void)
{
	char expr[2000];

	memset(expr, 'e', sizeof(expr));
	expr[sizeof(expr) - 1] = '\0';
	always_failed(expr, "file.c", 1, "func");
}

static void stale_pointer(void)
{
	struct {
		uint32_t magic;
	} obj = {.magic = 1}, *p = &obj;
	MAGIC_CHECK(p, 2U);
}

START_TEST(broken_invariants_abort)
{
	assert_aborts(break_invariant, "broken invariant: two == 3\n");
	assert_aborts(long_invariant, "eeee\n");
	assert_aborts(stale_pointer, "broken invariant");
	assert_aborts(realloc_overflow, "out of memory");
}
END_TEST

#ifndef WITH_SANITIZERS
/* The sanitizers report an impossible size on their own, before the function sees it. */
static void calloc_overflow(void)
{
	volatile size_t n = SIZE_MAX / 2;
	mem_free(mem_calloc(n, 3));
}

static void alloc_too_much(void)
{
	volatile size_t n = PTRDIFF_MAX;
	mem_free(mem_alloc(n));
}

static void realloc_too_much(void)
{
	volatile size_t n = PTRDIFF_MAX;
	mem_free(mem_realloc(NULL, n, 1));
}

static void printf_too_much(void)
{
	volatile wint_t no_character = 0x7fffffff;
	mem_free(mem_printf("%lc", no_character));
}

START_TEST(no_memory_aborts)
{
	assert_aborts(calloc_overflow, "out of memory");
	assert_aborts(alloc_too_much, "out of memory");
	assert_aborts(realloc_too_much, "out of memory");
	assert_aborts(printf_too_much, "out of memory");
}
END_TEST
#endif

static void die_without_stderr(void)
{
	close(STDERR_FILENO);
	ALWAYS(false);
}

START_TEST(broken_invariant_aborts_without_stderr)
{
	assert_aborts(die_without_stderr, "");
}
END_TEST

/* --- buf */

START_TEST(buf_starts_empty)
{
	struct buf b;

	buf_init(&b, 10);
	ck_assert_str_eq(buf_str(&b), "");
	ck_assert(buf_equals(&b, "", 0));
	buf_reset(&b);
	buf_truncate(&b, 0);
	buf_consume(&b, 0);
	buf_added(&b, 0);
	ck_assert_ptr_null(b.data);
	buf_fini(&b);
	buf_init_secret(&b, 10);
	ck_assert(b.secret);
	buf_fini(&b);
	buf_fini(&b);
}
END_TEST

START_TEST(buf_holds_exactly_its_maximum)
{
	struct buf b = BUF_INIT(5);

	ck_ok(buf_append(&b, "abc", 3));
	ck_assert_int_eq(buf_append(&b, "def", 3), ST_FULL);
	ck_assert_str_eq(buf_str(&b), "abc");
	ck_ok(buf_puts(&b, "de"));
	ck_assert_str_eq(buf_str(&b), "abcde");
	ck_assert_uint_le(b.cap, 6);
	ck_assert_int_eq(buf_putc(&b, 'x'), ST_FULL);
	ck_assert_int_eq(buf_puts(&b, "x"), ST_FULL);
	ck_assert_int_eq(buf_printf(&b, "%d", 1), ST_FULL);
	ck_assert_int_eq(buf_reserve(&b, 1), ST_FULL);
	ck_assert_int_eq(buf_set(&b, "123456", 6), ST_FULL);
	ck_ok(buf_append(&b, "", 0));
	ck_ok(buf_puts(&b, ""));
	ck_ok(buf_reserve(&b, 0));
	ck_ok(buf_printf(&b, "%s", ""));
	ck_assert_str_eq(buf_str(&b), "abcde");
	ck_ok(buf_set(&b, "12345", 5));
	ck_assert_str_eq(buf_str(&b), "12345");
	buf_fini(&b);
}
END_TEST

START_TEST(buf_with_maximum_zero)
{
	struct buf b = BUF_INIT(0);

	ck_assert_int_eq(buf_putc(&b, 'x'), ST_FULL);
	ck_ok(buf_append(&b, NULL, 0));
	ck_ok(buf_set(&b, "", 0));
	ck_assert_str_eq(buf_str(&b), "");
	buf_fini(&b);
}
END_TEST

START_TEST(buf_refuses_sizes_beyond_the_address_space)
{
	struct buf b = BUF_INIT(SIZE_MAX);

	ck_ok(buf_puts(&b, "x"));
	ck_assert_int_eq(buf_reserve(&b, SIZE_MAX), ST_FULL);
	ck_assert_int_eq(buf_reserve(&b, SIZE_MAX - 1), ST_FULL);
	ck_assert_int_eq(buf_reserve(&b, PTRDIFF_MAX), ST_FULL);
	ck_assert_int_eq(buf_set(&b, "y", SIZE_MAX), ST_FULL);
	ck_assert_str_eq(buf_str(&b), "x");
	buf_fini(&b);
}
END_TEST

START_TEST(buf_maximum_lowered_below_the_content)
{
	struct buf b = BUF_INIT(100);

	ck_ok(buf_puts(&b, "0123456789"));
	b.max = 5;
	ck_assert_int_eq(buf_putc(&b, 'x'), ST_FULL);
	ck_assert_str_eq(buf_str(&b), "0123456789");
	buf_fini(&b);
}
END_TEST

START_TEST(buf_grows_and_keeps_its_bytes)
{
	struct buf b = BUF_INIT(100000);

	for (unsigned i = 0; i < 100000; i++)
		ck_ok(buf_putc(&b, (char)('a' + i % 26)));
	ck_assert_int_eq(buf_putc(&b, 'x'), ST_FULL);
	for (unsigned i = 0; i < 100000; i++)
		ck_assert_int_eq(b.data[i], 'a' + (int)(i % 26));
	ck_assert_uint_eq(b.cap, 100001);
	ck_assert_uint_eq(strlen(buf_str(&b)), 100000);
	buf_fini(&b);
	ck_assert_ptr_null(b.data);
	ck_ok(buf_puts(&b, "reused"));
	ck_assert_str_eq(buf_str(&b), "reused");
	buf_fini(&b);
}
END_TEST

START_TEST(buf_takes_its_own_bytes)
{
	struct buf b = BUF_INIT(1000);

	ck_ok(buf_puts(&b, "0123456789"));
	for (int i = 0; i < 6; i++)
		ck_ok(buf_append(&b, b.data, b.len));
	ck_assert_uint_eq(b.len, 640);
	for (size_t i = 0; i < b.len; i++)
		ck_assert_int_eq(b.data[i], '0' + (int)(i % 10));
	ck_assert_int_eq(buf_append(&b, b.data, b.len), ST_FULL);
	ck_ok(buf_set(&b, b.data + 3, 5));
	ck_assert_str_eq(buf_str(&b), "34567");
	ck_ok(buf_set(&b, b.data + 5, 0));
	ck_assert_str_eq(buf_str(&b), "");
	buf_fini(&b);
}
END_TEST

START_TEST(buf_printf_appends)
{
	struct buf b = BUF_INIT(300);

	ck_ok(buf_printf(&b, "%s=%d", "a", 1));
	ck_ok(buf_printf(&b, "&%0200d", 7));
	ck_assert_uint_eq(b.len, 204);
	ck_assert_int_eq(strncmp(buf_str(&b), "a=1&000", 7), 0);
	ck_assert_int_eq(b.data[203], '7');
	ck_assert_int_eq(buf_printf(&b, "%0100d", 7), ST_FULL);
	ck_assert_uint_eq(strlen(buf_str(&b)), 204);
	volatile wint_t no_character = 0x7fffffff;
	ck_assert_int_eq(buf_printf(&b, "%lc", no_character), ST_FULL);
	ck_assert_uint_eq(strlen(buf_str(&b)), 204);
	buf_fini(&b);
}
END_TEST

START_TEST(buf_holds_nul_bytes)
{
	struct buf b = BUF_INIT(10);

	ck_ok(buf_append(&b, "a\0b", 3));
	ck_assert_uint_eq(b.len, 3);
	ck_assert(buf_equals(&b, "a\0b", 3));
	ck_assert(!buf_equals(&b, "a\0c", 3));
	ck_assert(!buf_equals(&b, "a\0b", 2));
	ck_assert(!buf_equals(&b, "a\0bc", 4));
	buf_fini(&b);
}
END_TEST

START_TEST(buf_truncate_and_consume)
{
	struct buf b = BUF_INIT(100);

	ck_ok(buf_puts(&b, "0123456789"));
	buf_consume(&b, 0);
	buf_consume(&b, 4);
	ck_assert_str_eq(buf_str(&b), "456789");
	buf_truncate(&b, 2);
	ck_assert_str_eq(buf_str(&b), "45");
	buf_truncate(&b, 2);
	buf_consume(&b, 2);
	ck_assert_str_eq(buf_str(&b), "");
	buf_fini(&b);
}
END_TEST

static void truncate_longer(void)
{
	struct buf b = BUF_INIT(10);
	buf_truncate(&b, 1);
}

static void consume_too_much(void)
{
	struct buf b = BUF_INIT(10);
	buf_consume(&b, 1);
}

static void add_unreserved(void)
{
	struct buf b = BUF_INIT(1000);
	ck_ok(buf_puts(&b, "x"));
	buf_added(&b, b.cap - 1);
}

START_TEST(buf_misuse_aborts)
{
	assert_aborts(truncate_longer, "len <= b->len");
	assert_aborts(consume_too_much, "n <= b->len");
	assert_aborts(add_unreserved, "n < b->cap - b->len");
}
END_TEST

START_TEST(buf_counts_what_was_written_behind_it)
{
	struct buf b = BUF_INIT(100);

	ck_ok(buf_reserve(&b, 100));
	memset(b.data, 'x', 100);
	buf_added(&b, 100);
	ck_assert_uint_eq(b.len, 100);
	ck_assert_int_eq(b.data[100], 0);
	buf_fini(&b);
}
END_TEST

START_TEST(buf_move_takes_block_and_kind)
{
	struct buf from = BUF_INIT_SECRET(50), to = BUF_INIT(7);

	ck_ok(buf_puts(&from, "secret"));
	ck_ok(buf_puts(&to, "old"));
	const uint8_t *block = from.data;
	buf_move(&to, &from);
	ck_assert_ptr_eq(to.data, block);
	ck_assert_str_eq(buf_str(&to), "secret");
	ck_assert(to.secret);
	ck_assert_uint_eq(to.max, 50);
	ck_assert_ptr_null(from.data);
	ck_assert_uint_eq(from.len, 0);
	ck_assert_uint_eq(from.max, 50);
	buf_move(&to, &to);
	ck_assert_str_eq(buf_str(&to), "secret");
	ck_ok(buf_puts(&from, "again"));
	buf_fini(&from);
	buf_fini(&to);
}
END_TEST

START_TEST(secret_buf_wipes_what_it_drops)
{
	struct buf b = BUF_INIT_SECRET(1000);

	ck_ok(buf_puts(&b, "0123456789abcdef"));
	uint8_t *block = b.data;
	size_t cap = b.cap;
	buf_truncate(&b, 10);
	ck_assert(all_zero(block + 10, cap - 10));
	buf_consume(&b, 4);
	ck_assert_str_eq(buf_str(&b), "456789");
	ck_assert(all_zero(block + 6, cap - 6));
	ck_ok(buf_set(&b, "xy", 2));
	ck_assert_ptr_eq(b.data, block);
	ck_assert(all_zero(block + 2, cap - 2));
	/* Written but not counted. */
	memset(b.data + 10, 0xee, 10);
	buf_reset(&b);
	ck_assert_ptr_eq(b.data, block);
	ck_assert(all_zero(block, cap));
	buf_fini(&b);
}
END_TEST

START_TEST(plain_buf_keeps_its_block_on_reset)
{
	struct buf b = BUF_INIT(1000);

	ck_ok(buf_puts(&b, "0123456789"));
	uint8_t *block = b.data;
	buf_reset(&b);
	ck_assert_ptr_eq(b.data, block);
	ck_assert_str_eq(buf_str(&b), "");
	buf_fini(&b);
}
END_TEST

/* --- wiping on growth and free, seen through the allocator: free() of glibc is looked at before it runs */

#if defined(__GLIBC__) && !defined(WITH_SANITIZERS)
#define CAN_WATCH_FREE 1
extern void __libc_free(void *p);

static uint8_t *watched;
static size_t watched_cap;
static int watched_state; /* 1: freed and wiped, -1: freed with its bytes */

/* Replaces the allocator's for this program only. */
void free(void *p)
{
	if (p != NULL && p == watched) {
		watched_state = all_zero(watched, watched_cap) ? 1 : -1;
		watched = NULL;
	}
	__libc_free(p);
}

static void watch(const struct buf *b)
{
	watched = b->data;
	watched_cap = b->cap;
	watched_state = 0;
}

START_TEST(secret_buf_wipes_the_block_it_gives_back)
{
	struct buf b = BUF_INIT_SECRET(100000), other = BUF_INIT(10);

	ck_ok(buf_puts(&b, "secret"));
	watch(&b);
	ck_ok(buf_reserve(&b, 10000));
	ck_assert_int_eq(watched_state, 1);
	ck_assert_str_eq(buf_str(&b), "secret");
	watch(&b);
	buf_move(&b, &other);
	ck_assert_int_eq(watched_state, 1);

	buf_init_secret(&b, 100);
	ck_ok(buf_puts(&b, "secret"));
	watch(&b);
	buf_fini(&b);
	ck_assert_int_eq(watched_state, 1);

	/* The watch itself can tell: a plain buffer is not wiped. */
	buf_init(&b, 100);
	ck_ok(buf_puts(&b, "public"));
	watch(&b);
	buf_fini(&b);
	ck_assert_int_eq(watched_state, -1);
}
END_TEST
#endif

/* --- files */

static char dir[] = "/tmp/refreshd-buf-XXXXXX";
static char path[64];

static void make_dir(void)
{
	memcpy(dir + sizeof(dir) - 7, "XXXXXX", 6);
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/file", dir);
}

static void remove_dir(void)
{
	unlink(path);
	ck_ok(rmdir(dir));
}

static void write_file(size_t n)
{
	FILE *fp = fopen(path, "w");

	ck_assert_ptr_nonnull(fp);
	for (size_t i = 0; i < n; i++)
		fputc('a' + (int)(i % 26), fp);
	ck_ok(fclose(fp));
}

START_TEST(read_file_up_to_the_maximum)
{
	static const size_t sizes[] = {0, 1, 63, 64, 4095, 4096, 4097, 20000};
	struct buf b = BUF_INIT(20000);
	struct fault f = {0};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		write_file(sizes[i]);
		ck_ok(buf_read_file(&b, path, &f));
		ck_assert_uint_eq(b.len, sizes[i]);
		ck_assert_uint_eq(strlen(buf_str(&b)), sizes[i]);
		for (size_t k = 0; k < b.len; k++)
			ck_assert_int_eq(b.data[k], 'a' + (int)(k % 26));
		b.max = sizes[i];
		ck_ok(buf_read_file(&b, path, &f));
		ck_assert_uint_eq(b.len, sizes[i]);
		b.max = 20000;
	}
	write_file(20001);
	ck_assert_int_eq(buf_read_file(&b, path, &f), ST_FULL);
	ck_assert_int_eq(f.code, ST_FULL);
	ck_assert_ptr_nonnull(strstr(f.text, path));
	ck_assert_ptr_nonnull(strstr(f.text, "20000 bytes"));
	ck_assert_uint_eq(b.len, 20000);
	ck_assert_int_eq(buf_read_file(&b, path, NULL), ST_FULL);
	buf_fini(&b);
}
END_TEST

START_TEST(read_file_keeps_the_kind)
{
	struct buf b = BUF_INIT_SECRET(100);

	write_file(10);
	ck_ok(buf_puts(&b, "before"));
	ck_ok(buf_read_file(&b, path, NULL));
	ck_assert_str_eq(buf_str(&b), "abcdefghij");
	ck_assert(b.secret);
	ck_assert_uint_eq(b.max, 100);
	buf_fini(&b);
}
END_TEST

START_TEST(read_file_of_unknown_size)
{
	struct buf b = BUF_INIT(100000), small = BUF_INIT(3);
	struct fault f = {0};

	/* The kernel gives size 0 for these. */
	ck_ok(buf_read_file(&b, "/proc/self/status", &f));
	ck_assert_uint_gt(b.len, 100);
	ck_assert_int_eq(strncmp(buf_str(&b), "Name:", 5), 0);
	ck_assert_int_eq(buf_read_file(&small, "/proc/self/status", &f), ST_FULL);
	ck_assert_uint_eq(small.len, 0);
	buf_fini(&b);
	buf_fini(&small);
}
END_TEST

static void assert_unreadable(const char *name, int code)
{
	struct buf b = BUF_INIT(100);
	struct fault f = {0};

	ck_ok(buf_puts(&b, "before"));
	ck_assert_int_eq(buf_read_file(&b, name, &f), code);
	ck_assert_int_eq(f.code, code);
	ck_assert_ptr_nonnull(strstr(f.text, name));
	ck_assert_str_eq(buf_str(&b), "before");
	buf_fini(&b);
}

START_TEST(read_file_says_what_is_wrong)
{
	char below[80];

	assert_unreadable(path, ST_NOT_FOUND);
	assert_unreadable(dir, ST_INVALID);
	assert_unreadable("/dev/null", ST_INVALID);
	ck_ok(mkfifo(path, 0600));
	assert_unreadable(path, ST_INVALID);
	ck_ok(unlink(path));
	ck_ok(symlink(path, path));
	assert_unreadable(path, ST_IO);
	ck_ok(unlink(path));
	write_file(1);
	snprintf(below, sizeof(below), "%s/x", path);
	assert_unreadable(below, ST_NOT_FOUND);
	/* A regular file whose first page cannot be read. */
	assert_unreadable("/proc/self/mem", ST_IO);
}
END_TEST

START_TEST(read_file_without_permission)
{
	uid_t before = geteuid();

	write_file(1);
	ck_ok(chmod(path, 0));
	if (before == 0)
		ck_ok(seteuid(65534));
	struct buf b = BUF_INIT(10);
	struct fault f = {0};
	int rc = buf_read_file(&b, path, &f);
	if (before == 0)
		ck_ok(seteuid(0));
	ck_assert_int_eq(rc, ST_DENIED);
	ck_assert_int_eq(f.code, ST_DENIED);
	ck_assert_ptr_nonnull(strstr(f.text, path));
}
END_TEST

/* A sanitizer's allocator refuses the advice: that is no reason to die. */
START_TEST(keeping_what_is_freed_is_advice)
{
	mem_keep_freed();
	char *p = mem_calloc(1000000, 1);
	mem_free(p);
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("buf");
	TCase *tc = tcase_create("status");

	unit_add(tc, keeping_what_is_freed_is_advice);
	unit_add(tc, status_has_a_text_for_every_code);
	unit_add(tc, status_of_an_errno);
	unit_add(tc, numbers_have_the_order_that_was_asked_for);
	unit_add(tc, fault_is_set_and_wrapped);
	unit_add(tc, fault_wrap_fills_an_empty_fault);
	unit_add(tc, fault_may_be_null);
	unit_add(tc, fault_text_is_one_line);
	unit_add(tc, fault_survives_a_text_that_cannot_be_formatted);
	unit_add(tc, fault_text_is_cut_at_a_character);
	suite_add_tcase(s, tc);

	tc = tcase_create("mem");
	unit_add(tc, mem_zeroes_and_copies);
	unit_add(tc, mem_wipe_clears);
	unit_add(tc, broken_invariants_abort);
	unit_add(tc, broken_invariant_aborts_without_stderr);
#ifndef WITH_SANITIZERS
	unit_add(tc, no_memory_aborts);
#endif
	suite_add_tcase(s, tc);

	tc = tcase_create("buf");
	unit_add(tc, buf_starts_empty);
	unit_add(tc, buf_holds_exactly_its_maximum);
	unit_add(tc, buf_with_maximum_zero);
	unit_add(tc, buf_refuses_sizes_beyond_the_address_space);
	unit_add(tc, buf_maximum_lowered_below_the_content);
	unit_add(tc, buf_grows_and_keeps_its_bytes);
	unit_add(tc, buf_takes_its_own_bytes);
	unit_add(tc, buf_printf_appends);
	unit_add(tc, buf_holds_nul_bytes);
	unit_add(tc, buf_truncate_and_consume);
	unit_add(tc, buf_misuse_aborts);
	unit_add(tc, buf_counts_what_was_written_behind_it);
	unit_add(tc, buf_move_takes_block_and_kind);
	unit_add(tc, secret_buf_wipes_what_it_drops);
	unit_add(tc, plain_buf_keeps_its_block_on_reset);
#ifdef CAN_WATCH_FREE
	unit_add(tc, secret_buf_wipes_the_block_it_gives_back);
#endif
	suite_add_tcase(s, tc);

	tc = tcase_create("files");
	tcase_add_checked_fixture(tc, make_dir, remove_dir);
	unit_add(tc, read_file_up_to_the_maximum);
	unit_add(tc, read_file_keeps_the_kind);
	unit_add(tc, read_file_of_unknown_size);
	unit_add(tc, read_file_says_what_is_wrong);
	unit_add(tc, read_file_without_permission);
	suite_add_tcase(s, tc);
	return s;
}

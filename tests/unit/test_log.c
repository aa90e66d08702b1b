/*
 * Lines as a sink sees them, and as they arrive at stderr: a datagram socket stands in for it, so that
 * every write is one message.
 */
#include "unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/sys.h"

#define HEAD "time=2026-01-01T00:00:00.000Z level=info event="
#define JSON_HEAD "{\"time\":\"2026-01-01T00:00:00.000Z\",\"level\":\"info\",\"event\":"

static struct {
	int count;
	enum log_level level;
	char line[20000];
} seen;

static void remember(enum log_level level, const char *line, void *arg)
{
	ck_assert_ptr_eq(arg, &seen);
	seen.count++;
	seen.level = level;
	snprintf(seen.line, sizeof(seen.line), "%s", line);
}

static void start(void)
{
	unsetenv("JOURNAL_STREAM");
	sys_set(sys_virtual(1));
	memset(&seen, 0, sizeof(seen));
	log_set_sink(remember, &seen);
	log_setup(LOG_FORMAT_LOGFMT, LOG_LEVEL_DEBUG);
}

static void finish(void)
{
	log_set_sink(NULL, NULL);
	sys_set(NULL);
	unsetenv("JOURNAL_STREAM");
}

START_TEST(an_event_alone_is_a_line)
{
	log_info("refresh.done");
	ck_assert_str_eq(seen.line, HEAD "refresh.done");
	ck_assert_int_eq(seen.count, 1);
	ck_assert_int_eq(seen.level, LOG_LEVEL_INFO);
	log_setup(LOG_FORMAT_JSON, LOG_LEVEL_INFO);
	log_info("refresh.done");
	ck_assert_str_eq(seen.line, JSON_HEAD "\"refresh.done\"}");
}
END_TEST

START_TEST(every_type_has_its_form)
{
	static const uint8_t id[16] = {0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc, 0xba, 0x98,
		0x76, 0x54, 0x32, 0x10};
	struct fault f = { .code = 0 };

	fault_set(&f, ST_SYNTAX, "a.yaml:3: odd");
	for (int format = 0; format < 2; format++) {
		log_setup(format == 0 ? LOG_FORMAT_LOGFMT : LOG_FORMAT_JSON, LOG_LEVEL_INFO);
		log_info("x.y", K_ID(id), K_INT("i", INT64_MIN), K_UINT("u", UINT64_MAX), K_MS(12.5),
			K_COUNT(3), K_BOOL("yes", true), K_BOOL("no", false), K_PROVIDER("acme"),
			K_APP("my app"), K_FAULT(&f), K_DOUBLE("nan", NAN), K_STATUS(ST_FULL));
		if (format == 0)
			ck_assert_str_eq(seen.line,
				HEAD "x.y connection=01234567-89ab-cdef-fedc-ba9876543210 "
				     "i=-9223372036854775808 u=18446744073709551615 ms=12.5 count=3 yes=true "
				     "no=false "
				     "provider=acme application=\"my app\" error=\"a.yaml:3: odd\" nan=null "
				     "error=\"limit reached\"");
		else
			ck_assert_str_eq(seen.line, JSON_HEAD
				"\"x.y\",\"connection\":\"01234567-89ab-cdef-fedc-ba9876543210\","
				"\"i\":-9223372036854775808,\"u\":18446744073709551615,\"ms\":12.5,"
				"\"count\":3,\"yes\":true,\"no\":false,\"provider\":\"acme\","
				"\"application\":\"my app\",\"error\":\"a.yaml:3: odd\",\"nan\":null,"
				"\"error\":\"limit reached\"}");
	}
}
END_TEST

START_TEST(logfmt_quotes_what_would_break_the_line)
{
	static const struct {
		const char *in, *out;
	} cases[] = {
		{ "plain", "plain" },
		{ "a/b:c,d", "a/b:c,d" },
		{ "m\xc3\xbcnze", "m\xc3\xbcnze" },
		{ "", "\"\"" },
		{ "a b", "\"a b\"" },
		{ "a=b", "\"a=b\"" },
		{ "say \"hi\"", "\"say \\\"hi\\\"\"" },
		{ "back\\slash", "\"back\\\\slash\"" },
		{ "two\nlines\r\t", "\"two\\nlines\\r\\t\"" },
		{ "\x1b[31m", "\"\\u001b[31m\"" },
		{ "bad\xff", "\"bad\xef\xbf\xbd\"" },
		{ "\xc2\x9b[31m \xc2\x80", "\"?[31m ?\"" },
		{ "\xc2\x85\xc2\xa0\xc3\x85", "?\xc2\xa0\xc3\x85" },
		{ NULL, "null" },
	};
	char expected[200];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		snprintf(expected, sizeof(expected), HEAD "e t=%s", cases[i].out);
		log_info("e", K_TEXT("t", cases[i].in));
		ck_assert_str_eq(seen.line, expected);
		log_info("e", K_WORD("t", cases[i].in));
		ck_assert_str_eq(seen.line, expected);
	}
	log_info("e", K_ID(NULL));
	ck_assert_str_eq(seen.line, HEAD "e connection=null");
}
END_TEST

START_TEST(json_lines_are_json)
{
	log_setup(LOG_FORMAT_JSON, LOG_LEVEL_INFO);
	log_info("e", K_TEXT("t", "a \"b\" \\ \n \x01 \xff /"), K_TEXT("none", NULL), K_ID(NULL));
	struct json_object *o = json_tokener_parse(seen.line);
	ck_assert_ptr_nonnull(o);
	ck_assert_str_eq(json_object_get_string(json_object_object_get(o, "t")),
		"a \"b\" \\ \n \x01 \xef\xbf\xbd /");
	ck_assert(json_object_object_get_ex(o, "none", NULL));
	ck_assert_str_eq(json_object_get_string(json_object_object_get(o, "level")), "info");
	ck_assert_ptr_null(strchr(seen.line, '\n'));
	json_object_put(o);
}
END_TEST

START_TEST(long_texts_are_cut_between_characters)
{
	char in[600], expected[700];

	memset(in, 'x', sizeof(in));
	in[400] = '\0';
	log_info("e", K_TEXT("t", in));
	snprintf(expected, sizeof(expected), HEAD "e t=%s", in);
	ck_assert_str_eq(seen.line, expected);

	in[400] = 'x';
	in[401] = '\0';
	log_info("e", K_TEXT("t", in));
	snprintf(expected, sizeof(expected), HEAD "e t=%.397s...", in);
	ck_assert_str_eq(seen.line, expected);

	memcpy(in + 395, "\xe2\x82\xac", 3); /* bytes 395..397: the cut at 397 would split it */
	log_info("e", K_TEXT("t", in));
	snprintf(expected, sizeof(expected), HEAD "e t=%.395s...", in);
	ck_assert_str_eq(seen.line, expected);
}
END_TEST

START_TEST(a_line_that_is_too_long_keeps_its_event)
{
	char in[401];
	struct log_kv kv[21];

	/* Escaped to six bytes each: 20 texts are 48,000 bytes. */
	memset(in, 1, sizeof(in) - 1);
	in[400] = '\0';
	for (size_t i = 0; i < 20; i++)
		kv[i] = K_TEXT("t", in);
	kv[20] = LOG_KV_END;
	log_write(LOG_LEVEL_INFO, "e", kv);
	ck_assert_str_eq(seen.line, HEAD "e too_long=true");
	log_setup(LOG_FORMAT_JSON, LOG_LEVEL_INFO);
	log_write(LOG_LEVEL_INFO, "e", kv);
	ck_assert_str_eq(seen.line, JSON_HEAD "\"e\",\"too_long\":true}");
}
END_TEST

START_TEST(levels_filter_and_have_names)
{
	static const char *const names[] = { "error", "warning", "notice", "info", "debug" };
	enum log_level level = LOG_LEVEL_INFO;

	for (int i = 0; i < 5; i++) {
		ck_ok(log_level_parse(names[i], &level));
		ck_assert_int_eq(level, LOG_LEVEL_ERROR + i);
		log_setup(LOG_FORMAT_LOGFMT, level);
		seen.count = 0;
		log_error("e");
		log_warning("e");
		log_notice("e");
		log_info("e");
		log_debug("e");
		ck_assert_int_eq(seen.count, i + 1);
		ck_assert_int_eq(seen.level, level);
		ck_assert_ptr_nonnull(strstr(seen.line, names[i]));
		ck_assert(log_enabled(level));
		ck_assert(log_enabled(LOG_LEVEL_ERROR));
		ck_assert(level == LOG_LEVEL_DEBUG || !log_enabled((enum log_level)(level + 1)));
	}
	ck_assert_int_eq(log_level_parse("warn", &level), ST_INVALID);
	ck_assert_int_eq(log_level_parse("", &level), ST_INVALID);
	ck_assert_int_eq(log_level_parse("INFO", &level), ST_INVALID);
	ck_assert_int_eq(level, LOG_LEVEL_DEBUG);
}
END_TEST

/* stderr replaced by one end of a datagram pair; the other end reads it. */
static struct {
	int saved, ours, theirs;
} swapped;

static void swap_stderr(void)
{
	int pair[2];

	ck_ok(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair));
	swapped.ours = pair[0];
	swapped.theirs = pair[1];
	swapped.saved = dup(STDERR_FILENO);
	ck_assert_int_eq(dup2(pair[1], STDERR_FILENO), STDERR_FILENO);
	log_set_sink(NULL, NULL);
}

static void restore_stderr(void)
{
	dup2(swapped.saved, STDERR_FILENO);
	close(swapped.saved);
	close(swapped.ours);
	close(swapped.theirs);
}

static void check_message(const char *expected)
{
	char got[20000];
	ssize_t n = read(swapped.ours, got, sizeof(got) - 1);

	got[n < 0 ? 0 : n] = '\0';
	ck_assert_str_eq(got, expected);
}

struct stream_env {
	const char *before, *between, *after;
	long long dev_off, ino_off;
};

static void set_journal_stream(const struct stream_env *e)
{
	struct stat st;
	char env[100];

	ck_ok(fstat(STDERR_FILENO, &st));
	snprintf(env, sizeof(env), "%s%lld%s%lld%s", e->before, (long long)st.st_dev + e->dev_off, e->between,
		(long long)st.st_ino + e->ino_off, e->after);
	ck_ok(setenv("JOURNAL_STREAM", env, 1));
}

START_TEST(a_line_before_the_setup_is_written)
{
	sys_set(sys_virtual(1));
	swap_stderr();
	set_journal_stream(&(struct stream_env){"", ":", "", 0, 0});
	log_debug("d");
	log_info("e");
	check_message("<6>" HEAD "e\n");
	check_message("");
	restore_stderr();
	finish();
}
END_TEST

START_TEST(a_line_is_one_write)
{
	swap_stderr();
	log_info("e", K_TEXT("t", "two words"), K_COUNT(1));
	check_message(HEAD "e t=\"two words\" count=1\n");
	log_info("f");
	check_message(HEAD "f\n");
	check_message("");
	restore_stderr();
}
END_TEST

START_TEST(around_the_limit_a_line_is_whole_or_replaced)
{
	char full[401], part[301], last[401], got[20000];
	struct log_kv kv[9];
	bool replaced = false;

	memset(full, 1, 400);
	full[400] = '\0';
	memset(part, 1, 300);
	part[300] = '\0';
	for (size_t i = 0; i < 6; i++)
		kv[i] = K_TEXT("t", full);
	kv[6] = K_TEXT("t", part);
	kv[8] = LOG_KV_END;
	swap_stderr();
	size_t longest = 0;
	for (size_t n = 1; n <= 400; n++) {
		memset(last, 'y', n);
		last[n] = '\0';
		kv[7] = K_TEXT("last", last);
		log_write(LOG_LEVEL_INFO, "e", kv);
		ssize_t len = read(swapped.ours, got, sizeof(got) - 1);
		ck_assert_int_gt(len, 0);
		ck_assert_int_eq(got[len - 1], '\n');
		got[len] = '\0';
		bool short_line = strcmp(got, HEAD "e too_long=true\n") == 0;
		ck_assert(short_line || got[len - 2] == 'y');
		ck_assert(short_line >= replaced);
		replaced = short_line;
		if (!short_line)
			longest = (size_t)len;
	}
	ck_assert(replaced);
	ck_assert_uint_eq(longest, 16384);
	restore_stderr();
}
END_TEST

START_TEST(the_journal_gets_priorities)
{
	swap_stderr();
	set_journal_stream(&(struct stream_env){"", ":", "", 0, 0});
	log_setup(LOG_FORMAT_LOGFMT, LOG_LEVEL_DEBUG);
	log_info("e");
	check_message("<6>" HEAD "e\n");
	log_error("e");
	check_message("<3>time=2026-01-01T00:00:00.000Z level=error event=e\n");
	log_setup(LOG_FORMAT_JSON, LOG_LEVEL_DEBUG);
	log_debug("e");
	check_message("<7>{\"time\":\"2026-01-01T00:00:00.000Z\",\"level\":\"debug\",\"event\":\"e\"}\n");
	/* A sink gets none. */
	log_set_sink(remember, &seen);
	log_info("e");
	ck_assert_str_eq(seen.line, JSON_HEAD "\"e\"}");
	restore_stderr();
}
END_TEST

START_TEST(a_redirected_stderr_gets_no_priorities)
{
	static const struct stream_env cases[] = {
		{ "", ":", "", 0, 1 }, { "", ":", "", 1, 0 },  { "", "", "", 0, 0 },   { "", "", ":", 0, 0 },
		{ ":", "", "", 0, 0 }, { "", ":", "x", 0, 0 }, { " ", ":", "", 0, 0 }, { "", "-", "", 0, 0 },
	};

	swap_stderr();
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		set_journal_stream(&cases[i]);
		log_setup(LOG_FORMAT_LOGFMT, LOG_LEVEL_DEBUG);
		log_info("e");
		check_message(HEAD "e\n");
	}
	restore_stderr();
}
END_TEST

START_TEST(lost_lines_are_counted_by_the_next)
{
	swap_stderr();
	int full = 0;
	while (full < 100000 && write(STDERR_FILENO, "x", 1) == 1)
		full++;
	ck_assert_int_eq(errno, EAGAIN);
	errno = ENOENT;
	log_info("a");
	log_info("b");
	ck_assert_int_eq(errno, ENOENT);
	for (; full > 0; full--)
		check_message("x");
	log_info("c", K_COUNT(1));
	check_message(HEAD "c count=1 lines_lost=2\n");
	log_info("d");
	check_message(HEAD "d\n");

	close(STDERR_FILENO);
	log_info("e");
	ck_assert_int_eq(dup2(swapped.theirs, STDERR_FILENO), STDERR_FILENO);
	log_setup(LOG_FORMAT_JSON, LOG_LEVEL_INFO);
	log_info("f");
	check_message(JSON_HEAD "\"f\",\"lines_lost\":1}\n");
	restore_stderr();
}
END_TEST

START_TEST(a_long_line_goes_through_a_pipe_whole)
{
	int fd[2];
	char text[401], got[20000];
	size_t len = 0;

	memset(text, 'x', 400);
	text[400] = '\0';
	ck_ok(pipe(fd));
	int saved = dup(STDERR_FILENO);
	ck_assert_int_eq(dup2(fd[1], STDERR_FILENO), STDERR_FILENO);
	log_set_sink(NULL, NULL);
	log_info("e", K_TEXT("a", text), K_TEXT("b", text), K_TEXT("c", text));
	dup2(saved, STDERR_FILENO);
	close(saved);
	close(fd[1]);
	for (ssize_t n; (n = read(fd[0], got + len, sizeof(got) - len)) > 0;)
		len += (size_t)n;
	close(fd[0]);
	ck_assert_uint_eq(len, strlen(HEAD "e a= b= c=\n") + 3 * 400);
	ck_assert_int_eq(got[len - 1], '\n');
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("log");
	TCase *first = tcase_create("before the setup"), *tc = tcase_create("log");

	unit_add(first, a_line_before_the_setup_is_written);
	suite_add_tcase(s, first);
	tcase_add_checked_fixture(tc, start, finish);
	unit_add(tc, an_event_alone_is_a_line);
	unit_add(tc, every_type_has_its_form);
	unit_add(tc, logfmt_quotes_what_would_break_the_line);
	unit_add(tc, json_lines_are_json);
	unit_add(tc, long_texts_are_cut_between_characters);
	unit_add(tc, a_line_that_is_too_long_keeps_its_event);
	unit_add(tc, levels_filter_and_have_names);
	unit_add(tc, a_line_is_one_write);
	unit_add(tc, around_the_limit_a_line_is_whole_or_replaced);
	unit_add(tc, the_journal_gets_priorities);
	unit_add(tc, a_redirected_stderr_gets_no_priorities);
	unit_add(tc, lost_lines_are_counted_by_the_next);
	unit_add(tc, a_long_line_goes_through_a_pipe_whole);
	suite_add_tcase(s, tc);
	return s;
}

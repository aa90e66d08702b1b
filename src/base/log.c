/*
 * log - builds one line an event and writes it with one call.
 *
 * Both formats share jsonw's escaping: what is quoted in logfmt is a JSON string. A line is built in
 * a bounded buffer and never split; one that would be too long keeps its event and loses its keys.
 * A log that cannot be written must not hold up the work, so failures are counted, shown by the next
 * line that gets through, and otherwise left alone. Nothing here may format a secret.
 */
#include "base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/jsonw.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

#define LINE_BYTES ((size_t)16384) /* far below the 48 KiB at which journald splits a line */
#define TEXT_BYTES ((size_t)400)
#define CUT_MARK "..."

static struct {
	enum log_format format;
	enum log_level level;
	void (*sink)(enum log_level level, const char *line, void *arg);
	void *sink_arg;
	bool stderr_known;
	bool stderr_is_journal;
	uint64_t lost; /* lines that could not be written since the last that could */
} state = { .format = LOG_FORMAT_LOGFMT, .level = LOG_LEVEL_INFO };

static const struct {
	enum log_level level;
	const char *name;
} levels[] = {
	{ LOG_LEVEL_ERROR, "error" },	{ LOG_LEVEL_WARNING, "warning" }, { LOG_LEVEL_NOTICE, "notice" },
	{ LOG_LEVEL_INFO, "info" },	{ LOG_LEVEL_DEBUG, "debug" },
};
#define LEVELS (sizeof(levels) / sizeof(levels[0]))

static const char *level_name(enum log_level level)
{
	ALWAYS(level >= LOG_LEVEL_ERROR && level <= LOG_LEVEL_DEBUG);
	return levels[level - LOG_LEVEL_ERROR].name;
}

int log_level_parse(const char *s, enum log_level *out)
{
	for (size_t i = 0; i < LEVELS; i++) {
		if (strcmp(s, levels[i].name) != 0)
			continue;
		*out = levels[i].level;
		return 0;
	}
	return ST_INVALID;
}

/* systemd.exec(5): JOURNAL_STREAM is "device:inode" of the stream; a redirected stderr no longer matches. */
static bool find_journal(void)
{
	const char *env = getenv("JOURNAL_STREAM");
	struct stat st;
	uint64_t dev, ino;

	if (env == NULL || fstat(STDERR_FILENO, &st) < 0)
		return false;
	size_t dev_len = strcspn(env, ":");
	if (env[dev_len] != ':')
		return false;
	const char *ino_text = env + dev_len + 1;
	if (str_parse_u64(env, dev_len, &dev) < 0 || str_parse_u64(ino_text, strlen(ino_text), &ino) < 0)
		return false;
	return dev == (uint64_t)st.st_dev && ino == (uint64_t)st.st_ino;
}

void log_setup(enum log_format format, enum log_level level)
{
	ALWAYS(format == LOG_FORMAT_LOGFMT || format == LOG_FORMAT_JSON);
	(void)level_name(level);
	state.format = format;
	state.level = level;
	state.stderr_is_journal = find_journal();
	state.stderr_known = true;
}

void log_set_sink(void (*sink)(enum log_level level, const char *line, void *arg), void *arg)
{
	state.sink = sink;
	state.sink_arg = arg;
}

bool log_enabled(enum log_level level)
{
	return level <= state.level;
}

/* U+0080 to U+009F, which jsonw lets pass: a terminal obeys them as it does an escape. Returns the new length. */
static size_t drop_c1(char *s, size_t n)
{
	size_t to = 0;

	for (size_t i = 0; i < n; i++) {
		bool c1 = (uint8_t)s[i] == 0xc2 && i + 1 < n && ((uint8_t)s[i + 1] & 0xe0) == 0x80;
		s[to++] = c1 ? '?' : s[i];
		i += c1;
	}
	return to;
}

/* A text as it is logged: at most TEXT_BYTES, cut between characters. Returns the length in `out`. */
static size_t cut_text(const char *s, char out[TEXT_BYTES])
{
	size_t n = strnlen(s, TEXT_BYTES + 1), mark = strlen(CUT_MARK);

	if (n <= TEXT_BYTES) {
		memcpy(out, s, n);
		return drop_c1(out, n);
	}
	n = TEXT_BYTES - mark;
	while (n > 0 && ((uint8_t)s[n] & 0xc0) == 0x80)
		n--;
	memcpy(out, s, n);
	memcpy(out + n, CUT_MARK, mark);
	return drop_c1(out, n + mark);
}

static void json_text(struct jsonw *w, const char *key, const char *s)
{
	char text[TEXT_BYTES];

	if (s == NULL)
		jsonw_null(w, key);
	else
		jsonw_strn(w, key, text, cut_text(s, text));
}

static void json_uuid(struct jsonw *w, const char *key, const uint8_t *id)
{
	char text[STR_UUID_BYTES];

	if (id == NULL) {
		jsonw_null(w, key);
		return;
	}
	str_format_uuid(id, text);
	jsonw_str(w, key, text);
}

static void json_value(struct jsonw *w, const char *key, const struct log_kv *kv)
{
	char number[24];

	switch (kv->type) {
	case LOG_I64:
		jsonw_int(w, key, kv->v.i64);
		break;
	case LOG_U64:
		jsonw_raw(w, key, number, (size_t)snprintf(number, sizeof(number), "%" PRIu64, kv->v.u64));
		break;
	case LOG_DOUBLE:
		jsonw_double(w, key, kv->v.d);
		break;
	case LOG_BOOL:
		jsonw_bool(w, key, kv->v.b);
		break;
	case LOG_WORD:
	case LOG_TEXT:
		json_text(w, key, kv->v.s);
		break;
	case LOG_UUID:
		json_uuid(w, key, kv->v.uuid);
		break;
	case LOG_END:
		break;
	}
}

/* Text that was not UTF-8 has been replaced, which is all that a log can do about it. */
static int json_done(struct jsonw *w)
{
	int rc = jsonw_end(w);

	return rc == ST_INVALID ? 0 : rc;
}

static int build_json(struct buf *line, const char *time, enum log_level level, const char *event,
	const struct log_kv *kv)
{
	struct jsonw w;

	jsonw_init(&w, line);
	jsonw_object(&w, NULL);
	jsonw_str(&w, "time", time);
	jsonw_str(&w, "level", level_name(level));
	jsonw_str(&w, "event", event);
	for (; kv->type != LOG_END; kv++)
		json_value(&w, kv->key, kv);
	if (state.lost > 0)
		jsonw_int(&w, "lines_lost", (int64_t)state.lost);
	jsonw_object_end(&w);
	return json_done(&w);
}

/* Whether a logfmt value can stand without quotes. */
static bool is_plain(const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if ((uint8_t)s[i] <= ' ' || s[i] == 0x7f || s[i] == '=' || s[i] == '"' || s[i] == '\\')
			return false;
	return n > 0 && str_is_utf8(s, n);
}

/* A text without quotes where it can do without; everything else as in JSON. */
static int logfmt_value(struct buf *line, const struct log_kv *kv)
{
	char text[TEXT_BYTES];
	struct jsonw w;

	if ((kv->type == LOG_WORD || kv->type == LOG_TEXT) && kv->v.s != NULL) {
		size_t n = cut_text(kv->v.s, text);
		if (is_plain(text, n))
			return buf_append(line, text, n);
	}
	if (kv->type == LOG_UUID && kv->v.uuid != NULL) {
		str_format_uuid(kv->v.uuid, text);
		return buf_puts(line, text);
	}
	jsonw_init(&w, line);
	json_value(&w, NULL, kv);
	return json_done(&w);
}

static int build_logfmt(struct buf *line, const char *time, enum log_level level, const char *event,
	const struct log_kv *kv)
{
	int rc = buf_printf(line, "time=%s level=%s event=%s", time, level_name(level), event);

	for (; rc == 0 && kv->type != LOG_END; kv++) {
		rc = buf_printf(line, " %s=", kv->key);
		if (rc == 0)
			rc = logfmt_value(line, kv);
	}
	if (rc == 0 && state.lost > 0)
		rc = buf_printf(line, " lines_lost=%" PRIu64, state.lost);
	return rc;
}

static int build(struct buf *line, enum log_level level, const char *event, const struct log_kv *kv)
{
	char time[STR_ISO_BYTES];

	str_format_iso_ms(sys_wall_us(), time);
	if (state.format == LOG_FORMAT_JSON)
		return build_json(line, time, level, event, kv);
	return build_logfmt(line, time, level, event, kv);
}

static bool write_all(const uint8_t *p, size_t n)
{
	while (n > 0) {
		ssize_t w = write(STDERR_FILENO, p, n);
		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0)
			return false;
		p += w;
		n -= (size_t)w;
	}
	return true;
}

static void emit(enum log_level level, struct buf *line)
{
	int saved = errno;

	if (state.sink != NULL) {
		state.lost = 0;
		state.sink(level, buf_str(line), state.sink_arg);
	} else if (buf_putc(line, '\n') == 0 && write_all(line->data, line->len)) {
		state.lost = 0;
	} else {
		state.lost++;
	}
	errno = saved;
}

void log_write(enum log_level level, const char *event, const struct log_kv *kv)
{
	static const struct log_kv too_long[] = {
		{ .type = LOG_BOOL, .key = "too_long", .v.b = true },
		{ .type = LOG_END, .key = NULL, .v.i64 = 0 },
	};
	struct buf line = BUF_INIT(LINE_BYTES);

	if (!log_enabled(level))
		return;
	if (!state.stderr_known)
		log_setup(state.format, state.level);
	int rc = state.sink == NULL && state.stderr_is_journal ? buf_printf(&line, "<%d>", (int)level) : 0;
	size_t prefix_len = line.len;
	if (rc == 0)
		rc = build(&line, level, event, kv);
	/* One byte is kept for the newline. */
	if (rc < 0 || line.len == LINE_BYTES) {
		buf_truncate(&line, prefix_len);
		rc = build(&line, level, event, too_long);
	}
	ALWAYS(rc == 0);
	emit(level, &line);
	buf_fini(&line);
}

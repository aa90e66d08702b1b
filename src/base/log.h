/*
 * log - one line an event: logfmt or JSON, with typed keys.
 *
 * The event name is a constant dotted word ("refresh.done"); every value goes through a typed
 * constructor. There is no constructor for a secret buffer and none for free text from outside:
 * K_TEXT takes our own words (a fault text, a file name) and is escaped and cut at 400 bytes.
 * Lines go to stderr, prefixed "<3>".."<7>" when stderr is the journal (JOURNAL_STREAM), so that
 * systemd keeps the priority. A line beyond 16 KiB keeps its event and says too_long=true; lines that could
 * not be written are counted by the next one (lines_lost). Base, model and io never log; services and the
 * daemon do. The process must ignore SIGPIPE.
 */
#ifndef REFRESHD_BASE_LOG_H
#define REFRESHD_BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum log_level { LOG_LEVEL_ERROR = 3, LOG_LEVEL_WARNING = 4, LOG_LEVEL_NOTICE = 5, LOG_LEVEL_INFO = 6, LOG_LEVEL_DEBUG = 7 };
enum log_format { LOG_FORMAT_LOGFMT, LOG_FORMAT_JSON };

enum log_type { LOG_END, LOG_I64, LOG_U64, LOG_DOUBLE, LOG_BOOL, LOG_WORD, LOG_TEXT, LOG_UUID };

struct log_kv {
	enum log_type type;
	const char *key; /* a constant */
	union {
		int64_t i64;
		uint64_t u64;
		double d;
		bool b;
		const char *s;
		const uint8_t *uuid;
	} v;
};

/* Typed keys. Add a row here for a new key: a log key is never built at run time. */
#define K_INT(key_, val_) ((struct log_kv){ .type = LOG_I64, .key = "" key_ "", .v.i64 = (val_) })
#define K_UINT(key_, val_) ((struct log_kv){ .type = LOG_U64, .key = "" key_ "", .v.u64 = (val_) })
#define K_DOUBLE(key_, val_) ((struct log_kv){ .type = LOG_DOUBLE, .key = "" key_ "", .v.d = (val_) })
#define K_BOOL(key_, val_) ((struct log_kv){ .type = LOG_BOOL, .key = "" key_ "", .v.b = (val_) })
#define K_WORD(key_, val_) ((struct log_kv){ .type = LOG_WORD, .key = "" key_ "", .v.s = (val_) }) /* a name of ours: enum text, provider key */
#define K_TEXT(key_, val_) ((struct log_kv){ .type = LOG_TEXT, .key = "" key_ "", .v.s = (val_) }) /* our own sentence; escaped, cut */
#define K_ID(val_) ((struct log_kv){ .type = LOG_UUID, .key = "connection", .v.uuid = (val_) })
#define K_MS(val_) ((struct log_kv){ .type = LOG_DOUBLE, .key = "ms", .v.d = (double)(val_) }) /* milliseconds */
#define K_COUNT(val_) ((struct log_kv){ .type = LOG_U64, .key = "count", .v.u64 = (uint64_t)(val_) })
#define K_PROVIDER(val_) K_WORD("provider", val_)
#define K_APP(val_) K_TEXT("application", val_)
#define K_FAULT(f_) K_TEXT("error", (f_)->text)
#define K_STATUS(code_) K_TEXT("error", status_text(code_))

#define LOG_KV_END ((struct log_kv){ .type = LOG_END, .key = NULL, .v.i64 = 0 })
#define log_at(level_, event_, ...) log_write((level_), "" event_ "", (const struct log_kv[]){ __VA_ARGS__ __VA_OPT__(,) LOG_KV_END })
#define log_error(...) log_at(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_at(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_notice(...) log_at(LOG_LEVEL_NOTICE, __VA_ARGS__)
#define log_info(...) log_at(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_LEVEL_DEBUG, __VA_ARGS__)

void log_setup(enum log_format format, enum log_level level);
void log_write(enum log_level level, const char *event, const struct log_kv *kv);
bool log_enabled(enum log_level level);

/* Tests and the dev mode read lines here instead of stderr; NULL restores stderr. `line` has no newline. */
void log_set_sink(void (*sink)(enum log_level level, const char *line, void *arg), void *arg);
int log_level_parse(const char *s, enum log_level *out) MUST_USE;

#endif

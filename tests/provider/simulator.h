/*
 * simulator - a token endpoint that judges its callers, a webhook sink and a small name server.
 *
 * One process, one libevent loop, one port. Every realm is a provider of its own with rotation rules,
 * client authentication, limits and scripted faults; every presentation of a refresh token is written to
 * the ledger, which is what the integration tests believe. The README beside this file is the manual.
 */
#ifndef TESTS_PROVIDER_SIMULATOR_H
#define TESTS_PROVIDER_SIMULATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/socket.h>

#include <event2/event.h>
#include <event2/event_struct.h>
#include <json-c/json.h>
#include <openssl/ssl.h>

#include "base/buf.h"
#include "base/status.h"

#define REALM_NAME_BYTES 64
#define TOKEN_MIN 40 /* shortest token text that carries family, generation and seal */
#define TOKEN_MAX 8192
#define HEAD_MAX 65536
#define BODY_MAX ((size_t)16 << 20)
#define HEADER_MAX 64
#define FORM_MAX 64
#define ERROR_CODES 24
#define UNKNOWN_FAMILY UINT32_MAX

/* --- http.c: pure parsing of what arrived */

struct slice {
	const char *p;
	size_t n;
};

struct header {
	struct slice name, value;
};

/* Slices point into the connection's input: valid until it is drained or pulled up again. */
struct request {
	struct slice method, path, query;
	struct header headers[HEADER_MAX];
	unsigned header_count;
	size_t head_len, content_length;
	bool close, expect_continue;
	struct slice host, content_type, authorization, body;
};

/* 0, ST_AGAIN while the head is not complete, ST_FULL, ST_SYNTAX (400), ST_VERSION (505), ST_INVALID (411).
 */
int request_parse(struct request *r, const char *p, size_t n) MUST_USE;
bool slice_is(struct slice s, const char *text);
bool slice_starts(struct slice s, const char *text);

struct form {
	struct buf text; /* decoded names and values, each followed by NUL */
	unsigned count;
	struct {
		size_t name, value, len;
	} pair[FORM_MAX];
};

void form_init(struct form *f);
void form_fini(struct form *f);
void form_reset(struct form *f);
/* ST_SYNTAX for a broken escape, ST_EXISTS for a name given twice (RFC 6749 3.2), ST_FULL for too many. */
int form_parse(struct form *f, const char *p, size_t n) MUST_USE;
int form_parse_json(
	struct form *f, const char *p, size_t n) MUST_USE; /* a flat object of strings and numbers */
const char *form_get(const struct form *f, const char *name, size_t *n); /* NULL when absent; n may be NULL */
int form_i64(const struct form *f, const char *name, int64_t fallback, int64_t *out) MUST_USE;

/* --- family.c: realms, families and tokens */

enum mode { MODE_STRICT, MODE_GRACE, MODE_STATIC };
enum auth { AUTH_BASIC, AUTH_POST, AUTH_JWT, AUTH_NONE, AUTH_ANY, AUTH_TLS };
enum static_reply { STATIC_ABSENT, STATIC_NULL, STATIC_EMPTY, STATIC_SAME };
enum login { LOGIN_NONE, LOGIN_CLIENT, LOGIN_PASSWORD };
enum body_kind { BODY_ANY, BODY_FORM, BODY_JSON, BODY_QUERY };

/* 32 bytes, so that ten million of them fit in 320 MB. Static mode: the token stays generation 1, gen counts
 * replies. */
struct family {
	int64_t at_expires_us; /* wall clock, of the newest access token */
	uint32_t gen;          /* newest generation handed out; minted ones start at 1 */
	uint32_t first;  /* generations first..gen are current refresh tokens (siblings of one parent) */
	uint32_t parent; /* the generation whose use made them; 0 = none */
	uint32_t grace_until_ms; /* since the simulator started */
	uint16_t held;           /* presentations being served now */
	bool overlapped;         /* two at once, until held is 0 again */
	bool revoked;
};

struct error_count {
	char code[40];
	uint64_t n;
};

struct realm_stats {
	uint64_t requests, refresh_ok, rotated, reused_in_grace, static_ok, reuse_detected, families_revoked;
	uint64_t logins, overlaps, unknown_tokens, client_refused, rate_limited, faults, down_refused;
	uint64_t redirect_followed, redirect_secret_seen, not_delivered;
	uint64_t in_flight, max_in_flight, conns_open, conns_accepted, conns_max;
	struct error_count errors[ERROR_CODES];
};

struct fault_rule;
struct jti_set;
TAILQ_HEAD(fault_rules, fault_rule);

struct realm {
	unsigned index;
	char name[REALM_NAME_BYTES];
	enum mode mode;
	enum auth auth;
	enum static_reply static_reply;
	enum body_kind body;
	enum login login; /* the grant by which whoever comes may begin a new family */
	bool commit_late, at_overlap, login_rt;
	int64_t grace_us, at_ttl_s, delay_us, jitter_us;
	size_t rt_len, at_len;
	char *client_id, *client_secret, *jwt_aud, *grant, *rt_param, *scope, *username, *password;
	void *jwt_key; /* EVP_PKEY */
	struct jti_set *jtis;
	double rate, burst, tokens; /* rate 0 = no limit */
	int64_t bucket_us;
	int64_t down_until_us; /* monotonic */
	int down_status;       /* 0 = reset the connection */
	struct family *families;
	uint32_t family_count, family_cap;
	struct fault_rules rules;
	struct realm_stats stats;
};

struct sim;
struct realm *realm_find(struct sim *s, const char *name, size_t n); /* NULL when there is none */
int realm_open(
	struct sim *s, const char *name, struct realm **out, struct fault *f) MUST_USE; /* finds or makes */
int realm_set(struct realm *r, const char *key, const char *value, struct fault *f) MUST_USE;
int realm_parse(struct sim *s, const char *text, struct fault *f) MUST_USE; /* NAME:key=value,... */
void realms_free(struct sim *s);
void realm_count_error(struct realm *r, const char *code);

int realm_mint(struct realm *r, uint32_t n, int64_t at_expires_us, uint32_t *first, struct fault *f) MUST_USE;

enum token_kind { TOKEN_REFRESH = 1, TOKEN_ACCESS = 2 };
/* Both texts of one generation (NUL-terminated); either may be NULL. */
void token_make(struct sim *s, const struct realm *r, uint32_t family, uint32_t rt_gen, uint32_t at_gen,
	char rt[TOKEN_MAX + 1], char at[TOKEN_MAX + 1]);
/* ST_INVALID unless this run made it; the realm is found from the text. */
int token_read(struct sim *s, enum token_kind kind, const char *p, size_t n, struct realm **r,
	uint32_t *family, uint32_t *gen) MUST_USE;

enum outcome { OUT_ROTATED, OUT_GRACE, OUT_STATIC, OUT_REUSE, OUT_REVOKED, OUT_UNKNOWN };
enum outcome family_present(struct sim *s, struct realm *r, uint32_t family, uint32_t gen);
void family_revoke(struct realm *r, uint32_t family);
uint32_t family_live(const struct realm *r, uint32_t family); /* generation of the live refresh token */

/* --- ledger.c: who presented what, when, and whether the answer left */

struct presentation {
	struct realm *realm; /* NULL = none open */
	uint32_t family, gen;
	int64_t t_recv_us;
	char rt16[17];
	const char *outcome; /* constants */
	const char *fault;   /* kind, or NULL */
	int status;
	bool rotated;
};

struct ledger {
	int fd; /* -1 = off */
	char *path;
	struct buf out;
	int error; /* errno of the first failed write */
};

int ledger_open(struct ledger *l, const char *path, struct fault *f) MUST_USE;
void ledger_close(struct ledger *l);
int ledger_flush(struct ledger *l) MUST_USE;
void presentation_begin(
	struct presentation *p, struct realm *r, uint32_t family, uint32_t gen, const char *rt, size_t n);
struct conn;
void presentation_end(struct sim *s, struct presentation *p, uint64_t conn, uint32_t req, bool delivered);

/* --- server.c: connections and bytes */

enum act {
	ACT_SEND,  /* everything, then the next request */
	ACT_CUT,   /* `cut` bytes, then close */
	ACT_RESET, /* `cut` bytes, then RST */
	ACT_DRIP,  /* `cut` bytes one at a time, the rest at once */
	ACT_HANG   /* nothing, ever */
};

struct stream {
	/* Appends a piece to `out`; returns true while there is more. */
	bool (*fill)(struct stream *st, struct buf *out);
	void (*fini)(struct stream *st);
};

enum conn_state { CONN_READING, CONN_BUSY, CONN_CLOSED };

struct conn {
	unsigned magic;
	struct sim *sim;
	struct bufferevent *bev; /* NULL once the peer is gone */
	SSL *ssl;                /* borrowed from bev; NULL = plain */
	evutil_socket_t fd;
	uint64_t serial;
	uint32_t req;
	enum conn_state state;
	size_t need;    /* bytes of the request being read, head and body; 0 = head not seen yet */
	bool last;      /* close after this answer */
	bool continued; /* the head was looked at before the body came */
	bool early;     /* answered before the body came */
	bool race;      /* close when the next request begins */
	bool race_reset;
	bool flushing;       /* the answer is in the output buffer */
	bool late;           /* the token is spent when the delay is over, whether the peer stays or not */
	bool counted;        /* in realm->stats.in_flight */
	struct realm *realm; /* last one spoken to */
	struct presentation p;
	struct event timer;
	void (*on_timer)(struct conn *c);
	enum act act;
	size_t cut, sent;
	int64_t step_us;
	struct buf out; /* an answer that waits or drips */
	struct stream *stream;
	TAILQ_ENTRY(conn) link;
};
TAILQ_HEAD(conns, conn);

int server_start(struct sim *s, const char *listen, const char *cert, const char *key, const char *ca,
	struct fault *f) MUST_USE;
void server_stop(struct sim *s);
void conn_process(struct conn *c); /* goes on with what has arrived */
/* Answer now. `wire` holds the whole message; c->act says what becomes of it. */
void conn_perform(struct conn *c, const struct buf *wire);
void conn_perform_later(struct conn *c, const struct buf *wire, int64_t delay_us);
void conn_wait(struct conn *c, int64_t delay_us, void (*fn)(struct conn *c));
bool conn_put(struct conn *c, const uint8_t *p, size_t n); /* true when the kernel has all of it */
void conn_stream(struct conn *c, struct stream *st, const char *ctype);
int conn_request(struct conn *c, struct request *r) MUST_USE; /* parses the current request again */
void conn_set_realm(struct conn *c, struct realm *r);

struct reply {
	int status;
	const char *type;   /* NULL = no body type */
	struct buf headers; /* "Name: value\r\n" lines */
	struct buf body;
	bool chunked;
	size_t extra; /* bytes that Content-Length promises and nobody sends */
};

void reply_reset(struct reply *r, int status, const char *type);
size_t reply_render(
	struct sim *s, const struct reply *r, bool last, struct buf *wire); /* length of the head */
void conn_reply(struct conn *c, struct reply *r);
void conn_reply_text(struct conn *c, int status, const char *json);
void conn_reply_error(struct conn *c, int status, const char *fmt, ...) PRINTF_LIKE(3, 4);
void put_number(struct buf *b, int64_t v);
void put(int rc); /* a scratch buffer that overflows is our own bug: abort */

/* --- token.c, auth.c */

void token_handle(struct conn *c, struct realm *realm, struct request *r);
bool token_early(struct conn *c, struct realm *realm); /* true: answered from the head alone */
void token_after_early(struct conn *c, struct request *r);
void token_redirected(struct conn *c, struct realm *realm, struct request *r);
void token_raced(struct conn *c);
bool token_params(struct realm *realm, const struct request *r, struct form *form);

/* NULL, or the OAuth error code; *status is set then. */
const char *auth_check(struct conn *c, struct realm *realm, const struct request *r, const struct form *form,
	int *status, const char **why);
int auth_load_key(struct realm *r, const char *path, struct fault *f) MUST_USE;
void auth_free(struct realm *r);

/* --- fault.c: what goes wrong, when, for whom */

enum fault_when { FAULT_HEAD, FAULT_BEFORE, FAULT_AFTER };
enum fault_arg { ARG_NONE, ARG_NUMBER, ARG_STATUS, ARG_TYPES, ARG_RETRY, ARG_CODE, ARG_RACE };
struct fault_kind {
	const char *name;
	enum fault_when when;
	enum fault_arg arg;
	/* Turns the proper answer into the bad one; for FAULT_BEFORE it starts empty. */
	void (*apply)(struct conn *c, struct fault_rule *f, struct reply *r);
	void (*finish)(struct conn *c, const struct fault_rule *f,
		size_t head); /* when the bytes are there; may be NULL */
};

struct fault_rule {
	TAILQ_ENTRY(fault_rule) link;
	const struct fault_kind *kind;
	struct realm *realm;
	uint64_t left;
	bool for_ever;
	uint64_t every, seen, fired;
	uint32_t family; /* UNKNOWN_FAMILY = any */
	int64_t number;  /* arg, when it is one; -1 = not given */
	char arg[64];
};

/* What the token endpoint just granted, for the faults that spoil it. */
struct granted {
	char at[TOKEN_MAX + 1], rt[TOKEN_MAX + 1];
	bool has_rt;
	int64_t expires_in;
	const char *scope;
};

int fault_add(struct realm *r, const struct form *q, struct fault *f) MUST_USE;
unsigned fault_clear(struct realm *r);
void faults_free(struct realm *r);
struct fault_rule *fault_pick(
	struct realm *r, uint32_t family, bool head, bool body); /* counts the request */
void fault_fire(struct realm *r, struct fault_rule *f);          /* spends it */
void fault_list(const struct realm *r, struct buf *out);
void granted_body(struct sim *s, const struct realm *r, struct buf *out);

/* --- sink.c, control.c, dns.c */

struct sinks;
struct sinks *sinks_new(void);
void sinks_free(struct sinks *k);
int sinks_open_log(struct sinks *k, const char *path, struct fault *f) MUST_USE;
int sinks_flush(struct sinks *k) MUST_USE;
void sink_handle(struct conn *c, struct request *r);
void sink_control(struct conn *c, const struct form *q);
void sink_log(struct conn *c, const struct form *q);

void control_handle(struct conn *c, struct request *r);

struct dns;
int dns_start(struct sim *s, const char *listen, struct fault *f) MUST_USE;
void dns_stop(struct sim *s);
uint16_t dns_port(const struct sim *s);
uint64_t dns_queries(const struct sim *s);

/* --- simulator.c */

struct sim {
	struct event_base *base;
	struct evconnlistener *listener;
	SSL_CTX *tls;
	bool tls_client_ca;
	uint16_t port;
	uint8_t secret[32];
	int64_t start_us; /* monotonic */
	struct realm **realms;
	unsigned realm_count;
	struct conns conns;
	uint64_t conn_serial, conns_open, conns_max, requests;
	int64_t down_until_us; /* every new connection is reset until then */
	struct ledger ledger;
	struct sinks *sinks;
	struct dns *dns;
	struct event *flush_timer, *sigterm, *sigint;
	/* scratch, reused by every request: nothing in here outlives one handler */
	struct form form, query;
	struct reply reply;
	struct buf wire, tmp;
	struct granted granted;
	int64_t date_s;
	char date[40];
};

int sim_flush(struct sim *s) MUST_USE; /* ledger and sink log to their files */

#endif

/*
 * store - pool, instance row, schema check; turns what happens to statements into one state that others can trust.
 *
 * After every (re)connection the schema version is checked and the instance row taken before READY: a primary
 * that was restored from a backup, or a database that was migrated under us, must not be written to by habit.
 * Must not: hold a transaction open, keep session state, or retry a statement by itself.
 */
#include "service/store.h"

#include <string.h>

#include "base/mem.h"
#include "base/metrics.h"
#include "base/sys.h"
#include "service/migrations.h"

#define MAGIC UINT32_C(0x73746f72)
/* A write confirmed this long ago still counts: three heartbeats. */
#define WRITABLE_US (3 * STORE_HEARTBEAT_US)
#define RECHECK_US (2 * US_PER_S)
#define INSTANCE_ALIVE_S 20
/* Not even one who was just found dead makes us ask more often than this. */
#define BEAT_AT_LEAST_US (US_PER_S / 4)

struct store {
	uint32_t magic;
	struct loop *loop;
	struct pgpool *pool;
	struct loop_timer *recheck;
	struct loop_task report;
	char *instance;
	uint8_t home[16];
	enum store_state state;
	struct fault why;
	store_state_fn *on_state;
	void *on_state_arg;
	int64_t epoch;
	bool has_former;
	uint64_t attempts;
	int64_t last_write_us; /* mono, of the last confirmed write */
	int64_t ready_since_us;
	bool schema_fits; /* as of the last check over the present connections */
	bool heartbeat_in_flight;
	enum store_presence presence;
	bool announce;	 /* the next heartbeat tells the others to look */
	bool announcing; /* the one in flight does */
	bool beat_again; /* when the one in flight is back */
	char **live;	 /* names */
	size_t n_live;
	bool live_known;
	int64_t stale_at_us; /* mono: somebody's heartbeat is too old then, if no other comes */
	store_live_fn *on_live;
	void *on_live_arg;
	void (*on_wait)(void *arg, int64_t us);
	void *on_wait_arg;
	loop_fn *goodbye;
	void *goodbye_arg;
};

static const struct pgstmt SQL_CHECK = {
	"store_check",
	"SELECT coalesce((SELECT max(version) FROM refreshd.schema_version), 0),"
	" (SELECT string_agg(c.relname, ', ' ORDER BY c.relname) FROM pg_class c"
	" WHERE c.relnamespace = to_regnamespace('refreshd') AND c.relkind IN ('r', 'p')"
	" AND c.relname IN ('connection', 'credential', 'schedule', 'event', 'delivery', 'webhook_endpoint', 'orphan_token', 'instance')"
	" AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')))",
};
/* A heartbeat younger than 20 s from another home means that someone else runs under our name. */
static const struct pgstmt SQL_ENROL = {
	"store_enrol",
	"INSERT INTO refreshd.instance AS i (name, home, epoch, version, started_at, heartbeat_at)"
	" VALUES ($1, $2, nextval('refreshd.epoch'), $3, now(), now())"
	" ON CONFLICT (name) DO UPDATE SET home = excluded.home, epoch = excluded.epoch, version = excluded.version,"
	" former_epochs = CASE WHEN i.home = excluded.home THEN i.former_epochs || i.epoch ELSE '{}' END,"
	" presence = excluded.presence, started_at = now(), heartbeat_at = now(), gone = false"
	" WHERE i.home = excluded.home OR i.gone OR i.heartbeat_at < now() - $4::int * interval '1 second'"
	" RETURNING epoch, former_epochs <> '{}'",
};
/* Ourselves and whoever is running, each with the age of its heartbeat. By the clock of the database alone. */
static const struct pgstmt SQL_HEARTBEAT = {
	"store_heartbeat",
	"WITH h AS (UPDATE refreshd.instance SET heartbeat_at = now(), presence = $4 WHERE name = $1 AND epoch = $2 RETURNING name)"
	" SELECT i.name, i.name = h.name, CASE WHEN i.name = h.name THEN 0 ELSE"
	" greatest((extract(epoch FROM now() - i.heartbeat_at) * 1000000)::bigint, 0) END FROM h, refreshd.instance i"
	" WHERE i.name = h.name OR (i.presence = 'running' AND NOT i.gone AND i.heartbeat_at > now() - $3::int * interval '1 second')"
	" ORDER BY i.name COLLATE \"C\"",
};
static const struct pgstmt SQL_ANNOUNCE = {
	"store_announce",
	"SELECT pg_notify('refreshd_instance', '')",
};
static const struct pgstmt SQL_GOODBYE = {
	"store_goodbye",
	"UPDATE refreshd.instance SET gone = true, heartbeat_at = now() WHERE name = $1 AND epoch = $2",
};

const char *store_state_word(enum store_state s)
{
	switch (s) {
#define X(id, word)  \
	case id:     \
		return word;
		STORE_STATE_LIST(X)
#undef X
	}
	return "unknown";
}

static const char *presence_word(enum store_presence p)
{
	switch (p) {
#define X(id, word)  \
	case id:     \
		return word;
		STORE_PRESENCE_LIST(X)
#undef X
	}
	return "unknown";
}

static void report_state(void *arg)
{
	struct store *s = arg;
	MAGIC_CHECK(s, MAGIC);
	if (s->on_state != NULL)
		s->on_state(s->on_state_arg, s->state, &s->why);
}

static void set_state(struct store *s, enum store_state to, const char *why)
{
	if (s->state == to && strncmp(s->why.text, why, sizeof s->why.text - 1) == 0)
		return;
	if (s->state != to)
		s->ready_since_us = to == STORE_READY ? sys_mono_us() : INT64_MAX;
	s->state = to;
	(void)fault_set(&s->why, to == STORE_READY ? ST_OK : ST_UNAVAILABLE, "%s", why);
	loop_defer(s->loop, &s->report);
}

/* Statements and heartbeats that go on failing must not put the next look off for ever. */
static void look_again(struct store *s)
{
	if (!loop_timer_is_set(s->recheck))
		loop_timer_after(s->recheck, RECHECK_US);
}

/* ---- what statements tell about the database ---- */

struct sending {
	struct store *store;
	pgtx_fn *fn;
	void *arg;
};

/* Not our statement is wrong, but what it found: a table, column, schema or right that is not there (any more). */
static bool blames_schema(const char *sqlstate)
{
	static const char *const codes[] = { "42P01", "3F000", "42703", "42501" };
	for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
		if (strcmp(sqlstate, codes[i]) == 0)
			return true;
	}
	return false;
}

static void watch(struct store *s, const struct pgtx_result *r)
{
	if (r->class != PG_CLASS_OK)
		metrics_inc(M_DB_ERRORS, pg_class_word(r->class), NULL);
	if (s->on_wait != NULL)
		s->on_wait(s->on_wait_arg, r->wait_us);
	if (s->state == STORE_CONNECTING || s->state == STORE_WRONG_SCHEMA || s->state == STORE_FENCED)
		return;
	if (r->class == PG_CLASS_RESOURCES) {
		set_state(s, STORE_FULL, "the database server has no space or memory left");
	} else if (r->class == PG_CLASS_READ_ONLY) {
		set_state(s, STORE_READ_ONLY, "the database refuses writes: it is read-only");
	} else if (blames_schema(r->sqlstate)) {
		s->schema_fits = false;
		set_state(s, STORE_CHECKING, "the schema does not fit any more, or the rights on it");
	}
	if (s->state != STORE_READY)
		look_again(s);
}

static void on_sent(void *arg, const struct pgtx_result *r)
{
	struct sending *x = arg;
	struct store *s = x->store;
	pgtx_fn *fn = x->fn;
	void *fn_arg = x->arg;
	MAGIC_CHECK(s, MAGIC);
	mem_free(x);
	watch(s, r);
	fn(fn_arg, r);
}

int store_send(struct store *s, struct pgtx *t, int64_t wait_us, pgtx_fn *fn, void *arg)
{
	struct sending *x = mem_alloc(sizeof *x);
	*x = (struct sending){ .store = s, .fn = fn, .arg = arg };
	int e = pgpool_send(s->pool, t, wait_us, on_sent, x);
	if (e != 0) {
		mem_free(x);
		pgtx_free(t);
	}
	return e;
}

static int send_one(struct store *s, const struct pgstmt *stmt, struct pgargs *a, pgtx_fn *fn)
{
	struct pgtx *t = pgtx_new();
	pgtx_add(t, stmt, a);
	return store_send(s, t, 5 * US_PER_S, fn, s);
}

/* ---- becoming ready ---- */

static void on_enrolled(void *arg, const struct pgtx_result *r)
{
	struct store *s = arg;
	MAGIC_CHECK(s, MAGIC);
	if (s->state == STORE_CONNECTING)
		return; /* the pool went down meanwhile: it starts again when it is up */
	if (r->class == PG_CLASS_OK && pgresult_rows(&r->results[0]) == 1) {
		s->epoch = pgresult_int(&r->results[0], 0, 0);
		s->has_former = pgresult_bool(&r->results[0], 0, 1);
		s->last_write_us = sys_mono_us();
		set_state(s, STORE_READY, "");
		if (s->presence != STORE_STARTING) /* enrolled anew, and the others do not know yet what we are */
			store_set_presence(s, s->presence);
		return;
	}
	if (r->class == PG_CLASS_OK)
		set_state(s, STORE_FENCED, "another refreshd runs under this instance name: give each one its own `instance`");
	else if (r->class == PG_CLASS_READ_ONLY)
		set_state(s, STORE_READ_ONLY, "the database refuses writes: it is read-only");
	else if (r->class == PG_CLASS_RESOURCES)
		set_state(s, STORE_FULL, "the database server has no space or memory left");
	look_again(s);
}

static void enrol(struct store *s)
{
	/* An epoch that is ours stays ours over reconnections: attempts in flight carry it. */
	if (s->epoch != 0) {
		store_heartbeat(s);
		return;
	}
	struct pgargs *a = pgargs_new();
	pgargs_text(a, s->instance);
	pgargs_uuid(a, s->home);
	pgargs_text(a, PACKAGE_VERSION);
	pgargs_i32(a, INSTANCE_ALIVE_S);
	if (send_one(s, &SQL_ENROL, a, on_enrolled) != 0)
		look_again(s);
}

static void judge_version(struct store *s, int version, const char *closed)
{
	struct fault f = { 0 };
	s->schema_fits = version == SCHEMA_VERSION && closed == NULL;
	if (s->schema_fits) {
		enrol(s);
		return;
	}
	if (version == SCHEMA_VERSION) {
		(void)fault_set(&f, ST_DENIED, "the database user may not read and write in the schema refreshd: %s", closed);
		set_state(s, STORE_WRONG_SCHEMA, f.text);
		look_again(s);
		return;
	}
	(void)fault_set(&f, ST_VERSION, "the database has schema version %d, this program needs %d: %s", version, SCHEMA_VERSION,
		version < SCHEMA_VERSION ? "run `refreshctl migrate`" : "use a newer refreshd");
	set_state(s, STORE_WRONG_SCHEMA, f.text);
	look_again(s);
}

static void on_checked(void *arg, const struct pgtx_result *r)
{
	struct store *s = arg;
	MAGIC_CHECK(s, MAGIC);
	if (s->state == STORE_CONNECTING)
		return;
	if (r->class == PG_CLASS_OK) {
		const struct pgresult *x = &r->results[0];
		judge_version(s, (int)pgresult_int(x, 0, 0), pgresult_null(x, 0, 1) ? NULL : pgresult_text(x, 0, 1, NULL));
		return;
	}
	if (r->class == PG_CLASS_BUG) { /* no such table or schema, or no right to read it */
		if (strcmp(r->sqlstate, "42501") == 0)
			set_state(s, STORE_WRONG_SCHEMA, "the database user has no rights on the schema refreshd");
		else
			judge_version(s, 0, NULL);
	}
	look_again(s);
}

static void check(void *arg)
{
	struct store *s = arg;
	MAGIC_CHECK(s, MAGIC);
	if (!pgpool_is_up(s->pool) || s->state == STORE_READY)
		return;
	if (s->state == STORE_CONNECTING)
		set_state(s, STORE_CHECKING, "checking the schema");
	if (send_one(s, &SQL_CHECK, pgargs_new(), on_checked) != 0)
		look_again(s);
}

static void on_pool_state(void *arg, bool up, const struct fault *why)
{
	struct store *s = arg;
	MAGIC_CHECK(s, MAGIC);
	if (up) {
		check(s);
		return;
	}
	loop_timer_stop(s->recheck);
	s->schema_fits = false;
	set_state(s, STORE_CONNECTING, why != NULL && why->text[0] != '\0' ? why->text : "no connection to the database");
}

/* ---- heartbeat ---- */

static void forget_live(struct store *s)
{
	for (size_t i = 0; i < s->n_live; i++)
		mem_free(s->live[i]);
	mem_free(s->live);
	s->live = NULL;
	s->n_live = 0;
}

/* Who is running, by name; false: as before. */
static bool note_live(struct store *s, const struct pgresult *r)
{
	int rows = pgresult_rows(r);
	char **now = mem_calloc((size_t)rows + 1, sizeof *now);
	size_t n = 0;
	int64_t oldest_us = 0;
	for (int i = 0; i < rows; i++) {
		if (pgresult_bool(r, i, 1) && s->presence != STORE_RUNNING)
			continue;
		now[n++] = mem_strdup(pgresult_text(r, i, 0, NULL));
		if (pgresult_int(r, i, 2) > oldest_us)
			oldest_us = pgresult_int(r, i, 2);
	}
	s->stale_at_us = sys_mono_us() + INSTANCE_ALIVE_S * US_PER_S - oldest_us;
	bool same = s->live_known && n == s->n_live;
	for (size_t i = 0; i < n && same; i++)
		same = strcmp(now[i], s->live[i]) == 0;
	forget_live(s);
	s->live = now;
	s->n_live = n;
	s->live_known = true;
	return !same;
}

static void tell_live(const struct store *s)
{
	struct store_live l = { .names = (const char *const *)s->live, .n = s->n_live };
	while (l.self < l.n && strcmp(l.names[l.self], s->instance) != 0)
		l.self++;
	if (s->on_live != NULL)
		s->on_live(s->on_live_arg, &l);
}

static void on_heartbeat(void *arg, const struct pgtx_result *r)
{
	struct store *s = arg;
	MAGIC_CHECK(s, MAGIC);
	s->heartbeat_in_flight = false;
	s->announce = s->announce || (s->announcing && r->class != PG_CLASS_OK);
	s->announcing = false;
	if (r->class != PG_CLASS_OK || s->state == STORE_CONNECTING) {
		if (s->state != STORE_CONNECTING && s->state != STORE_READY)
			look_again(s);
		return;
	}
	if (pgresult_rows(&r->results[0]) == 0) {
		/* Someone took our name, or the row was removed: our leases may be taken over, so stop and enrol anew. */
		s->epoch = 0;
		set_state(s, STORE_FENCED, "the instance row was taken over: another refreshd runs under this instance name");
		look_again(s);
		return;
	}
	s->last_write_us = sys_mono_us();
	if (s->schema_fits) /* the row of the instance is there in any schema */
		set_state(s, STORE_READY, "");
	bool again = s->announce || s->beat_again; /* something changed meanwhile */
	s->beat_again = false;
	if (again)
		store_heartbeat(s);
	else if (note_live(s, &r->results[0]))
		tell_live(s);
}

void store_heartbeat(struct store *s)
{
	if (s->heartbeat_in_flight || s->epoch == 0 || !pgpool_is_up(s->pool))
		return;
	struct pgargs *a = pgargs_new();
	pgargs_text(a, s->instance);
	pgargs_i64(a, s->epoch);
	pgargs_i32(a, INSTANCE_ALIVE_S);
	pgargs_text(a, presence_word(s->presence));
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &SQL_HEARTBEAT, a);
	if (s->announce)
		pgtx_add(t, &SQL_ANNOUNCE, pgargs_new());
	s->heartbeat_in_flight = store_send(s, t, 5 * US_PER_S, on_heartbeat, s) == 0;
	if (!s->heartbeat_in_flight)
		return;
	s->announcing = s->announce;
	s->announce = false;
}

int64_t store_heartbeat_in(const struct store *s)
{
	int64_t left = s->stale_at_us - sys_mono_us();
	if (s->n_live < 2 || left > STORE_HEARTBEAT_US)
		return STORE_HEARTBEAT_US;
	return left < BEAT_AT_LEAST_US ? BEAT_AT_LEAST_US : left;
}

void store_set_presence(struct store *s, enum store_presence p)
{
	s->presence = p;
	s->announce = true;
	store_heartbeat(s);
}

void store_on_live(struct store *s, store_live_fn *fn, void *arg)
{
	s->on_live = fn;
	s->on_live_arg = arg;
}

/* Somebody came or is leaving; NULL: the LISTEN is new, and something may have been missed. */
static void on_announced(void *arg, const char *payload)
{
	struct store *s = arg;
	(void)payload;
	s->beat_again = s->heartbeat_in_flight; /* it may have looked before */
	store_heartbeat(s);
}

static void on_goodbye(void *arg, const struct pgtx_result *r)
{
	struct store *s = arg;
	(void)r; /* a goodbye that fails is a crash to the others: they wait for the heartbeat to age */
	if (s->goodbye != NULL)
		s->goodbye(s->goodbye_arg);
}

void store_goodbye(struct store *s, loop_fn *fn, void *arg)
{
	s->goodbye = fn;
	s->goodbye_arg = arg;
	struct pgargs *a = pgargs_new();
	pgargs_text(a, s->instance);
	pgargs_i64(a, s->epoch);
	struct pgtx *t = pgtx_new();
	pgtx_add(t, &SQL_GOODBYE, a);
	if (store_send(s, t, 2 * US_PER_S, on_goodbye, s) != 0)
		fn(arg);
}

/* ---- life ---- */

int store_new(struct loop *l, struct resolver *r, const struct conf *c, const uint8_t home[16], struct store **out, struct fault *f)
{
	struct store *s = mem_alloc(sizeof *s);
	*s = (struct store){ .magic = MAGIC, .loop = l, .state = STORE_CONNECTING, .ready_since_us = INT64_MAX };
	memcpy(s->home, home, sizeof s->home);
	s->instance = mem_strdup(c->instance);
	(void)fault_set(&s->why, ST_UNAVAILABLE, "not connected to the database yet");
	loop_task_init(&s->report, report_state, s);
	s->recheck = loop_timer_new(l, check, s);
	const struct pgpool_params p = {
		.url = c->database.url,
		.application_name = "refreshd",
		.size = c->database.pool_size,
		.pooler_transaction = c->database.pooler_transaction,
		.statement_timeout_us = c->database.statement_timeout_us,
	};
	int e = pgpool_new(l, r, &p, &s->pool, f);
	if (e != 0) {
		store_free(s);
		return e;
	}
	pgpool_on_state(s->pool, on_pool_state, s);
	pgpool_listen(s->pool, "refreshd_instance", on_announced, s);
	*out = s;
	return 0;
}

void store_free(struct store *s)
{
	if (s == NULL)
		return;
	MAGIC_CHECK(s, MAGIC);
	pgpool_free(s->pool);
	loop_undefer(s->loop, &s->report);
	loop_timer_free(s->recheck);
	forget_live(s);
	mem_free(s->instance);
	s->magic = 0;
	mem_free(s);
}

void store_on_state(struct store *s, store_state_fn *fn, void *arg)
{
	s->on_state = fn;
	s->on_state_arg = arg;
}

enum store_state store_state(const struct store *s)
{
	return s->state;
}

/* The pool goes on trying, and the latest reason says most: first the connection was lost, now the server is not there. */
const char *store_why(const struct store *s)
{
	const char *latest = s->state == STORE_CONNECTING ? pgpool_last_fault(s->pool)->text : "";
	return latest[0] != '\0' ? latest : s->why.text;
}

bool store_writable(const struct store *s)
{
	return s->state == STORE_READY && sys_mono_us() - s->last_write_us < WRITABLE_US;
}

int64_t store_epoch(const struct store *s)
{
	return s->epoch;
}

bool store_has_former(const struct store *s)
{
	return s->has_former;
}

int64_t store_ready_since(const struct store *s)
{
	return s->ready_since_us;
}

void store_set_pool_waits(struct store *s, void (*fn)(void *arg, int64_t us), void *arg)
{
	s->on_wait = fn;
	s->on_wait_arg = arg;
}

int64_t store_next_attempt(struct store *s)
{
	return s->epoch << 40 | (int64_t)(++s->attempts & ((UINT64_C(1) << 40) - 1));
}

const char *store_instance(const struct store *s)
{
	return s->instance;
}

struct pgpool *store_pool(struct store *s)
{
	return s->pool;
}

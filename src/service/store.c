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
#include "service/store_priv.h"

/* A write confirmed this long ago still counts: three heartbeats. */
#define WRITABLE_US (3 * STORE_HEARTBEAT_US)
#define RECHECK_US (2 * US_PER_S)

static const struct pgstmt SQL_CHECK = {
	"store_check",
	"SELECT v.version, coalesce(v.compatible_from, v.version), (SELECT string_agg(c.relname, ', ' ORDER BY c.relname) FROM pg_class c"
	" WHERE c.relnamespace = to_regnamespace('refreshd') AND c.relkind IN ('r', 'p')"
	" AND c.relname IN ('connection', 'credential', 'schedule', 'event', 'delivery', 'webhook_endpoint', 'orphan_token', 'instance')"
	" AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE')))"
	" FROM refreshd.schema_version v ORDER BY v.version DESC LIMIT 1",
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

static void report_state(void *arg)
{
	struct store *s = arg;
	MAGIC_CHECK(s, STORE_MAGIC);
	if (s->on_state != NULL)
		s->on_state(s->on_state_arg, s->state, &s->why);
}

void store_change_state(struct store *s, enum store_state to, const char *why)
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
void store_look_again(struct store *s)
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
		store_change_state(s, STORE_FULL, "the database server has no space or memory left");
	} else if (r->class == PG_CLASS_READ_ONLY) {
		store_change_state(s, STORE_READ_ONLY, "the database refuses writes: it is read-only");
	} else if (blames_schema(r->sqlstate)) {
		s->schema_fits = false;
		store_change_state(s, STORE_CHECKING, "the schema does not fit any more, or the rights on it");
	}
	if (s->state != STORE_READY)
		store_look_again(s);
}

static void on_sent(void *arg, const struct pgtx_result *r)
{
	struct sending *x = arg;
	struct store *s = x->store;
	pgtx_fn *fn = x->fn;
	void *fn_arg = x->arg;
	MAGIC_CHECK(s, STORE_MAGIC);
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

int store_send_one(struct store *s, const struct pgstmt *stmt, struct pgargs *a, pgtx_fn *fn)
{
	struct pgtx *t = pgtx_new();
	pgtx_add(t, stmt, a);
	return store_send(s, t, 5 * US_PER_S, fn, s);
}

/* ---- becoming ready ---- */

struct migrations_state store_schema_of(const struct pgresult *r, int first_column)
{
	return (struct migrations_state){ .version = (int)pgresult_int(r, 0, first_column),
		.compatible_from = (int)pgresult_int(r, 0, first_column + 1) };
}

/* False: wrong_schema, and why. */
bool store_judge_version(struct store *s, const struct migrations_state *found)
{
	struct fault f = { 0 };
	s->schema_fits = migrations_fit(found);
	if (s->schema_fits)
		return true;
	(void)migrations_refuse(found, "refreshd", &f);
	store_change_state(s, STORE_WRONG_SCHEMA, f.text);
	store_look_again(s);
	return false;
}

static void judge_schema(struct store *s, const struct migrations_state *found, const char *closed)
{
	struct fault f = { 0 };
	if (!store_judge_version(s, found))
		return;
	if (closed == NULL) {
		store_enrol(s);
		return;
	}
	s->schema_fits = false;
	(void)fault_set(&f, ST_DENIED, "the database user may not read and write in the schema refreshd: %s", closed);
	store_change_state(s, STORE_WRONG_SCHEMA, f.text);
	store_look_again(s);
}

static void on_checked(void *arg, const struct pgtx_result *r)
{
	struct store *s = arg;
	MAGIC_CHECK(s, STORE_MAGIC);
	if (s->state == STORE_CONNECTING)
		return;
	if (r->class == PG_CLASS_OK) {
		const struct pgresult *x = &r->results[0];
		const char *closed = NULL;
		struct migrations_state found = { 0 };
		if (pgresult_rows(x) == 1) {
			found = store_schema_of(x, 0);
			closed = pgresult_null(x, 0, 2) ? NULL : pgresult_text(x, 0, 2, NULL);
		}
		judge_schema(s, &found, closed);
		return;
	}
	if (r->class == PG_CLASS_BUG) { /* no such table or schema, or no right to read it */
		if (strcmp(r->sqlstate, "42501") == 0)
			store_change_state(s, STORE_WRONG_SCHEMA, "the database user has no rights on the schema refreshd");
		else
			judge_schema(s, &(struct migrations_state){ 0 }, NULL);
	}
	store_look_again(s);
}

static void check(void *arg)
{
	struct store *s = arg;
	MAGIC_CHECK(s, STORE_MAGIC);
	if (!pgpool_is_up(s->pool) || s->state == STORE_READY)
		return;
	if (s->state == STORE_CONNECTING)
		store_change_state(s, STORE_CHECKING, "checking the schema");
	if (store_send_one(s, &SQL_CHECK, pgargs_new(), on_checked) != 0)
		store_look_again(s);
}

static void on_pool_state(void *arg, bool up, const struct fault *why)
{
	struct store *s = arg;
	MAGIC_CHECK(s, STORE_MAGIC);
	if (up) {
		check(s);
		return;
	}
	loop_timer_stop(s->recheck);
	s->schema_fits = false;
	store_change_state(s, STORE_CONNECTING, why != NULL && why->text[0] != '\0' ? why->text : "no connection to the database");
}

/* ---- life ---- */

int store_new(struct loop *l, struct resolver *r, const struct conf *c, const uint8_t home[16], struct store **out, struct fault *f)
{
	struct store *s = mem_alloc(sizeof *s);
	*s = (struct store){ .magic = STORE_MAGIC, .loop = l, .state = STORE_CONNECTING, .ready_since_us = INT64_MAX };
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
	pgpool_listen(s->pool, "refreshd_instance", store_on_announced, s);
	*out = s;
	return 0;
}

void store_free(struct store *s)
{
	if (s == NULL)
		return;
	MAGIC_CHECK(s, STORE_MAGIC);
	pgpool_free(s->pool);
	loop_undefer(s->loop, &s->report);
	loop_timer_free(s->recheck);
	store_forget_live(s);
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

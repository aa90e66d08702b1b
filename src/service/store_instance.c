/*
 * store_instance - our row among the instances: enrolling, heartbeats, who else is running, and the goodbye.
 *
 * All of it goes by the clock of the database. What the others see of us is written with each heartbeat; what changes at a
 * certain moment (we start, we drain) is announced, so that they look at once. Must not: decide who does what (that is
 * model/slots, by the same names everywhere).
 */
#include "service/store.h"

#include <string.h>

#include "base/mem.h"
#include "base/sys.h"
#include "service/store_priv.h"

#define INSTANCE_ALIVE_S 20
/* Not even one who was just found dead makes us ask more often than this. */
#define BEAT_AT_LEAST_US (US_PER_S / 4)

/*
 * Everybody's times are in one table, so everybody goes by one clock, the database's. A machine whose clock jumped would else
 * refresh everything at once, or too late, or write times that mislead the others.
 */
#define CLOCK "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
/* An answer that took longer says too little about when the clock was read. */
#define CLOCK_ANSWER_US US_PER_S

/* A heartbeat younger than 20 s from another home means that someone else runs under our name. One who is refused asks every two
 * seconds, for months if need be, and an attempt's id has room for eight million epochs: so he is given none. */
static const struct pgstmt SQL_ENROL = {
	"store_enrol",
	"INSERT INTO refreshd.instance AS i (name, home, epoch, version, started_at, heartbeat_at)"
	" SELECT $1, $2, nextval('refreshd.epoch'), $3, now(), now() WHERE NOT EXISTS (SELECT 1 FROM refreshd.instance o WHERE o.name = $1"
	" AND o.home <> $2 AND NOT o.gone AND o.heartbeat_at >= now() - $4::int * interval '1 second')"
	" ON CONFLICT (name) DO UPDATE SET home = excluded.home, epoch = excluded.epoch, version = excluded.version,"
	" former_epochs = CASE WHEN i.home = excluded.home THEN i.former_epochs || i.epoch ELSE '{}' END,"
	" presence = excluded.presence, started_at = now(), heartbeat_at = now(), gone = false"
	" WHERE i.home = excluded.home OR i.gone OR i.heartbeat_at < now() - $4::int * interval '1 second'"
	" RETURNING epoch, former_epochs <> '{}', " CLOCK,
};
/* Ourselves and whoever is running, each with the age of its heartbeat, by the clock of the database alone; and the schema, which
 * may be migrated under us while every connection stays up. */
static const struct pgstmt SQL_HEARTBEAT = {
	"store_heartbeat",
	"WITH h AS (UPDATE refreshd.instance SET heartbeat_at = now(), presence = $4 WHERE name = $1 AND epoch = $2 RETURNING name)"
	" SELECT i.name, i.name = h.name, CASE WHEN i.name = h.name THEN 0 ELSE"
	" greatest((extract(epoch FROM now() - i.heartbeat_at) * 1000000)::bigint, 0) END,"
	" coalesce(v.version, 0), coalesce(v.compatible_from, v.version, 0), " CLOCK " FROM h CROSS JOIN refreshd.instance i"
	" LEFT JOIN (SELECT version, compatible_from FROM refreshd.schema_version ORDER BY version DESC LIMIT 1) v ON true"
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

static void note_clock(const struct store *s, const struct pgresult *r, int column)
{
	int64_t now = sys_mono_us(), took = now - s->asked_us;
	if (took <= CLOCK_ANSWER_US)
		sys_wall_trust(pgresult_int(r, 0, column) + took / 2, now);
}

/* ---- enrolling ---- */

static void on_enrolled(void *arg, const struct pgtx_result *r)
{
	struct store *s = arg;
	MAGIC_CHECK(s, STORE_MAGIC);
	s->enrolling = false;
	if (s->state == STORE_CONNECTING)
		return; /* the pool went down meanwhile: it starts again when it is up */
	if (r->class == PG_CLASS_OK && pgresult_rows(&r->results[0]) == 1) {
		s->epoch = pgresult_int(&r->results[0], 0, 0);
		s->has_former = pgresult_bool(&r->results[0], 0, 1);
		note_clock(s, &r->results[0], 2);
		s->last_write_us = sys_mono_us();
		store_change_state(s, STORE_READY, "");
		if (s->presence != STORE_STARTING) /* enrolled anew, and the others do not know yet what we are */
			store_set_presence(s, s->presence);
		return;
	}
	if (r->class == PG_CLASS_OK)
		store_change_state(s, STORE_FENCED, "another refreshd runs under this instance name: give each one its own `instance`");
	else if (r->class == PG_CLASS_READ_ONLY)
		store_change_state(s, STORE_READ_ONLY, "the database refuses writes: it is read-only");
	else if (r->class == PG_CLASS_RESOURCES)
		store_change_state(s, STORE_FULL, "the database server has no space or memory left");
	store_look_again(s);
}

void store_enrol(struct store *s)
{
	/* An epoch that is ours stays ours over reconnections: attempts in flight carry it. */
	if (s->epoch != 0) {
		store_heartbeat(s);
		return;
	}
	/* A second one behind it would take the epoch away from the first, under which work may have begun by then: what it had claimed
	 * would belong to nobody, and what it was to recover would not be. */
	if (s->enrolling)
		return;
	struct pgargs *a = pgargs_new();
	pgargs_text(a, s->instance);
	pgargs_uuid(a, s->home);
	pgargs_text(a, PACKAGE_VERSION);
	pgargs_i32(a, INSTANCE_ALIVE_S);
	s->asked_us = sys_mono_us();
	s->enrolling = store_send_one(s, &SQL_ENROL, a, on_enrolled) == 0;
	if (!s->enrolling)
		store_look_again(s);
}

/* ---- heartbeat ---- */

/* On a schema that is not ours we only say that we are alive: what we cannot do the others must. */
static enum store_presence presence(const struct store *s)
{
	return s->presence == STORE_RUNNING && s->state == STORE_WRONG_SCHEMA ? STORE_PAUSED : s->presence;
}

void store_forget_live(struct store *s)
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
		if (pgresult_bool(r, i, 1) && presence(s) != STORE_RUNNING)
			continue;
		now[n++] = mem_strdup(pgresult_text(r, i, 0, NULL));
		if (pgresult_int(r, i, 2) > oldest_us)
			oldest_us = pgresult_int(r, i, 2);
	}
	s->stale_at_us = sys_mono_us() + INSTANCE_ALIVE_S * US_PER_S - oldest_us;
	bool same = s->live_known && n == s->n_live;
	for (size_t i = 0; i < n && same; i++)
		same = strcmp(now[i], s->live[i]) == 0;
	store_forget_live(s);
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
	MAGIC_CHECK(s, STORE_MAGIC);
	s->heartbeat_in_flight = false;
	s->announce = s->announce || (s->announcing && r->class != PG_CLASS_OK);
	s->announcing = false;
	if (r->class != PG_CLASS_OK || s->state == STORE_CONNECTING) {
		if (s->state != STORE_CONNECTING && s->state != STORE_READY)
			store_look_again(s);
		return;
	}
	if (pgresult_rows(&r->results[0]) == 0) {
		/* Someone took our name, or the row was removed: our leases may be taken over, so stop and enrol anew. */
		s->epoch = 0;
		store_change_state(s, STORE_FENCED, "the instance row was taken over: another refreshd runs under this instance name");
		store_look_again(s);
		return;
	}
	s->last_write_us = sys_mono_us();
	note_clock(s, &r->results[0], 5);
	const struct migrations_state found = store_schema_of(&r->results[0], 3);
	if (s->schema_fits && !store_judge_version(s, &found))
		return;
	if (s->schema_fits) /* the row of the instance is there in any schema */
		store_change_state(s, STORE_READY, "");
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
	pgargs_text(a, presence_word(presence(s)));
	struct pgtx *t = pgtx_new();
	s->asked_us = sys_mono_us();
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
void store_on_announced(void *arg, const char *payload)
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

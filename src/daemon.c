/*
 * daemon - the order of things: config, journal, database; then replay, recover, refresh; and back again.
 *
 * Start: the journal is replayed before anything is claimed, and in-doubt rows of our former self come right after (a
 * provider's grace can be ten seconds). Stop: no new claims, what was sent is awaited and committed, webhook attempts in
 * flight end, the instance says goodbye. Must not: hold any rule about tokens; those live in the services.
 */
#include "daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "base/str.h"
#include "base/sys.h"
#include "daemon_priv.h"
#include "io/notify.h"

#define EXIT_FAILED 1
/* After SIGTERM: a request's whole timeout, and this much for the database. What is not committed then is in the journal. */
#define RECOVER_REFUSALS_MAX 3
#define DRAIN_EXTRA_US (30 * US_PER_S)
/* Nothing is looked for that was started longer before it was due. */
#define EARLIEST_US (3600 * US_PER_S)

static const char *phase_word(enum phase p)
{
	switch (p) {
#define X(id, word)  \
	case id:     \
		return word;
		PHASE_LIST(X)
#undef X
	}
	return "unknown";
}

static void set_phase(struct daemon *d, enum phase p)
{
	d->phase = p;
	log_info("daemon.phase", K_WORD("phase", phase_word(p)));
	notify_status(phase_word(p));
}

/* ---------------------------------------------------------------- start: replay, recover, run */

/* What the others should know of us. */
static void tell_presence(struct daemon *d)
{
	enum store_presence p = STORE_STARTING;
	if (d->phase == PHASE_DRAINING)
		p = STORE_DRAINING;
	else if (d->phase == PHASE_RUNNING)
		p = journal_writable(d->journal) ? STORE_RUNNING : STORE_PAUSED;
	store_set_presence(d->store, p);
}

/* The slots come with the answer of the heartbeat that makes us one of them. */
static void run_now(struct daemon *d)
{
	set_phase(d, PHASE_RUNNING);
	d->parts.scheduler = d->scheduler;
	scheduler_start(d->scheduler);
	tell_presence(d);
	webhook_start(d->webhook);
	if (d->api != NULL)
		api_start(d->api);
	health_poll(d->health);
	notify_ready();
	log_notice("daemon.ready", K_TEXT("instance", d->conf->instance), K_INT("epoch", store_epoch(d->store)));
}

static void recover(struct daemon *d);

static void tell_in_doubt(int64_t rows)
{
	if (rows > 0)
		log_warning("daemon.in_doubt", K_COUNT(rows), K_TEXT("hint", "claimed by an earlier run that did not settle them"));
}

static void on_recovered_early(void *arg, int code, int64_t rows)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	/* The database went away: once more when it is back. One that takes too long is not asked again and again. */
	d->recover_early = code != 0 && code != ST_DENIED && store_state(d->store) != STORE_READY;
	tell_in_doubt(code == 0 ? rows : 0);
}

/* Only a provider's rate makes us start before the time. */
static int64_t started_early_us(const struct conf *c)
{
	for (size_t i = 0; i < c->n_providers; i++) {
		if (c->providers[i]->rate_per_s > 0)
			return EARLIEST_US;
	}
	return 0;
}

static void recover_early(struct daemon *d)
{
	d->recover_early = store_recover_early(d->store, started_early_us(d->conf), on_recovered_early, d) != 0;
}

static void on_recovered(void *arg, int code, int64_t rows)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	if (d->phase != PHASE_RECOVERING)
		return;
	/* A row that takes no write at all must not keep all the others: the leases end by themselves. What blames the schema may be right, so
	 * that is looked at in between. */
	d->recover_refusals += code == ST_DENIED;
	bool refused = code == ST_DENIED && (store_state(d->store) == STORE_READY || d->recover_refusals >= RECOVER_REFUSALS_MAX);
	if (code != 0 && !refused) {
		set_phase(d, PHASE_REPLAYING); /* the next READY or tick comes back here */
		return;
	}
	if (refused)
		log_error("daemon.recover_refused", K_TEXT("hint", "the leases of the earlier run are left to end; look at the database's log"));
	tell_in_doubt(rows);
	run_now(d);
	recover_early(d);
}

static void recover(struct daemon *d)
{
	set_phase(d, PHASE_RECOVERING);
	if (!store_has_former(d->store))
		run_now(d);
	else if (store_recover(d->store, on_recovered, d) != 0)
		set_phase(d, PHASE_REPLAYING);
}

static void on_replayed(void *arg, uint64_t n)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	if (n > 0)
		log_notice("daemon.replayed", K_COUNT(n));
	if (d->phase == PHASE_REPLAYING)
		recover(d);
}

static void replay(struct daemon *d)
{
	struct fault f = { 0 };
	set_phase(d, PHASE_REPLAYING);
	if (refresh_replay(d->refresh, on_replayed, d, &f) == 0)
		return;
	log_error("daemon.replay_failed", K_FAULT(&f));
	loop_stop(d->loop);
}

/* ---------------------------------------------------------------- what the parts tell */

static void on_store_state(void *arg, enum store_state s, const struct fault *why)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	if (s != STORE_READY) {
		enum log_level level = s == STORE_CHECKING ? LOG_LEVEL_INFO : LOG_LEVEL_WARNING;
		log_at(level, "database.state", K_WORD("state", store_state_word(s)), K_FAULT(why));
		notify_status(why->text);
		return;
	}
	log_notice("database.state", K_WORD("state", "ready"), K_INT("epoch", store_epoch(d->store)));
	notify_status(phase_word(d->phase));
	if (d->phase == PHASE_WAITING)
		replay(d);
	else if (d->phase == PHASE_REPLAYING && store_epoch(d->store) != 0 && refresh_replayed(d->refresh))
		recover(d);
	else if (d->phase == PHASE_RUNNING)
		scheduler_replan(d->scheduler);
	if (d->phase == PHASE_RUNNING && d->recover_early)
		recover_early(d);
}

static void on_journal_state(void *arg, bool writable, const struct fault *why)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	if (writable) {
		log_notice("journal.writable");
		if (d->scheduler != NULL)
			scheduler_kick(d->scheduler);
	} else {
		log_error("journal.not_writable", K_FAULT(why), K_TEXT("hint", "no refresh is sent until it can be written"));
	}
	if (d->phase == PHASE_RUNNING) /* others can do what we cannot */
		tell_presence(d);
}

static void on_journal_sync(void *arg, int64_t us)
{
	(void)arg;
	series_observe(metrics_get(M_JOURNAL_SYNC, NULL, NULL), (double)us / (double)US_PER_S);
}

static void on_stall(int64_t us, void *arg)
{
	(void)arg;
	series_observe(metrics_get(M_LOOP_STALL, NULL, NULL), (double)us / (double)US_PER_S);
}

static void on_pool_wait(void *arg, int64_t us)
{
	(void)arg;
	series_observe(metrics_get(M_DB_WAIT, NULL, NULL), (double)us / (double)US_PER_S);
}

static void on_done(void *arg, const struct refresh_done *done)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	scheduler_on_done(d->scheduler, done);
}

static void on_outbox(void *arg)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	if (d->phase == PHASE_RUNNING)
		webhook_kick(d->webhook);
}

static void on_gate(void *arg, const char *provider)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	scheduler_on_gate(d->scheduler, provider);
}

static void on_notice(void *arg, const uint8_t *id)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	if (id == NULL)
		scheduler_poll(d->scheduler);
	else if (scheduler_owns(d->scheduler, id)) /* everybody hears it */
		scheduler_look_at(d->scheduler, id);
}

/* The division of the work: ours are these slots, and this part of what providers allow. */
static void on_live(void *arg, const struct store_live *l)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	struct slots own;
	size_t rank = 0;
	slots_none(&own);
	if (l->self < l->n)
		slots_divide(l->names, l->n, l->self, &own, &rank);
	/* Who is none of them may still serve an explicit act: beside them all. */
	d->share = (struct budget_share){ .rank = (unsigned)rank, .of = (unsigned)(l->self < l->n ? l->n : l->n + 1) };
	log_notice("daemon.instances", K_COUNT(l->n), K_UINT("slots", own.n));
	metrics_set(M_SLOTS, NULL, NULL, own.n);
	metrics_set(M_INSTANCES, NULL, NULL, (double)l->n);
	budget_set(d->budget, d->conf, d->share);
	scheduler_set_slots(d->scheduler, &own);
	scheduler_kick(d->scheduler);
}

static void on_clock_jump(void *arg)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	log_notice("daemon.clock_jump");
	scheduler_replan(d->scheduler);
}

/* What a timer of the kernel cannot tell: that the database's clock moved, or that ours differs from it. */
static void check_clock(struct daemon *d)
{
	int64_t offset = sys_wall_us() - sys_mono_us(), off = sys_wall_off();
	int64_t moved = d->wall_offset_us != 0 ? offset - d->wall_offset_us : 0;
	d->wall_offset_us = offset;
	if (moved > US_PER_S || moved < -US_PER_S)
		on_clock_jump(d);
	if (off != 0 && !d->clock_off)
		log_error("daemon.clock_off", K_MS(off / US_PER_MS));
	else if (off == 0 && d->clock_off)
		log_notice("daemon.clock_right");
	d->clock_off = off != 0;
	metrics_set(M_CLOCK_OFF, NULL, NULL, (double)off / (double)US_PER_S);
}

/* ---------------------------------------------------------------- ticks */

static void on_tick(void *arg)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	loop_timer_about(d->tick, d->conf->refresh.poll_interval_us);
	if (d->phase == PHASE_RUNNING) {
		webhook_poll(d->webhook);
		health_poll(d->health);
	}
}

/* Its pace is not the operator's: others judge us by it. */
static void on_beat(void *arg)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	int64_t poll = d->conf->refresh.poll_interval_us, beat = store_heartbeat_in(d->store);
	loop_timer_about(d->beat, poll < beat ? poll : beat);
	check_clock(d);
	store_heartbeat(d->store);
	if (d->phase == PHASE_REPLAYING && store_state(d->store) == STORE_READY && refresh_replayed(d->refresh))
		recover(d);
	if (d->phase != PHASE_RUNNING)
		notify_extend_timeout(4 * STORE_HEARTBEAT_US);
}

static void on_watchdog(void *arg)
{
	struct daemon *d = arg;
	notify_watchdog();
	loop_timer_about(d->watchdog, notify_watchdog_interval() / 2);
}

/* ---------------------------------------------------------------- stop */

static void on_goodbye(void *arg)
{
	struct daemon *d = arg;
	loop_stop(d->loop);
}

static void on_webhooks_drained(void *arg)
{
	struct daemon *d = arg;
	store_goodbye(d->store, on_goodbye, d);
}

static void on_calls_ended(void *arg)
{
	struct daemon *d = arg;
	webhook_drain(d->webhook, on_webhooks_drained, d);
}

static void on_refreshes_drained(void *arg)
{
	struct daemon *d = arg;
	log_info("daemon.refreshes_drained");
	if (d->api != NULL)
		api_finish(d->api, on_calls_ended, d);
	else
		on_calls_ended(d);
}

static void on_drain_deadline(void *arg)
{
	struct daemon *d = arg;
	log_warning("daemon.drain_deadline", K_UINT("in_flight", refresh_in_flight(d->refresh)), K_UINT("unsettled", refresh_unsettled(d->refresh)),
		K_TEXT("hint", "answers that are not committed are in the journal and are replayed at the next start"));
	loop_stop(d->loop);
}

static void on_terminate(void *arg)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
	if (d->phase == PHASE_DRAINING) {
		log_notice("daemon.still_draining", K_UINT("in_flight", refresh_in_flight(d->refresh)));
		return;
	}
	int64_t limit = d->conf->refresh.timeout_us + DRAIN_EXTRA_US;
	set_phase(d, PHASE_DRAINING);
	notify_stopping();
	notify_extend_timeout(limit);
	tell_presence(d); /* the others take over at once; what we have claimed stays ours */
	health_set_draining(d->health);
	if (d->api != NULL)
		api_drain(d->api);
	scheduler_stop(d->scheduler);
	d->drain_deadline = loop_timer_new(d->loop, on_drain_deadline, d);
	loop_timer_after(d->drain_deadline, limit);
	refresh_drain(d->refresh, on_refreshes_drained, d);
}

/* ---------------------------------------------------------------- build */

static int open_journal(struct daemon *d, struct fault *f)
{
	const struct conf *c = d->conf;
	char *dir = mem_printf("%s/journal", c->state_dir);
	const struct journal_params p = { .dir = dir, .max_bytes = c->refresh.journal_max_bytes, .sync = c->refresh.journal_sync };
	int e = mkdir(c->state_dir, 0700) == 0 || errno == EEXIST ? 0 : fault_set(f, ST_IO, "state_dir %s: %s", c->state_dir, strerror(errno));
	if (e == 0)
		e = journal_open(d->loop, &p, &d->journal, f);
	if (e == 0)
		e = daemon_home(dir, d->home, f);
	mem_free(dir);
	if (e != 0)
		return e;
	journal_on_state(d->journal, on_journal_state, d);
	journal_on_sync(d->journal, on_journal_sync, d);
	return 0;
}

static int open_http(struct daemon *d, struct httpc **out, unsigned connections, const char *ca_file, struct fault *f)
{
	const struct httpc_params p = {
		.max_connections = connections,
		.ca_file = ca_file,
		.user_agent = "refreshd/" PACKAGE_VERSION,
		.idle_timeout_us = 30 * US_PER_S,
		.max_lifetime_us = 600 * US_PER_S,
	};
	return httpc_new(d->loop, d->resolver, &p, out, f);
}

static int open_io(struct daemon *d, struct fault *f)
{
	const struct conf *c = d->conf;
	const struct resolver_params rp = { .resolv_conf = c->dns.resolv_conf, .timeout_us = c->dns.timeout_us };
	int e = loop_new(&d->loop, f);
	if (e == 0)
		e = resolver_new(d->loop, &rp, &d->resolver, f);
	if (e == 0)
		e = open_journal(d, f);
	if (e == 0)
		e = open_http(d, &d->token_http, c->refresh.max_in_flight, NULL, f);
	if (e == 0)
		e = open_http(d, &d->webhook_http, c->delivery.max_in_flight, c->delivery.ca_file, f);
	if (e == 0)
		e = store_new(d->loop, d->resolver, c, d->home, &d->store, f);
	return e;
}

/* A socket that nobody serves would let its clients wait for ever. */
static int check_handed_over(const struct conf *c, struct fault *f)
{
	static const char *const known[] = { "api", NULL };
	char other[64];
	if (notify_listen_other(known, other) != 0)
		return fault_set(f, ST_INVALID, "the sockets that the service manager hands over cannot be told apart (LISTEN_FDS, LISTEN_FDNAMES)");
	if (other[0] != '\0')
		return fault_set(f, ST_INVALID, "the service manager hands over a socket named '%s', and only 'api' is known (FileDescriptorName=)", other);
	if (!c->api.on && notify_listen_fd("api") >= 0)
		return fault_set(f, ST_INVALID, "the service manager hands over a socket named 'api', and there is no api.listen");
	return 0;
}

static int open_services(struct daemon *d, struct fault *f)
{
	const struct refresh_events ev = { .done = on_done, .outbox = on_outbox, .gate = on_gate, .arg = d };
	d->budget = budget_new();
	int e = refresh_new(d->loop, d->store, d->token_http, d->journal, &ev, &d->refresh, f);
	if (e == 0)
		e = scheduler_new(d->loop, d->store, d->budget, &d->scheduler, f);
	if (e == 0)
		e = webhook_new(d->loop, d->store, d->webhook_http, &d->webhook, f);
	if (e != 0)
		return e;
	struct slots none;
	slots_none(&none);
	scheduler_set_slots(d->scheduler, &none); /* until we are one of those that run */
	scheduler_set_refresh(d->scheduler, d->refresh);
	d->parts = (struct health_parts){ .store = d->store, .journal = d->journal, .refresh = d->refresh, .webhook = d->webhook };
	d->health = health_new(d->loop, &d->parts);
	daemon_use_conf(d);
	e = health_listen(d->health, d->conf, f);
	if (e == 0)
		e = check_handed_over(d->conf, f);
	if (e != 0 || !d->conf->api.on)
		return e;
	const struct api_parts ap = { .store = d->store, .scheduler = d->scheduler, .webhook = d->webhook, .outbox = on_outbox, .arg = d };
	return api_new(d->loop, &ap, d->conf, &d->api, f);
}

static int wire(struct daemon *d, struct fault *f)
{
	int e = loop_signal(d->loop, SIGTERM, on_terminate, d, f);
	if (e == 0)
		e = loop_signal(d->loop, SIGINT, on_terminate, d, f);
	if (e == 0)
		e = loop_signal(d->loop, SIGHUP, daemon_on_reload, d, f);
	if (e == 0)
		e = loop_on_clock_jump(d->loop, on_clock_jump, d, f);
	if (e != 0)
		return e;
	loop_on_stall(d->loop, on_stall, d);
	store_on_state(d->store, on_store_state, d);
	store_on_live(d->store, on_live, d);
	store_set_pool_waits(d->store, on_pool_wait, d);
	d->notice = (struct store_notice){ .fn = on_notice, .arg = d };
	store_on_notice(d->store, &d->notice);
	d->tick = loop_timer_new(d->loop, on_tick, d);
	loop_timer_about(d->tick, d->conf->refresh.poll_interval_us);
	d->beat = loop_timer_new(d->loop, on_beat, d);
	loop_timer_after(d->beat, 0);
	if (notify_watchdog_interval() > 0) {
		d->watchdog = loop_timer_new(d->loop, on_watchdog, d);
		loop_timer_about(d->watchdog, notify_watchdog_interval() / 2);
	}
	return 0;
}

/* The store goes first: what it drops tells its owners, who must still be there. */
static void tear_down(struct daemon *d)
{
	if (d->health != NULL)
		health_set_draining(d->health);
	if (d->scheduler != NULL)
		scheduler_stop(d->scheduler);
	store_free(d->store);
	d->parts.store = NULL;
	api_free(d->api);
	webhook_free(d->webhook);
	health_free(d->health);
	refresh_free(d->refresh);
	scheduler_free(d->scheduler);
	budget_free(d->budget);
	httpc_free(d->webhook_http);
	httpc_free(d->token_http);
	journal_close(d->journal);
	resolver_free(d->resolver);
	loop_timer_free(d->tick);
	loop_timer_free(d->beat);
	loop_timer_free(d->watchdog);
	loop_timer_free(d->drain_deadline);
	loop_free(d->loop);
	conf_unref(d->conf);
	metrics_reset();
	d->magic = 0;
}

/* No core file and no ptrace by equals: memory holds tokens. As many descriptors as we may have. */
static void harden(void)
{
	struct rlimit none = { 0, 0 }, files;
	if (prctl(PR_SET_DUMPABLE, 0) != 0 || setrlimit(RLIMIT_CORE, &none) != 0)
		log_warning("daemon.not_hardened", K_TEXT("error", strerror(errno)));
	if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
		files.rlim_cur = files.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &files) != 0)
			log_warning("daemon.files_limit", K_TEXT("error", strerror(errno)));
	}
}

int daemon_run(struct conf *conf)
{
	struct daemon d = { .magic = DAEMON_MAGIC, .conf = conf_ref(conf), .phase = PHASE_WAITING, .share = { .of = 1 } };
	struct fault f = { 0 };
	log_setup(conf->log.format, conf->log.level);
	harden();
	int e = open_io(&d, &f);
	if (e == 0)
		e = open_services(&d, &f);
	if (e == 0)
		e = wire(&d, &f);
	if (e == 0) {
		log_notice("daemon.start", K_TEXT("version", PACKAGE_VERSION), K_TEXT("config", conf->path), K_UINT("metrics_port", health_port(d.health)),
			K_UINT("api_port", d.api != NULL ? api_port(d.api) : 0));
		notify_status(phase_word(d.phase));
		e = loop_run(d.loop);
		if (e != 0)
			(void)fault_set(&f, e, "the event loop failed: %s", status_text(e));
	}
	if (e != 0)
		log_error("daemon.failed", K_FAULT(&f));
	bool asked = d.phase == PHASE_DRAINING;
	tear_down(&d);
	if (e == 0)
		log_notice("daemon.stopped");
	return e == 0 && asked ? 0 : EXIT_FAILED;
}

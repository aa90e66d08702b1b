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
#include "io/httpc.h"
#include "io/journal.h"
#include "io/loop.h"
#include "io/notify.h"
#include "io/resolver.h"
#include "api/api.h"
#include "service/budget.h"
#include "service/health.h"
#include "service/refresh.h"
#include "service/scheduler.h"
#include "service/store.h"
#include "service/webhook.h"

#define MAGIC UINT32_C(0x6461656d)
#define EXIT_FAILED 1
/* After SIGTERM: a request's whole timeout, and this much for the database. What is not committed then is in the journal. */
#define DRAIN_EXTRA_US (30 * US_PER_S)

#define PHASE_LIST(X)                                                            \
	X(PHASE_WAITING, "waiting for the database")                             \
	X(PHASE_REPLAYING, "replaying the journal")                              \
	X(PHASE_RECOVERING, "taking back what an earlier run left behind")       \
	X(PHASE_RUNNING, "running")                                              \
	X(PHASE_DRAINING, "draining")
enum phase {
#define X(id, word) id,
	PHASE_LIST(X)
#undef X
};

struct daemon {
	uint32_t magic;
	struct loop *loop;
	struct conf *conf;
	struct resolver *resolver;
	struct httpc *token_http, *webhook_http;
	struct journal *journal;
	struct store *store;
	struct budget *budget;
	struct refresh *refresh;
	struct scheduler *scheduler;
	struct webhook *webhook;
	struct api *api; /* NULL: none is configured */
	struct health *health;
	struct health_parts parts;
	struct store_notice notice;
	struct loop_timer *tick, *beat, *watchdog, *drain_deadline;
	enum phase phase;
	unsigned live;
	uint8_t home[16];
};

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

static void run_now(struct daemon *d)
{
	set_phase(d, PHASE_RUNNING);
	d->parts.scheduler = d->scheduler;
	scheduler_start(d->scheduler);
	webhook_start(d->webhook);
	if (d->api != NULL)
		api_start(d->api);
	health_poll(d->health);
	notify_ready();
	log_notice("daemon.ready", K_TEXT("instance", d->conf->instance), K_INT("epoch", store_epoch(d->store)));
}

static void recover(struct daemon *d);

static void on_recovered(void *arg, int code, int64_t rows)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, MAGIC);
	if (d->phase != PHASE_RECOVERING)
		return;
	if (code != 0) {
		set_phase(d, PHASE_REPLAYING); /* the next READY or tick comes back here */
		return;
	}
	if (rows > 0)
		log_warning("daemon.in_doubt", K_COUNT(rows), K_TEXT("hint", "claimed by an earlier run that did not settle them"));
	run_now(d);
}

static void recover(struct daemon *d)
{
	set_phase(d, PHASE_RECOVERING);
	if (store_previous_epoch(d->store) == 0)
		run_now(d);
	else if (store_recover(d->store, on_recovered, d) != 0)
		set_phase(d, PHASE_REPLAYING);
}

static void on_replayed(void *arg, uint64_t n)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, MAGIC);
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
	MAGIC_CHECK(d, MAGIC);
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
}

static void on_journal_state(void *arg, bool writable, const struct fault *why)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, MAGIC);
	if (writable) {
		log_notice("journal.writable");
		if (d->scheduler != NULL)
			scheduler_kick(d->scheduler);
	} else {
		log_error("journal.not_writable", K_FAULT(why), K_TEXT("hint", "no refresh is sent until it can be written"));
	}
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
	MAGIC_CHECK(d, MAGIC);
	scheduler_on_done(d->scheduler, done);
}

static void on_outbox(void *arg)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, MAGIC);
	if (d->phase == PHASE_RUNNING)
		webhook_kick(d->webhook);
}

static void on_gate(void *arg, const char *provider)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, MAGIC);
	scheduler_on_gate(d->scheduler, provider);
}

static void on_notice(void *arg, const uint8_t *id)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, MAGIC);
	if (id != NULL)
		scheduler_look_at(d->scheduler, id);
	else
		scheduler_poll(d->scheduler);
}

static void on_clock_jump(void *arg)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, MAGIC);
	log_notice("daemon.clock_jump");
	scheduler_replan(d->scheduler);
}

/* ---------------------------------------------------------------- ticks */

static void share_budget(struct daemon *d)
{
	unsigned live = store_live_instances(d->store);
	if (live == d->live)
		return;
	if (d->live != 0)
		log_notice("daemon.instances", K_COUNT(live));
	d->live = live;
	budget_set(d->budget, d->conf, 1.0 / live);
	scheduler_kick(d->scheduler);
}

static void on_tick(void *arg)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, MAGIC);
	loop_timer_after(d->tick, d->conf->refresh.poll_interval_us);
	if (d->phase == PHASE_RUNNING) {
		webhook_poll(d->webhook);
		health_poll(d->health);
	}
}

/* Its pace is not the operator's: others judge us by it. */
static void on_beat(void *arg)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, MAGIC);
	int64_t poll = d->conf->refresh.poll_interval_us;
	loop_timer_after(d->beat, poll < STORE_HEARTBEAT_US ? poll : STORE_HEARTBEAT_US);
	store_heartbeat(d->store);
	share_budget(d);
	if (d->phase == PHASE_REPLAYING && store_state(d->store) == STORE_READY && refresh_replayed(d->refresh))
		recover(d);
	if (d->phase != PHASE_RUNNING)
		notify_extend_timeout(4 * STORE_HEARTBEAT_US);
}

static void on_watchdog(void *arg)
{
	struct daemon *d = arg;
	notify_watchdog();
	loop_timer_after(d->watchdog, notify_watchdog_interval() / 2);
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
	MAGIC_CHECK(d, MAGIC);
	if (d->phase == PHASE_DRAINING) {
		log_notice("daemon.still_draining", K_UINT("in_flight", refresh_in_flight(d->refresh)));
		return;
	}
	int64_t limit = d->conf->refresh.timeout_us + DRAIN_EXTRA_US;
	set_phase(d, PHASE_DRAINING);
	notify_stopping();
	notify_extend_timeout(limit);
	health_set_draining(d->health);
	if (d->api != NULL)
		api_drain(d->api);
	scheduler_stop(d->scheduler);
	d->drain_deadline = loop_timer_new(d->loop, on_drain_deadline, d);
	loop_timer_after(d->drain_deadline, limit);
	refresh_drain(d->refresh, on_refreshes_drained, d);
}

/* ---------------------------------------------------------------- reload */

static void use_conf(struct daemon *d)
{
	log_setup(d->conf->log.format, d->conf->log.level);
	health_set_conf(d->health, d->conf);
	budget_set(d->budget, d->conf, 1.0 / (d->live != 0 ? d->live : 1));
	refresh_set_conf(d->refresh, d->conf);
	scheduler_set_conf(d->scheduler, d->conf);
	webhook_set_conf(d->webhook, d->conf);
	struct fault f = { 0 };
	if (d->api != NULL && api_set_conf(d->api, d->conf, &f) != 0)
		log_error("api.certificate_kept", K_FAULT(&f), K_TEXT("hint", "the certificate in use is unchanged"));
}

static void log_errors(const struct conf_errors *errors)
{
	char where[512];
	for (size_t i = 0; i < errors->n; i++) {
		const struct conf_error *e = &errors->v[i];
		(void)snprintf(where, sizeof where, "%s:%u:%u", e->file, e->line, e->column);
		log_error("config.error", K_TEXT("at", where), K_TEXT("error", e->text));
	}
}

static void log_restart_needed(const struct conf *old, const struct conf *new)
{
	struct buf names;
	buf_init(&names, 4096);
	if (conf_diff_restart(old, new, &names) == 0 && names.len > 0) {
		for (size_t i = 0; i < names.len; i++) {
			if (names.data[i] == '\n')
				names.data[i] = ' ';
		}
		log_warning("config.needs_restart", K_TEXT("options", buf_str(&names)));
	}
	buf_fini(&names);
}

static void on_reload(void *arg)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, MAGIC);
	if (d->phase == PHASE_DRAINING)
		return;
	struct conf_errors errors = { 0 };
	struct conf *fresh = NULL;
	struct fault f = { 0 };
	bool running = d->phase == PHASE_RUNNING; /* before that, nobody may hear that we are ready */
	if (running)
		notify_reloading();
	if (conf_load(d->conf->path, &fresh, &errors) != 0) {
		log_errors(&errors);
		log_error("config.kept", K_COUNT(errors.n), K_TEXT("hint", "the configuration in use is unchanged"));
		conf_errors_fini(&errors);
		metrics_inc(M_CONFIG_RELOADS, "refused", NULL);
		if (running)
			notify_ready();
		return;
	}
	conf_errors_fini(&errors);
	log_restart_needed(d->conf, fresh);
	conf_unref(d->conf);
	d->conf = fresh;
	use_conf(d);
	if (resolver_reload(d->resolver, &f) != 0)
		log_warning("dns.reload_failed", K_FAULT(&f));
	scheduler_replan(d->scheduler);
	metrics_inc(M_CONFIG_RELOADS, "applied", NULL);
	log_notice("config.applied", K_COUNT(d->conf->n_providers));
	if (running)
		notify_ready();
}

/* ---------------------------------------------------------------- build */

/* Names the journal's directory: the database remembers it with our epoch, so that only the process that has this very journal
 * may take back at once what an earlier run claimed. */
static int read_home(const char *path, uint8_t home[16])
{
	struct buf text;
	buf_init(&text, 64);
	int e = buf_read_file(&text, path, NULL);
	if (e == 0)
		e = str_parse_uuid(buf_str(&text), text.len > 36 ? 36 : text.len, home);
	buf_fini(&text);
	return e;
}

static int write_home(const char *dir, const char *path, const uint8_t home[16], struct fault *f)
{
	char text[STR_UUID_BYTES + 1];
	str_format_uuid(home, text);
	text[STR_UUID_BYTES - 1] = '\n';
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	bool ok = fd >= 0 && write(fd, text, STR_UUID_BYTES) == STR_UUID_BYTES && fsync(fd) == 0;
	int why = errno;
	if (fd >= 0)
		(void)close(fd);
	int dirfd = ok ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	if (ok && (dirfd < 0 || fsync(dirfd) != 0)) {
		ok = false;
		why = errno;
	}
	if (dirfd >= 0)
		(void)close(dirfd);
	return ok ? 0 : fault_set(f, ST_IO, "%s: %s", path, strerror(why));
}

static int get_home(const char *dir, uint8_t home[16], struct fault *f)
{
	char *path = mem_printf("%s/home", dir);
	int e = read_home(path, home);
	if (e == ST_NOT_FOUND) {
		sys_uuid4(home);
		e = write_home(dir, path, home, f);
	} else if (e != 0) {
		(void)fault_set(f, e, "%s: it should hold one UUID (%s); remove it to start as a new instance", path, status_text(e));
	}
	mem_free(path);
	return e;
}

static int open_journal(struct daemon *d, struct fault *f)
{
	const struct conf *c = d->conf;
	char *dir = mem_printf("%s/journal", c->state_dir);
	const struct journal_params p = { .dir = dir, .max_bytes = c->refresh.journal_max_bytes, .sync = c->refresh.journal_sync };
	int e = mkdir(c->state_dir, 0700) == 0 || errno == EEXIST ? 0 : fault_set(f, ST_IO, "state_dir %s: %s", c->state_dir, strerror(errno));
	if (e == 0)
		e = journal_open(d->loop, &p, &d->journal, f);
	if (e == 0)
		e = get_home(dir, d->home, f);
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
	scheduler_set_refresh(d->scheduler, d->refresh);
	d->parts = (struct health_parts){ .store = d->store, .journal = d->journal, .refresh = d->refresh, .webhook = d->webhook };
	d->health = health_new(d->loop, &d->parts);
	use_conf(d);
	e = health_listen(d->health, d->conf, f);
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
		e = loop_signal(d->loop, SIGHUP, on_reload, d, f);
	if (e == 0)
		e = loop_on_clock_jump(d->loop, on_clock_jump, d, f);
	if (e != 0)
		return e;
	loop_on_stall(d->loop, on_stall, d);
	store_on_state(d->store, on_store_state, d);
	store_set_pool_waits(d->store, on_pool_wait, d);
	d->notice = (struct store_notice){ .fn = on_notice, .arg = d };
	store_on_notice(d->store, &d->notice);
	d->tick = loop_timer_new(d->loop, on_tick, d);
	loop_timer_after(d->tick, d->conf->refresh.poll_interval_us);
	d->beat = loop_timer_new(d->loop, on_beat, d);
	loop_timer_after(d->beat, 0);
	if (notify_watchdog_interval() > 0) {
		d->watchdog = loop_timer_new(d->loop, on_watchdog, d);
		loop_timer_after(d->watchdog, notify_watchdog_interval() / 2);
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
	struct daemon d = { .magic = MAGIC, .conf = conf_ref(conf), .phase = PHASE_WAITING };
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

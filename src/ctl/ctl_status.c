/*
 * ctl_status - status and top: is everything well, and what is not.
 *
 * What is wrong is said in sentences and makes the exit status 1, so that a monitoring script needs nothing else.
 * Counting whole tables takes time on large ones: status does it always, top now and then.
 */
#include "ctl/ctl.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/sys.h"
#include "model/connection.h"
#include "model/slots.h"
#include "service/migrations.h"
#include "service/vault_ops.h"

#define OUTBOX_LATE_US (5 * 60 * US_PER_S)
#define TOP_MS 2000
#define TOP_COUNT_EVERY 5

struct daemon_row {
	char *name, *version, *presence;
	int64_t started_at, heartbeat_at;
	bool alive, gone, running;
	unsigned slots; /* of 1024 */
};

struct picture {
	struct migrations_state schema;
	struct daemon_row *daemons;
	size_t n_daemons, n_alive;
	struct vault_status s;
	struct buf wrong; /* a sentence a line */
};

static void picture_fini(struct picture *p)
{
	for (size_t i = 0; i < p->n_daemons; i++) {
		mem_free(p->daemons[i].name);
		mem_free(p->daemons[i].version);
		mem_free(p->daemons[i].presence);
	}
	mem_free(p->daemons);
	buf_fini(&p->wrong);
}

static void wrong(struct picture *p, const char *fmt, ...) PRINTF_LIKE(2, 3);

static void wrong(struct picture *p, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	ALWAYS(buf_vprintf(&p->wrong, fmt, ap) == 0);
	va_end(ap);
	ALWAYS(buf_putc(&p->wrong, '\n') == 0);
}

static int on_instance(void *arg, const struct vault_instance *i)
{
	struct picture *p = arg;
	p->daemons = mem_realloc(p->daemons, p->n_daemons + 1, sizeof(*p->daemons));
	p->daemons[p->n_daemons++] = (struct daemon_row){ .name = mem_strdup(i->name), .version = mem_strdup(i->version),
		.presence = mem_strdup(i->presence), .started_at = i->started_at, .heartbeat_at = i->heartbeat_at, .alive = i->alive,
		.gone = i->gone, .running = i->alive && strcmp(i->presence, "running") == 0 };
	p->n_alive += i->alive;
	return 0;
}

/* As the daemons do it among themselves. */
static void count_slots(struct picture *p)
{
	const char **names = mem_calloc(p->n_daemons + 1, sizeof(*names));
	struct slots own;
	size_t n = 0, self = 0;
	for (size_t i = 0; i < p->n_daemons; i++) {
		if (p->daemons[i].running)
			names[n++] = p->daemons[i].name;
	}
	for (size_t i = 0; i < p->n_daemons; i++) {
		if (!p->daemons[i].running)
			continue;
		slots_divide(names, n, self++, &own, NULL);
		p->daemons[i].slots = own.n;
	}
	mem_free(names);
}

static void judge_daemons(struct picture *p)
{
	char when[CTL_TIME_BYTES];
	if (p->n_alive == 0)
		wrong(p, "no daemon is alive: nothing is refreshed");
	for (size_t i = 0; i < p->n_daemons; i++) {
		const struct daemon_row *d = &p->daemons[i];
		if (!d->alive && !d->gone)
			wrong(p, "daemon %.200s said nothing since its heartbeat %s and did not say goodbye (lost for ever? refreshctl instance forget)",
				d->name, ctl_ago(d->heartbeat_at, when));
		if (d->alive && strcmp(d->presence, "paused") == 0)
			wrong(p, "daemon %.200s is alive and cannot refresh: its log says why", d->name);
	}
}

static void judge(struct picture *p)
{
	const struct vault_status *s = &p->s;
	char when[CTL_TIME_BYTES];
	judge_daemons(p);
	if (s->overdue > 0)
		wrong(p, "%" PRId64 " connections are due for more than a minute, the oldest %s", s->overdue, ctl_ago(s->oldest_due_at, when));
	if (s->expired > 0)
		wrong(p, "%" PRId64 " callable connections hold an expired token", s->expired);
	if (s->orphans > 0)
		wrong(p, "%" PRId64 " orphaned tokens or replies wait to be looked at (refreshctl orphans list)", s->orphans);
	if (s->oldest_waiting_at != 0 && sys_wall_us() - s->oldest_waiting_at > OUTBOX_LATE_US)
		wrong(p, "webhooks are late, the oldest one was due %s", ctl_ago(s->oldest_waiting_at, when));
	if (s->endpoints_disabled > 0)
		wrong(p, "%" PRId64 " webhook endpoints are switched off (refreshctl webhook list)", s->endpoints_disabled);
}

/* Everything that is asked; a schema that does not fit is a finding, not a failure. */
static int look(struct ctl *c, bool count_all, struct picture *p, struct fault *f)
{
	*p = (struct picture){ .wrong = BUF_INIT((size_t)1024 * 1024) };
	int rc = migrations_look(c->pg, &p->schema, f);
	if (rc != 0)
		return rc;
	if (!migrations_fit(&p->schema)) {
		struct fault why = { 0 };
		(void)migrations_refuse(&p->schema, "refreshctl", &why);
		wrong(p, "%s", why.text);
		return 0;
	}
	rc = vault_instances(c->pg, on_instance, p, f);
	count_slots(p);
	if (rc == 0)
		rc = vault_status(c->pg, c->conf, count_all, &p->s, f);
	if (rc == 0)
		judge(p);
	return rc;
}

/* ---------------------------------------------------------------- printing */

static void print_number(const char *name, int64_t n)
{
	printf("  %-22s %" PRId64 "\n", name, n);
}

static void print_counts(const struct vault_status *s)
{
	char when[CTL_TIME_BYTES];
	if (s->counted) {
		puts("connections");
		for (int i = 0; i <= CONN_INVALID; i++)
			print_number(conn_state_word((enum conn_state)i), s->by_state[i]);
		if (s->unknown_state > 0)
			print_number("(unknown state)", s->unknown_state);
		print_number("expired", s->expired);
		print_number("in doubt", s->in_doubt);
	}
	puts("refreshing");
	print_number("due", s->due);
	print_number("overdue", s->overdue);
	print_number("in flight", s->in_flight);
	print_number("left to their owner", s->left_to_owner);
	if (s->oldest_due_at != 0)
		printf("  %-22s %s\n", "oldest due", ctl_ago(s->oldest_due_at, when));
	print_number("orphans", s->orphans);
	puts("webhooks");
	print_number("events waiting", s->events_waiting);
	print_number("deliveries waiting", s->deliveries_waiting);
}

static void print_daemons(const struct ctl *c, const struct picture *p)
{
	static const char *const headers[] = { "DAEMON", "VERSION", "STATE", "SLOTS", "HEARTBEAT", "STARTED" };
	char when[CTL_TIME_BYTES];
	if (p->n_daemons == 0)
		return;
	struct ctl_table *t = ctl_table_new(c, headers, 6);
	for (size_t i = 0; i < p->n_daemons; i++) {
		const struct daemon_row *d = &p->daemons[i];
		ctl_table_cell(t, "%s", d->name);
		ctl_table_cell(t, "%s", d->version);
		ctl_table_cell(t, "%s", d->alive ? d->presence : d->gone ? "stopped" : "silent");
		ctl_table_cell(t, "%u", d->slots);
		ctl_table_cell(t, "%s", ctl_ago(d->heartbeat_at, when));
		ctl_table_cell(t, "%s", ctl_ago(d->started_at, when));
	}
	ctl_table_print(t);
}

static void print_picture(const struct ctl *c, const struct picture *p)
{
	printf("schema version %d\n", p->schema.version);
	if (migrations_fit(&p->schema)) {
		print_daemons(c, p);
		print_counts(&p->s);
	}
	if (p->wrong.len == 0) {
		puts("everything is well");
		return;
	}
	for (const char *s = buf_str(&p->wrong); *s != '\0';) {
		size_t n = strcspn(s, "\n");
		printf("WRONG: %.*s\n", (int)n, s);
		s += n + 1;
	}
}

static void json_counts(struct jsonw *w, const struct vault_status *s)
{
	jsonw_object(w, "connections");
	for (int i = 0; i <= CONN_INVALID; i++)
		jsonw_int(w, conn_state_word((enum conn_state)i), s->by_state[i]);
	jsonw_object_end(w);
	jsonw_int(w, "expired", s->expired);
	jsonw_int(w, "in_doubt", s->in_doubt);
	jsonw_int(w, "due", s->due);
	jsonw_int(w, "overdue", s->overdue);
	jsonw_int(w, "in_flight", s->in_flight);
	jsonw_int(w, "left_to_owner", s->left_to_owner);
	ctl_json_time(w, "oldest_due_at", s->oldest_due_at);
	jsonw_int(w, "orphans", s->orphans);
	jsonw_int(w, "events_waiting", s->events_waiting);
	jsonw_int(w, "deliveries_waiting", s->deliveries_waiting);
	jsonw_int(w, "endpoints_disabled", s->endpoints_disabled);
}

static int json_picture(const struct picture *p)
{
	struct ctl_json j;
	struct jsonw *w = &j.w;
	ctl_json_begin(&j);
	jsonw_object(w, NULL);
	jsonw_bool(w, "well", p->wrong.len == 0);
	jsonw_array(w, "wrong");
	for (const char *s = buf_str(&p->wrong); *s != '\0';) {
		size_t n = strcspn(s, "\n");
		jsonw_strn(w, NULL, s, n);
		s += n + 1;
	}
	jsonw_array_end(w);
	jsonw_int(w, "schema_version", p->schema.version);
	jsonw_array(w, "daemons");
	for (size_t i = 0; i < p->n_daemons; i++) {
		jsonw_object(w, NULL);
		jsonw_str(w, "name", p->daemons[i].name);
		jsonw_str(w, "version", p->daemons[i].version);
		jsonw_bool(w, "alive", p->daemons[i].alive);
		jsonw_str(w, "presence", p->daemons[i].gone ? "stopped" : p->daemons[i].presence);
		jsonw_int(w, "slots", p->daemons[i].slots);
		ctl_json_time(w, "heartbeat_at", p->daemons[i].heartbeat_at);
		ctl_json_time(w, "started_at", p->daemons[i].started_at);
		jsonw_object_end(w);
	}
	jsonw_array_end(w);
	if (migrations_fit(&p->schema))
		json_counts(w, &p->s);
	jsonw_object_end(w);
	return ctl_json_end(&j);
}

int ctl_status(struct ctl *c, int argc, char **argv)
{
	struct fault f = { 0 };
	struct picture p;
	int status = CTL_OK;
	CTL_TRY(ctl_options(c, argc, argv, NULL, 0, 0, 0));
	CTL_TRY(ctl_connect_any(c));
	if (look(c, true, &p, &f) != 0) {
		picture_fini(&p);
		return ctl_fail("status", &f);
	}
	if (c->json)
		status = json_picture(&p);
	else
		print_picture(c, &p);
	if (p.wrong.len > 0)
		status = CTL_FAILURE;
	picture_fini(&p);
	return status;
}

/* ---------------------------------------------------------------- top */

/* true: leave. */
static bool wait_key(void)
{
	struct pollfd in = { .fd = STDIN_FILENO, .events = POLLIN };
	char key = 0;
	int64_t end = sys_mono_us() + TOP_MS * US_PER_MS;
	while (!ctl_interrupted) {
		int64_t left_ms = (end - sys_mono_us()) / US_PER_MS;
		if (left_ms <= 0)
			return false;
		int n = poll(&in, 1, (int)left_ms);
		if (n <= 0)
			continue; /* EINTR is seen by the flag, a timeout by the clock */
		if (read(STDIN_FILENO, &key, 1) != 1 || key == 'q' || key == 'Q')
			return true;
	}
	return true;
}

static int top_loop(struct ctl *c, struct fault *f)
{
	struct vault_status counted = { .counted = false };
	int rc = 0;
	for (unsigned turn = 0; rc == 0; turn++) {
		struct picture p;
		char now[CTL_TIME_BYTES];
		bool count_now = turn % TOP_COUNT_EVERY == 0;
		rc = look(c, count_now, &p, f);
		if (rc == 0 && count_now)
			counted = p.s;
		if (rc == 0 && !count_now && counted.counted) {
			memcpy(p.s.by_state, counted.by_state, sizeof(p.s.by_state));
			p.s.expired = counted.expired;
			p.s.in_doubt = counted.in_doubt;
			p.s.counted = true;
		}
		if (rc == 0) {
			printf("\033[H\033[2Jrefreshd  %.20s  (q leaves)\n\n", ctl_time(sys_wall_us(), now));
			print_picture(c, &p);
			(void)fflush(stdout);
		}
		picture_fini(&p);
		if (rc == 0 && wait_key())
			break;
	}
	return rc;
}

int ctl_top(struct ctl *c, int argc, char **argv)
{
	struct termios saved, raw;
	struct fault f = { 0 };
	CTL_TRY(ctl_options(c, argc, argv, NULL, 0, 0, 0));
	if (c->json)
		return ctl_usage(c, "top: it has no JSON; refreshctl --json status has");
	if (!c->out_tty || tcgetattr(STDIN_FILENO, &saved) != 0)
		return ctl_usage(c, "top: it needs a terminal; refreshctl status does not");
	CTL_TRY(ctl_connect_any(c));
	ctl_catch_interrupt();
	raw = saved;
	raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	raw.c_cc[VMIN] = 1;
	raw.c_cc[VTIME] = 0;
	if (tcsetattr(STDIN_FILENO, TCSANOW, &raw) != 0)
		return ctl_complain("top: the terminal: %s", strerror(errno));
	fputs("\033[?1049h\033[?25l", stdout); /* the other screen, no cursor */
	int rc = top_loop(c, &f);
	fputs("\033[?25h\033[?1049l", stdout);
	(void)fflush(stdout);
	(void)tcsetattr(STDIN_FILENO, TCSANOW, &saved);
	return rc == 0 ? CTL_OK : ctl_fail("top", &f);
}

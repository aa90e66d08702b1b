/*
 * daemon_reload - SIGHUP: the configuration is read anew, and used as a whole or not at all.
 *
 * Must not: apply half a file, or tell the supervisor that we are ready when we were not before.
 */
#include "daemon_priv.h"

#include <stdio.h>

#include "base/buf.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/metrics.h"
#include "io/notify.h"

void daemon_use_conf(struct daemon *d)
{
	log_setup(d->conf->log.format, d->conf->log.level);
	health_set_conf(d->health, d->conf);
	budget_set(d->budget, d->conf, d->share);
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

void daemon_on_reload(void *arg)
{
	struct daemon *d = arg;
	MAGIC_CHECK(d, DAEMON_MAGIC);
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
	daemon_use_conf(d);
	if (resolver_reload(d->resolver, &f) != 0)
		log_warning("dns.reload_failed", K_FAULT(&f));
	scheduler_replan(d->scheduler);
	metrics_inc(M_CONFIG_RELOADS, "applied", NULL);
	log_notice("config.applied", K_COUNT(d->conf->n_providers));
	if (running)
		notify_ready();
}

/*
 * notify - the words of sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3).
 *
 * A message that cannot be delivered is dropped: there is nobody else to tell, and a manager that waits
 * for it has its own timeout. Without libsystemd every function here does nothing. The environment is
 * left as it is, so that each call stands alone.
 */
#include "io/notify.h"

#ifdef HAVE_SYSTEMD

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "base/mem.h"
#include "base/sys.h"

void notify_ready(void)
{
	(void)sd_notify(0, "READY=1");
}

void notify_reloading(void)
{
	/* The protocol asks for CLOCK_MONOTONIC by name; sys_mono_us() is CLOCK_BOOTTIME. */
	struct timespec now;
	ALWAYS(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
	(void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIi64,
		(int64_t)now.tv_sec * US_PER_S + (int64_t)now.tv_nsec / 1000);
}

void notify_stopping(void)
{
	(void)sd_notify(0, "STOPPING=1");
}

void notify_status(const char *text)
{
	ALWAYS(strchr(text, '\n') == NULL);
	(void)sd_notifyf(0, "STATUS=%s", text);
}

void notify_watchdog(void)
{
	(void)sd_notify(0, "WATCHDOG=1");
}

void notify_extend_timeout(int64_t us)
{
	(void)sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%" PRIi64, us);
}

int64_t notify_watchdog_interval(void)
{
	uint64_t limit_us = 0;
	if (sd_watchdog_enabled(0, &limit_us) <= 0 || limit_us > INT64_MAX)
		return 0;
	/* sd_watchdog_enabled(3): send every half of the time that the manager waits. */
	return limit_us > 1 ? (int64_t)(limit_us / 2) : 1;
}

int notify_listen_fd(const char *name)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(0, &names), found = -1;
	for (int i = 0; i < n; i++) {
		if (found < 0 && strcmp(names[i], name) == 0)
			found = SD_LISTEN_FDS_START + i;
		free(names[i]);
	}
	free(names);
	return found;
}

static bool is_known(const char *name, const char *const *known)
{
	while (*known != NULL && strcmp(name, *known) != 0)
		known++;
	return *known != NULL;
}

int notify_listen_other(const char *const *known, char out[64])
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(0, &names);
	if (n < 0)
		return ST_SYNTAX;
	out[0] = '\0';
	for (int i = 0; i < n; i++) {
		if (out[0] == '\0' && !is_known(names[i], known))
			(void)snprintf(out, 64, "%s", names[i]);
		free(names[i]);
	}
	free(names);
	return 0;
}

#else

void notify_ready(void)
{
}

void notify_reloading(void)
{
}

void notify_stopping(void)
{
}

void notify_status(const char *text)
{
	(void)text;
}

void notify_watchdog(void)
{
}

void notify_extend_timeout(int64_t us)
{
	(void)us;
}

int64_t notify_watchdog_interval(void)
{
	return 0;
}

int notify_listen_fd(const char *name)
{
	(void)name;
	return -1;
}

int notify_listen_other(const char *const *known, char out[64])
{
	(void)known;
	out[0] = '\0';
	return 0;
}

#endif

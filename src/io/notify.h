/*
 * notify - talks to the service manager (systemd): READY, RELOADING, STOPPING, STATUS, WATCHDOG.
 *
 * Does nothing when not run by one (no NOTIFY_SOCKET) or built without libsystemd. systemd 252 has no
 * Type=notify-reload; RELOADING carries MONOTONIC_USEC all the same for newer ones.
 */
#ifndef REFRESHD_IO_NOTIFY_H
#define REFRESHD_IO_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

void notify_ready(void);
void notify_reloading(void);
void notify_stopping(void);
void notify_status(const char *text); /* one line, our own words */
void notify_watchdog(void);
void notify_extend_timeout(int64_t us);
/* Interval at which notify_watchdog must come, microseconds; 0: no watchdog is armed for this process. */
int64_t notify_watchdog_interval(void);
/* Sockets handed over by the manager; -1 when there is none with that FileDescriptorName. */
int notify_listen_fd(const char *name);
/* The name of a socket handed over that is none of `known`, NULL at its end; "" when there is none. ST_SYNTAX: the manager's words
 * about its sockets contradict each other. */
int notify_listen_other(const char *const *known, char out[64]) MUST_USE;

#endif

/*
 * daemon - builds every part, wires them, reloads, drains and tears down; the only file that sees every service.
 */
#ifndef REFRESHD_DAEMON_H
#define REFRESHD_DAEMON_H

#include "model/conf.h"

/* Runs until SIGTERM or SIGINT. `conf` is borrowed; SIGHUP reads conf->path again. Returns the exit code. */
int daemon_run(struct conf *conf);

#endif

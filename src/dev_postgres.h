/*
 * dev_postgres - the private Postgres of `refreshd --dev`.
 *
 * A keeper process (a fork of ours, in a session of its own, so that Ctrl-C reaches refreshd alone) makes the
 * cluster, starts the server and stops it when this process ends, however it ends. As root the server runs as
 * user postgres, else nobody: initdb and postgres refuse root.
 */
#ifndef REFRESHD_DEV_POSTGRES_H
#define REFRESHD_DEV_POSTGRES_H

#include <stdbool.h>

#include "base/status.h"

struct dev_postgres;

struct dev_postgres_params {
	const char *home; /* an absolute path that dev_postgres_home_check likes; the server lives in its
			     subfolder postgres */
	bool keep;        /* false: `home` is removed with all that is in it when this process ends */
};

/* No byte in it that would need quoting in a connection string or a server setting, and short enough for a
 * socket. */
int dev_postgres_home_check(const char *home, struct fault *f) MUST_USE;
/* Starts the keeper. From a return of 0 on it cleans up, whatever becomes of us. */
int dev_postgres_start(
	const struct dev_postgres_params *p, struct dev_postgres **out, struct fault *f) MUST_USE;
/* Waits until the server takes connections; once, right after the start. On failure only dev_postgres_stop is
 * left. */
int dev_postgres_ready(struct dev_postgres *d, struct fault *f) MUST_USE;
/* Stops the server and waits for that; frees. The fault tells what could not be removed. NULL is fine. */
int dev_postgres_stop(struct dev_postgres *d, struct fault *f) MUST_USE;
/* libpq's keywords for a database of it; the caller frees by mem_free. */
char *dev_postgres_url(const struct dev_postgres *d, const char *database);

#endif

/*
 * hosts - the names that need no name server: numeric addresses, localhost, the hosts file; and how
 * the addresses of both families are put into one short list.
 */
#ifndef REFRESHD_IO_HOSTS_H
#define REFRESHD_IO_HOSTS_H

#include <stdbool.h>

#include "base/status.h"
#include "io/resolver.h"

struct hosts;

enum hosts_family { HOSTS_V4, HOSTS_V6, HOSTS_FAMILIES };

/* A missing file is an empty one. ST_IO, ST_DENIED, ST_FULL (over 4 MiB): the fault names the path. */
int hosts_load(const char *path, struct hosts **out, struct fault *f) MUST_USE;
void hosts_free(struct hosts *h);
/* `host` in lower case, without a final dot. `out` is untouched when false. */
bool hosts_find(const struct hosts *h, const char *host, struct resolver_addrs *out);

void hosts_lower(char *s); /* ASCII, in place */
/* Append 4 or 16 bytes in network order; past RESOLVER_MAX_ADDRS: nothing. */
void hosts_add_raw(struct resolver_addrs *a, enum hosts_family family, const void *raw);
/* IPv4 first, and room for both families however many one of them has. */
void hosts_merge(struct resolver_addrs *out, const struct resolver_addrs *v4, const struct resolver_addrs *v6);

#endif

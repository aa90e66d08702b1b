/*
 * pgtarget - a database URL, taken apart so that libpq never has to resolve a name.
 *
 * libpq resolves host names inside PQconnectPoll and would block the loop. So the host names of the URL
 * (there may be several) go through `resolver` and libpq gets host and hostaddr lists of equal length:
 * the name for certificates and .pgpass, the address for the socket.
 */
#ifndef REFRESHD_IO_PGTARGET_H
#define REFRESHD_IO_PGTARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "io/resolver.h"

struct pgtarget;
struct pgtarget_query;

struct pgtarget_params {
	const char *url;
	const char *application_name;
	bool pooler_transaction;      /* no `options`: a pooler refuses them */
	int64_t statement_timeout_us; /* 0: none */
};

/* ST_SYNTAX or ST_INVALID; the fault never repeats the URL, which may hold a password. */
int pgtarget_new(const struct pgtarget_params *p, struct pgtarget **out, struct fault *f) MUST_USE;
void pgtarget_free(struct pgtarget *t); /* after its queries */

unsigned pgtarget_hosts(const struct pgtarget *t);
/* How long one attempt to connect may take: connect_timeout of the URL (at least 2 s), else 10 s. */
int64_t pgtarget_connect_timeout_us(const struct pgtarget *t);

/* What PQconnectStartParams wants; borrowed for the callback. */
struct pgtarget_answer {
	int code; /* 0, or ST_UNAVAILABLE with `why`: no host has an address */
	struct fault why;
	const char *const *keywords;
	const char *const *values;
};
typedef void pgtarget_fn(void *arg, const struct pgtarget_answer *a);

/* Exactly one call of fn in a later turn, unless canceled. Hosts without an address are left out; `rotate`
 * addresses move from the front to the back of the list, so that one which swallows packets is not tried
 * first for ever. */
struct pgtarget_query *pgtarget_resolve(
	struct pgtarget *t, struct loop *l, struct resolver *r, unsigned rotate, pgtarget_fn *fn, void *arg);
void pgtarget_cancel(struct pgtarget_query *q); /* NULL is fine */

#endif

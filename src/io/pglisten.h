/*
 * pglisten - LISTEN on a connection of its own, which comes back by itself.
 */
#ifndef REFRESHD_IO_PGLISTEN_H
#define REFRESHD_IO_PGLISTEN_H

#include <stdbool.h>

#include "io/loop.h"
#include "io/pgtarget.h"
#include "io/resolver.h"

struct pglisten;

/* All borrowed until pglisten_free. */
struct pglisten *pglisten_new(struct loop *l, struct resolver *r, struct pgtarget *t);
void pglisten_free(struct pglisten *p); /* also from inside fn; NULL is fine */

/* fn gets each payload; NULL after each (re)connection: something may have been missed. Never from inside a
 * call. */
void pglisten_add(
	struct pglisten *p, const char *channel, void (*fn)(void *arg, const char *payload), void *arg);

/* Only while it may does it try to connect: there is no point before the pool itself has got through. */
void pglisten_may_connect(struct pglisten *p, bool may);

#endif

/*
 * pgworld - what the tests of the database pool share: a loop, a resolver, one cluster, one pool at a time,
 * and outcomes that can be awaited with a deadline.
 */
#ifndef REFRESHD_TESTS_PGWORLD_H
#define REFRESHD_TESTS_PGWORLD_H

#include <stdbool.h>

#include "integration/pgcluster.h"
#include "io/loop.h"
#include "io/pgpool.h"
#include "io/resolver.h"

struct outcome {
	unsigned calls;
	struct pgtx_result r; /* without results */
	int64_t first;        /* row 0, column 0 of the last result when that is an integer */
	int rows;             /* of the last result */
	int columns;
	bool inside; /* the callback came from inside pgpool_send */
};

struct world {
	struct pgcluster *cluster; /* made once for the program */
	struct loop *loop;
	struct resolver *resolver;
	struct pgpool *pool;
	unsigned state_calls;
	bool up;
	struct fault why; /* of the last change to down */
	bool sending;
};

extern struct world world;

void world_open(void); /* fixtures: loop and resolver */
void world_close(void);
void world_fini(void); /* the cluster as well; at exit */

/* Waits on the loop until cond(arg) is true; the test fails after 20 s. */
void world_wait(const char *what, bool (*cond)(void *arg), void *arg);
void world_run_ms(int ms); /* lets the loop go on; for "nothing happens" */

/* Another resolver, before the pool is made; a NULL file is the system's. */
void world_resolver(const char *resolv_conf, const char *hosts_file, int64_t timeout_us);

/* Application "pgtest"; the URL is the cluster's when NULL. Replaces the pool that was there. */
struct pgpool *world_pool(const char *url, unsigned size, int64_t statement_timeout_us, bool pooler);
void world_wait_up(unsigned connections);
void world_wait_down(void);

void world_send(struct pgtx *t, int64_t wait_us, struct outcome *o);
void world_send1(const struct pgstmt *s, struct pgargs *a, int64_t wait_us, struct outcome *o);
enum pg_class world_await(struct outcome *o);
enum pg_class world_query(const struct pgstmt *s, struct pgargs *a, struct outcome *o); /* send and await */

#endif

/*
 * api_import - one import on its way, for api_import*.c only.
 */
#ifndef REFRESHD_API_IMPORT_H
#define REFRESHD_API_IMPORT_H

#include "api/api_priv.h"

enum { ACCESS_TOKEN, REFRESH_TOKEN, SETTINGS, SEALED };

struct pending {
	struct pending *next;      /* in the queue, or behind `winner` */
	struct pending *followers; /* earlier imports of the same connection, answered with this one */
	struct api_call *call;
	struct import import;
	const struct provider *provider; /* of the call's configuration */
	uint8_t id[16];
	unsigned tries;
	bool alone; /* the server refused a group that it was in */
	api_row_fn *then; /* not an import: the row is to be made if it is not there, and this goes on with it */
	int64_t version; /* under which it is sealed; 0: not yet */
	/* for the present try */
	int64_t now;
	int64_t seen_at, created_at, last_failed_at; /* of the row that is there; seen_at 0: of the one to be made */
	bool enabled;
	struct import_times times;
	struct conn_change to;
	struct buf sealed[SEALED], settings_public, entity, entity_id;
};

/* row NULL: as if it were not there. Fails when it cannot be sealed. */
int api_import_decide(struct pending *p, struct keyring *k, const struct store_connection *row) MUST_USE;

#endif

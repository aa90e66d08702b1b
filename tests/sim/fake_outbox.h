/*
 * fake_outbox - service/store_webhook.h, and the load of endpoints of the API, over rows in memory, with the same rules as the SQL.
 *
 * Answers come in a later turn, after a delay that the test sets. The test can look at rows and change them
 * (another daemon), take the database away, refuse a statement, and lose the answer of a commit that took
 * place.
 */
#ifndef REFRESHD_TESTS_SIM_FAKE_OUTBOX_H
#define REFRESHD_TESTS_SIM_FAKE_OUTBOX_H

#include "io/loop.h"
#include "service/store_webhook.h"
#include "service/store_webhook_endpoint.h"

#define FAKE_EVENTS 2000
#define FAKE_DELIVERIES 4000
#define FAKE_ENDPOINTS 128

struct fake_event {
	uint8_t id[16];
	char application[32], entity_type[16], entity_id[64];
	enum event_type type;
	const char *entity; /* borrowed */
	int64_t occurred_at;
	bool fanned_out;
};
struct fake_delivery {
	unsigned event;
	char endpoint[64];
	int attempt, status;
	int64_t due_at, owner, lease_until, duration_us;
	bool done, delivered;
	bool poisoned; /* a record that contains it is refused */
	bool locked;   /* by another daemon's claim that is not committed yet */
	const char *error;
};

struct store *fake_outbox_new(struct loop *l);
void fake_outbox_free(struct store *s);

/* A committed event; entity_id for entity type "Endpoint" is the endpoint. */
unsigned fake_outbox_event(struct store *s, enum event_type type, const char *application);
unsigned fake_outbox_test_event(struct store *s, const char *endpoint_id);
struct fake_event *fake_outbox_get_event(struct store *s, unsigned i);
struct fake_delivery *fake_outbox_delivery(
	struct store *s, unsigned event, const char *endpoint_id); /* NULL: none */
unsigned fake_outbox_count(const struct store *s, const char *endpoint_id, bool delivered);
bool fake_outbox_is_disabled(const struct store *s, const char *endpoint_id);
void fake_outbox_set_disabled(struct store *s, const char *endpoint_id, bool disabled);

void fake_outbox_set_state(struct store *s, enum store_state state);
void fake_outbox_set_delay(struct store *s, int64_t us); /* of answers; 1 ms */
/* Every statement until told otherwise answers this code (0: none); executed: it took effect all the same. */
void fake_outbox_fail(struct store *s, int code, bool executed);

/* An endpoint of the API, as its row stands: made or replaced; its texts and bytes are borrowed. */
void fake_outbox_set_hook(struct store *s, const struct store_hook *h);
void fake_outbox_remove_hook(struct store *s, const char *endpoint_id);

struct fake_outbox_calls {
	unsigned loads, hooks_told;
	unsigned fanouts, claims, records, releases, lists, counts, purges;
	size_t biggest_record;
	int64_t purge_older_than;
};
const struct fake_outbox_calls *fake_outbox_calls(const struct store *s);
unsigned fake_outbox_statements(const struct store *s); /* all of them */

#endif

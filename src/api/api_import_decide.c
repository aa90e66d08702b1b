/*
 * api_import_decide - one import against the row that is there, or none: what becomes of it, what is told, and its tokens sealed.
 *
 * May be asked again for the same import, when the row has changed or time has gone by: what was sealed stays as long as it fits. Must
 * not touch the queue or the database.
 */
#include "api/api_import.h"

#include "base/sys.h"
#include "model/policy.h"
#include "service/seal.h"

static int seal_all(struct keyring *k, struct pending *p)
{
	const struct import *i = &p->import;
	int e = seal_buf(k, SEAL_ACCESS_TOKEN, p->id, p->version, &i->access_token, &p->sealed[ACCESS_TOKEN]);
	if (e == 0)
		e = seal_buf(k, SEAL_REFRESH_TOKEN, p->id, p->version, &i->refresh_token, &p->sealed[REFRESH_TOKEN]);
	if (e != 0 || !i->has_settings)
		return e;
	e = seal_buf(k, SEAL_SETTINGS, p->id, 0, &i->settings, &p->sealed[SETTINGS]);
	buf_reset(&p->settings_public);
	if (e != 0)
		return e;
	return import_mask_settings(buf_str(&i->settings), i->settings.len, p->provider, &p->settings_public);
}

/* The version is part of what is sealed: once is enough as long as it is greater than that of the row. */
static int seal_for(struct keyring *k, struct pending *p, const struct store_connection *row)
{
	int64_t version = p->version != 0 ? p->version : p->now;
	if (row != NULL && row->token_version >= version)
		version = row->token_version + 1;
	if (version == p->version)
		return 0;
	p->version = version;
	return seal_all(k, p);
}

static void decide(struct pending *p, const struct store_connection *row)
{
	enum conn_state state = CONN_AVAILABLE;
	enum conn_health health = HEALTH_OK;
	/* Words of a newer program: treated as well, which tells nothing. */
	if (row != NULL && conn_state_parse(row->state, &state) != 0)
		state = CONN_CALLABLE;
	if (row != NULL && conn_health_parse(row->health, &health) != 0)
		health = HEALTH_OK;
	bool lacks = import_lacks_settings(&p->import, p->provider, row != NULL ? row->settings_public : NULL);
	p->to = connection_apply(state, health, import_event(&p->import, p->provider), lacks);
	if (row == NULL)
		p->to.event = EVENT_CREATED;
	else if (p->to.event == EVENT_NONE)
		p->to.event = EVENT_UPDATED;
}

static int build_event(struct pending *p)
{
	const struct store_connection k = {
		.key = p->call->key,
		.auth_type = auth_type_word(p->provider->auth_type),
		.created_at = p->created_at,
		.last_failed_at = p->last_failed_at,
	};
	buf_reset(&p->entity);
	buf_reset(&p->entity_id);
	return api_build_event(p->call->conf, &k, conn_state_word(p->to.state), conn_health_word(p->to.health),
		p->enabled, p->now, &p->entity, &p->entity_id);
}

int api_import_decide(struct pending *p, struct keyring *k, const struct store_connection *row)
{
	const struct conf *c = p->call->conf;
	const struct policy_margin margin = {.margin_us = c->refresh.margin_us, .fraction = c->refresh.margin_fraction};
	p->seen_at = row != NULL ? row->updated_at : 0;
	p->now = sys_wall_us();
	if (p->now <= p->seen_at) /* updated_at must grow, for it is what the next writer compares */
		p->now = p->seen_at + 1;
	p->created_at = row != NULL ? row->created_at : p->now;
	p->last_failed_at = row != NULL ? row->last_failed_at : 0;
	p->enabled = row == NULL || row->enabled;
	decide(p, row);
	import_plan(&p->import, p->provider, &margin, p->now, sys_random_unit(), &p->times);
	int e = seal_for(k, p, row);
	return e != 0 ? e : build_event(p);
}

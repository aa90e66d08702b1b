/*
 * webhook_queue - deliveries that are claimed and wait for their turn, and how far ahead an endpoint is
 * claimed for.
 *
 * A claim and a record cost a commit each, so a receiver that answers quickly gets more claimed than may be
 * under way there at once: its window grows with each success up to WINDOW_MAX and shrinks with what fails or
 * is slow. Places are given out here and nowhere else: PER_ENDPOINT requests at one receiver, up to
 * PER_QUICK_ENDPOINT (and its share of all) as its window grows, one where all fails. What cannot be sent any more is given back unsent.
 * Must not touch the database.
 */
#include "service/webhook_priv.h"

#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/sys.h"

#define SEND_MARGIN_US (20 * US_PER_S) /* of the lease over the request: still there when it starts */
#define QUICK_US US_PER_S

/* ---------------------------------------------------------------- lists */

void webhook_queue_push(struct delivery_list *l, struct delivery *d)
{
	d->next = NULL;
	d->prev = l->last;
	if (l->last != NULL)
		l->last->next = d;
	else
		l->first = d;
	l->last = d;
	l->n++;
}

void webhook_queue_remove(struct delivery_list *l, struct delivery *d)
{
	if (d->prev != NULL)
		d->prev->next = d->next;
	else
		l->first = d->next;
	if (d->next != NULL)
		d->next->prev = d->prev;
	else
		l->last = d->prev;
	l->n--;
}

void webhook_queue_move(struct delivery_list *to, struct delivery_list *from, size_t max)
{
	while (from->first != NULL && max-- > 0) {
		struct delivery *d = from->first;
		webhook_queue_remove(from, d);
		webhook_queue_push(to, d);
	}
}

/* ---------------------------------------------------------------- the window */

bool webhook_queue_ailing(const struct target *t)
{
	return t->failures >= AILING_AFTER;
}

/* It may begin to hang with all of them, and its requests then last as long as any may: the others need theirs. */
static unsigned places(const struct webhook *w, const struct target *t)
{
	unsigned most = w->conf->delivery.max_in_flight / PLACES_SHARE;
	most = most < PER_ENDPOINT ? PER_ENDPOINT : most > PER_QUICK_ENDPOINT ? PER_QUICK_ENDPOINT : most;
	unsigned more = t->window * (most - PER_ENDPOINT) / WINDOW_MAX;
	return webhook_queue_ailing(t) ? 1 : PER_ENDPOINT + more;
}

unsigned webhook_queue_room(const struct webhook *w, const struct target *t)
{
	unsigned most = places(w, t);
	if (!webhook_queue_ailing(t) && w->ahead < AHEAD_MAX)
		most += t->window;
	/* What is beyond the places is claimed by halves: few large claims instead of many small ones. */
	if (t->in_hand >= places(w, t) && t->in_hand > most / 2)
		return 0;
	return t->in_hand < most ? most - t->in_hand : 0;
}

void webhook_queue_judge(struct target *t, const struct store_attempt *a)
{
	if (!a->delivered)
		t->window /= 2;
	else if (a->duration_us > QUICK_US)
		t->window = 0;
	else if (t->window < WINDOW_MAX)
		t->window++;
}

/* ---------------------------------------------------------------- waiting */

static char *copy_of(const char *text)
{
	return text != NULL ? mem_strdup(text) : NULL;
}

void webhook_queue_wait(struct delivery *d, const struct store_delivery *s)
{
	d->what = *s;
	d->what.endpoint_id = d->target->id;
	d->what.entity = d->entity = copy_of(s->entity);
	d->what.entity_id = d->entity_id = copy_of(s->entity_id);
	d->what.entity_type = d->entity_type = copy_of(s->entity_type);
	d->what.reason = d->reason = copy_of(s->reason);
	webhook_queue_push(&d->target->waiting, d);
	d->owner->ahead++;
}

void webhook_queue_forget(struct delivery *d)
{
	mem_free(d->entity);
	mem_free(d->entity_id);
	mem_free(d->entity_type);
	mem_free(d->reason);
}

static struct delivery *next_of(struct target *t)
{
	struct delivery *d = t->waiting.first;
	webhook_queue_remove(&t->waiting, d);
	d->owner->ahead--;
	return d;
}

static bool may_send(const struct webhook *w, const struct target *t)
{
	return !w->draining && !t->disabled && target_usable(t);
}

static bool lease_lasts(const struct delivery *d)
{
	return d->lease_end_us - sys_mono_us() >= d->conf->delivery.timeout_us + SEND_MARGIN_US;
}

static void send_next(struct target *t)
{
	struct delivery *d = next_of(t);
	struct fault f = {0};
	d->conf = conf_ref(d->owner->conf); /* as they are now: a reload may have been between */
	d->endpoint = endpoint_ref(t->endpoint);
	if (!lease_lasts(d)) {
		webhook_give_back(d);
		return;
	}
	int e = delivery_send(d, &d->what, &f);
	if (e == ST_FULL) {
		log_warning("webhook.no_room", K_FAULT(&f));
		webhook_give_back(d);
		return;
	}
	webhook_queue_push(&d->owner->sending, d);
	t->in_flight++;
	if (e != 0)
		delivery_refuse(d, &f);
}

void webhook_queue_send(struct webhook *w)
{
	for (struct target *t = w->targets; t != NULL && w->ahead > 0; t = t->next) {
		bool good = may_send(w, t);
		while (good && t->waiting.n > 0 && t->in_flight < places(w, t)) {
			if (w->sending.n >= w->conf->delivery.max_in_flight) {
				targets_rotate(w, t); /* it is first next time */
				return;
			}
			send_next(t);
		}
		while (t->waiting.n > 0 && (!good || webhook_queue_ailing(t)))
			webhook_give_back(next_of(t));
	}
}

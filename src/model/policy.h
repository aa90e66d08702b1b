/*
 * policy - when to refresh and when to try again: margins, jitter, backoff, Retry-After. Pure arithmetic.
 *
 * The due time is always computed from stored facts, never trusted from memory. All times wall-clock
 * microseconds; `unit` arguments are random numbers in [0, 1) that the caller draws from sys.
 */
#ifndef REFRESHD_MODEL_POLICY_H
#define REFRESHD_MODEL_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "model/provider.h"

struct policy_life { /* what is known about a token pair */
	int64_t now;
	int64_t issued_at;	    /* 0: unknown */
	int64_t expires_in_us;	    /* from the reply or the import; <= 0: unknown */
	int64_t jwt_exp;	    /* from the access token itself; 0: unknown */
	int64_t last_lifetime_us;   /* of the token before; 0: unknown */
};

/* When the access token expires: what was said (capped by the provider's max_expires_in), else the provider's default,
 * else the JWT's exp, else the last lifetime, else one hour after issue - never "never". */
int64_t policy_expiry(const struct provider *p, const struct policy_life *l);

struct policy_margin {
	int64_t margin_us;     /* refresh.margin */
	double fraction;       /* refresh.margin_fraction */
};

struct policy_due {
	int64_t now;
	int64_t issued_at;	  /* 0: unknown, then now */
	int64_t expires_at;
	int64_t refresh_issued_at; /* when the refresh token was issued or last used; 0: issued_at */
	int64_t refresh_expires_at;/* hard end of the refresh token; 0: none known */
};
/* expiry - min(margin, fraction of the life), pulled forward by up to a tenth of that margin by `unit` so that herds
 * part; a life under 10 minutes: at half of it; never before not_before; a provider without
 * access_token_overlap: as late as a tenth of the margin allows; never later than half of the refresh token's
 * idle life after its last use, nor than its hard end minus the margin (unless the token was issued inside that
 * margin: a fixed end would make it due at once, for ever). An expiry that is past: now. not_before is the stronger. */
int64_t policy_due_at(const struct provider *p, const struct policy_margin *m, const struct policy_due *d, double unit);

/* Exponential with full jitter: base*2^(n-1) capped, of which between half and all is waited. n counts from 1. */
int64_t policy_backoff_us(unsigned n, int64_t base_us, int64_t cap_us, double unit);
/* The next try after the n-th failure in a row: 1 s doubling to 15 min, never sooner than retry_after_us (and then up
 * to a tenth later, so that those who were told the same time part). */
int64_t policy_retry_us(unsigned failures, int64_t retry_after_us, double unit);
/* Delay before webhook attempt n (2..10) : 5 s 5 m 30 m 2 h 5 h 10 h 14 h 20 h 24 h, +-20 %; -1: no more tries. */
int64_t policy_webhook_retry_us(unsigned attempt, int64_t retry_after_us, double unit);
/* Retry-After as delta seconds or HTTP date; 0 when it cannot be read; clamped to [0, max_us]. */
int64_t policy_retry_after_us(const char *value, int64_t now, int64_t max_us);

#endif

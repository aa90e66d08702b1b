/*
 * fake - controls of the fake io that services are tested over: virtual time, scripted HTTP, a journal.
 *
 * fake_loop.c implements io/loop.h, fake_httpc.c io/httpc.h and fake_journal.c io/journal.h; a service under
 * test does not notice. The clock is sys_virtual: call fake_clock_start first, then loop_new, httpc_new and journal_open as usual
 * (a resolver is not needed: NULL). Nothing happens by itself: time moves, and callbacks are called, only
 * inside the fake_loop_* functions. The fakes are as strict as the real ones: a callback never comes inside the
 * call that asked for it, exactly once, never after a cancel, and a loop that spins without time passing stops the test.
 */
#ifndef REFRESHD_TESTS_SIM_FAKE_H
#define REFRESHD_TESTS_SIM_FAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/httpc.h"
#include "io/journal.h"
#include "io/loop.h"

/* ---- loop ---- */
void fake_clock_start(uint64_t seed); /* sys_set(sys_virtual(seed)): 2026-01-01, mono at 1000 s */

/* Fires timers in the order of their due times, deferred calls and turn ends, moving both clocks, until mono_us. */
void fake_loop_run_until(struct loop *l, int64_t mono_us);
void fake_loop_run_for(struct loop *l, int64_t us);
/* Everything that is due now, without time passing. */
void fake_loop_settle(struct loop *l);
/* Runs until done(arg) or until limit_us have passed; returns what done says at the end. */
bool fake_loop_run_while_not(struct loop *l, bool (*done)(void *arg), void *arg, int64_t limit_us);
int64_t fake_loop_next_timer(const struct loop *l); /* mono time of the first set timer, INT64_MAX: none */
uint64_t fake_loop_turns(const struct loop *l);	    /* turns so far: idle means no new ones */
void fake_loop_signal(struct loop *l, int signo);   /* its callbacks come in the next turn */
void fake_loop_clock_jump(struct loop *l, int64_t wall_by_us); /* callbacks in the next turn */

/* ---- httpc ---- */
struct fake_request { /* as the server would see it; borrowed for the callback */
	struct httpc *httpc;
	unsigned number; /* 1 for the first of this httpc */
	const char *method, *url;
	const struct httpc_header *headers;
	size_t n_headers;
	const char *body; /* NUL-terminated; "" when there is none */
	size_t body_len;
	int64_t timeout_us;
	const struct httpc_request *request; /* everything else; its body is not valid any more */
};
const char *fake_request_header(const struct fake_request *q, const char *name); /* any case; NULL: absent */

struct fake_answer { /* preset to: complete, 200, empty body, after 1 ms, address 192.0.2.1 not checked */
	enum httpc_result result;
	enum httpc_error error;
	int status;
	const char *body; /* copied when the callback returns; NULL: none */
	size_t body_len;  /* 0: strlen(body) */
	const char *content_type, *retry_after; /* copied; NULL: absent */
	int64_t after_us;  /* until the completion; past the request's timeout it becomes a HTTPC_E_TIMEOUT */
	bool hang;	   /* never answers: the same at the request's timeout */
	const char *address; /* numeric IPv4 or IPv6: given to addr_allowed, which may refuse it; NULL: not asked */
	int start_code;	   /* not 0: httpc_start itself fails with this */
};
/* Called inside httpc_start for every request: must fill *a and call nothing of the service. */
typedef void fake_answer_fn(void *arg, const struct fake_request *q, struct fake_answer *a);
void fake_httpc_on_request(struct httpc *h, fake_answer_fn *fn, void *arg);
unsigned fake_httpc_started(const struct httpc *h); /* requests ever accepted */
unsigned fake_httpc_peak(const struct httpc *h);    /* most in flight at once */

/* ---- journal ---- one "disk" for the whole test: what is durable and not done outlives journal_close */
void fake_journal_wipe(void); /* an empty disk, default controls; at the start of every test */
uint64_t fake_journal_put(const void *p, size_t n); /* left over by an earlier life; its number */
void fake_journal_set_delay(int64_t us);   /* from the append to being durable; 0 (default): next turn */
void fake_journal_fail_append(int code);   /* journal_append itself returns it; 0: works again */
void fake_journal_fail_sync(int code);	   /* the callback gets it, the record is lost; 0: works again */
void fake_journal_set_room(uint64_t bytes); /* 0: enough for everybody */
void fake_journal_tell(struct journal *j, const struct fault *what); /* a note, at once */
void fake_journal_set_writable(struct journal *j, bool writable); /* state callback: next turn */
unsigned fake_journal_appended(void);	   /* records ever appended */
unsigned fake_journal_syncs(void);	   /* groups that became durable */
/* The i-th open (durable, not done) record on the disk, oldest first; NULL: there are not so many. */
const void *fake_journal_open_record(unsigned i, uint64_t *seq, size_t *n);

#endif

/*
 * multi - libcurl's multi interface on libevent, with the settings that measured fastest.
 */
#ifndef REFRESHD_BENCH_MULTI_H
#define REFRESHD_BENCH_MULTI_H

#include <curl/curl.h>
#include <event2/event.h>

struct multi {
	struct event_base *base;
	CURLM *curl;
	struct event *timer, *turn;
	void (*on_turn)(void *arg);
	void *arg;
};

/* on_turn: once a round of the loop in which something happened, behind the callbacks of all sockets. */
void multi_init(struct multi *m, unsigned long in_flight, void (*on_turn)(void *arg), void *arg);
void multi_fini(struct multi *m);
void multi_turn(struct multi *m); /* one is wanted */
void multi_add(struct multi *m, CURL *easy);
/* The next answer: its handle, out of the multi and with status 200 and nothing else; NULL when there is
 * none. */
CURL *multi_answered(struct multi *m);

#endif

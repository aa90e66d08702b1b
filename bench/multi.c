/*
 * multi - libcurl's multi interface on libevent.
 *
 * What measured fastest: epoll's changes in one go, and answers looked for once a round instead of after
 * every socket. Whatever is not an answer with status 200 ends the program.
 */
#include "multi.h"

#include <event2/event_struct.h>
#include <stdbool.h>

#include "common.h"

struct watch { /* one socket */
	struct event ev;
};

static void must(CURLMcode e)
{
	if (e != CURLM_OK)
		die("curl: %s", curl_multi_strerror(e));
}

void multi_turn(struct multi *m)
{
	event_active(m->turn, EV_TIMEOUT, 0);
}

static void drive(struct multi *m, curl_socket_t fd, int what)
{
	int running;
	must(curl_multi_socket_action(m->curl, fd, what, &running));
	multi_turn(m);
}

static void on_socket(evutil_socket_t fd, short what, void *arg)
{
	drive(arg, fd, (what & EV_READ ? CURL_CSELECT_IN : 0) | (what & EV_WRITE ? CURL_CSELECT_OUT : 0));
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	drive(arg, CURL_SOCKET_TIMEOUT, 0);
}

static void on_turn(evutil_socket_t fd, short what, void *arg)
{
	struct multi *m = arg;
	(void)fd;
	(void)what;
	m->on_turn(m->arg);
}

static int set_timer(CURLM *curl, long ms, void *arg)
{
	struct multi *m = arg;
	struct timeval t = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };
	(void)curl;
	if (ms < 0)
		event_del(m->timer);
	else if (ms == 0)
		event_active(m->timer, EV_TIMEOUT, 0);
	else
		event_add(m->timer, &t);
	return 0;
}

static int set_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *mine)
{
	struct multi *m = arg;
	struct watch *w = mine;
	(void)easy;
	if (what == CURL_POLL_REMOVE) {
		if (w != NULL)
			event_del(&w->ev);
		free(w);
		return 0;
	}
	if (w == NULL) {
		w = need(calloc(1, sizeof *w));
		must(curl_multi_assign(m->curl, fd, w));
	} else {
		event_del(&w->ev);
	}
	short events = (short)(EV_PERSIST | (what & CURL_POLL_IN ? EV_READ : 0) |
			       (what & CURL_POLL_OUT ? EV_WRITE : 0));
	event_assign(&w->ev, m->base, fd, events, on_socket, m);
	event_add(&w->ev, NULL);
	return 0;
}

void multi_add(struct multi *m, CURL *easy)
{
	must(curl_multi_add_handle(m->curl, easy));
}

CURL *multi_answered(struct multi *m)
{
	int left;
	long status = 0;
	CURLMsg *msg = curl_multi_info_read(m->curl, &left);
	if (msg == NULL)
		return NULL;
	CURL *easy = msg->easy_handle;
	CURLcode e = msg->data.result;
	curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
	if (e != CURLE_OK)
		die("the provider does not answer: %s", curl_easy_strerror(e));
	if (status != 200)
		die("the provider answers with status %ld", status);
	must(curl_multi_remove_handle(m->curl, easy));
	return easy;
}

void multi_init(struct multi *m, unsigned long in_flight, void (*turn)(void *arg), void *arg)
{
	struct event_config *how = need(event_config_new());
	event_config_set_flag(how, EVENT_BASE_FLAG_NOLOCK | EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST);
	m->base = need(event_base_new_with_config(how));
	event_config_free(how);
	if (curl_global_init(CURL_GLOBAL_ALL) != 0)
		die("curl cannot begin");
	m->timer = need(evtimer_new(m->base, on_timer, m));
	m->turn = need(evtimer_new(m->base, on_turn, m));
	m->on_turn = turn;
	m->arg = arg;
	m->curl = need(curl_multi_init());
	must(curl_multi_setopt(m->curl, CURLMOPT_SOCKETFUNCTION, set_socket));
	must(curl_multi_setopt(m->curl, CURLMOPT_SOCKETDATA, m));
	must(curl_multi_setopt(m->curl, CURLMOPT_TIMERFUNCTION, set_timer));
	must(curl_multi_setopt(m->curl, CURLMOPT_TIMERDATA, m));
	must(curl_multi_setopt(m->curl, CURLMOPT_MAXCONNECTS, (long)in_flight));
}

void multi_fini(struct multi *m)
{
	must(curl_multi_cleanup(m->curl));
	event_free(m->timer);
	event_free(m->turn);
	event_base_free(m->base);
	curl_global_cleanup();
}

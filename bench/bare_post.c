/*
 * bare_post - the least that asking a token endpoint costs with libcurl: one multi handle on libevent, so many in flight.
 *
 *	bare_post IN-FLIGHT CA-FILE URL USER:PASSWORD FILE
 *
 * POSTs each line of FILE as a refresh token and reads the answer to its end; certificates are verified, nothing is
 * parsed or kept. Settings are those that measured fastest. Prints "ready", waits for a line, then one JSON line.
 */
#include <curl/curl.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <stdbool.h>
#include <string.h>

#include "common.h"

struct slot {
	CURL *easy;
	size_t got;
	char body[2048];
};

struct watch { /* one socket */
	struct event ev;
};

struct loop {
	struct event_base *base;
	struct event *timer;
	CURLM *multi;
	struct curl_slist *headers;
	const char *url, *login, *ca;
	FILE *tokens;
	unsigned long n, under_way, bytes;
};

static void check_done(struct loop *l);

static void drive(struct loop *l, curl_socket_t fd, int what)
{
	int running;
	CURLMcode e = curl_multi_socket_action(l->multi, fd, what, &running);
	if (e != CURLM_OK)
		die("curl: %s", curl_multi_strerror(e));
	check_done(l);
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

static int set_timer(CURLM *multi, long ms, void *arg)
{
	struct loop *l = arg;
	struct timeval t = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };
	(void)multi;
	if (ms < 0)
		event_del(l->timer);
	else
		event_add(l->timer, &t);
	return 0;
}

static int set_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *mine)
{
	struct loop *l = arg;
	struct watch *w = mine;
	(void)easy;
	if (what == CURL_POLL_REMOVE) {
		event_del(&w->ev);
		free(w);
		return 0;
	}
	if (w == NULL) {
		w = need(calloc(1, sizeof *w));
		curl_multi_assign(l->multi, fd, w);
	} else {
		event_del(&w->ev);
	}
	event_assign(&w->ev, l->base, fd,
		(short)(EV_PERSIST | (what & CURL_POLL_IN ? EV_READ : 0) | (what & CURL_POLL_OUT ? EV_WRITE : 0)), on_socket, l);
	event_add(&w->ev, NULL);
	return 0;
}

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
	struct slot *s = arg;
	(void)data;
	s->got += size * n;
	return size * n;
}

/* Begins the next line in this slot; false at the end of the file. */
static bool begin(struct loop *l, struct slot *s)
{
	static const char fixed[] = "grant_type=refresh_token&refresh_token=";
	memcpy(s->body, fixed, sizeof fixed - 1);
	char *token = s->body + sizeof fixed - 1;
	if (fgets(token, (int)(sizeof s->body - sizeof fixed), l->tokens) == NULL)
		return false;
	token[strcspn(token, "\n")] = '\0';
	s->got = 0;
	curl_easy_reset(s->easy);
	curl_easy_setopt(s->easy, CURLOPT_PRIVATE, s);
	curl_easy_setopt(s->easy, CURLOPT_URL, l->url);
	curl_easy_setopt(s->easy, CURLOPT_CAINFO, l->ca);
	curl_easy_setopt(s->easy, CURLOPT_CAPATH, NULL);
	curl_easy_setopt(s->easy, CURLOPT_USERPWD, l->login);
	curl_easy_setopt(s->easy, CURLOPT_HTTPHEADER, l->headers);
	curl_easy_setopt(s->easy, CURLOPT_POSTFIELDS, s->body);
	curl_easy_setopt(s->easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(s->easy, CURLOPT_TIMEOUT_MS, 30000L);
	curl_easy_setopt(s->easy, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(s->easy, CURLOPT_WRITEDATA, s);
	CURLMcode e = curl_multi_add_handle(l->multi, s->easy);
	if (e != CURLM_OK)
		die("curl: %s", curl_multi_strerror(e));
	l->under_way++;
	return true;
}

static void check_done(struct loop *l)
{
	CURLMsg *m;
	int left;
	while ((m = curl_multi_info_read(l->multi, &left)) != NULL) {
		struct slot *s;
		long status = 0;
		CURLcode e = m->data.result;
		CURL *easy = m->easy_handle;
		char *mine;
		curl_easy_getinfo(easy, CURLINFO_PRIVATE, &mine);
		curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
		s = (void *)mine;
		if (e != CURLE_OK || status != 200)
			die("%s, status %ld", curl_easy_strerror(e), status);
		curl_multi_remove_handle(l->multi, easy);
		l->bytes += s->got;
		l->n++;
		l->under_way--;
		if (!begin(l, s) && l->under_way == 0)
			event_base_loopbreak(l->base);
	}
}

static void loop_init(struct loop *l, long in_flight)
{
	struct event_config *how = need(event_config_new());
	event_config_set_flag(how, EVENT_BASE_FLAG_NOLOCK | EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST);
	l->base = need(event_base_new_with_config(how));
	event_config_free(how);
	l->timer = need(evtimer_new(l->base, on_timer, l));
	l->headers = need(curl_slist_append(NULL, "Accept: application/json"));
	l->multi = need(curl_multi_init());
	curl_multi_setopt(l->multi, CURLMOPT_SOCKETFUNCTION, set_socket);
	curl_multi_setopt(l->multi, CURLMOPT_SOCKETDATA, l);
	curl_multi_setopt(l->multi, CURLMOPT_TIMERFUNCTION, set_timer);
	curl_multi_setopt(l->multi, CURLMOPT_TIMERDATA, l);
	curl_multi_setopt(l->multi, CURLMOPT_MAXCONNECTS, in_flight);
}

int main(int argc, char **argv)
{
	struct loop l = { 0 };
	if (argc != 6)
		die("usage: bare_post IN-FLIGHT CA-FILE URL USER:PASSWORD FILE");
	unsigned long in_flight = strtoul(argv[1], NULL, 10);
	l.ca = argv[2];
	l.url = argv[3];
	l.login = argv[4];
	l.tokens = fopen(argv[5], "r");
	if (in_flight < 1 || in_flight > 1000 || l.tokens == NULL)
		die("1 to 1000 in flight, and a file that can be read");
	if (curl_global_init(CURL_GLOBAL_ALL) != 0)
		die("curl cannot begin");
	loop_init(&l, (long)in_flight);
	struct slot *slots = need(calloc(in_flight, sizeof *slots));
	printf("ready\n");
	fflush(stdout);
	if (getchar() == EOF)
		die("nobody says go");
	int64_t began = now_us(), cpu = cpu_us();
	for (unsigned long i = 0; i < in_flight; i++) {
		slots[i].easy = need(curl_easy_init());
		begin(&l, &slots[i]);
	}
	event_base_dispatch(l.base);
	int64_t wall = now_us() - began;
	if (l.n == 0 || l.under_way > 0)
		die("%lu answers, %lu are missing", l.n, l.under_way);
	printf("{\"n\":%lu,\"bytes\":%lu,\"seconds\":%.6f,\"per_s\":%.1f,\"cpu_us\":%.3f}\n", l.n, l.bytes, (double)wall / 1e6,
		(double)l.n * 1e6 / (double)wall, (double)(cpu_us() - cpu) / (double)l.n);
	for (unsigned long i = 0; i < in_flight; i++)
		curl_easy_cleanup(slots[i].easy);
	curl_multi_cleanup(l.multi);
	curl_slist_free_all(l.headers);
	event_free(l.timer);
	event_base_free(l.base);
	fclose(l.tokens);
	free(slots);
	return 0;
}

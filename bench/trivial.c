/*
 * trivial - the least that libevent's HTTP server can do with a POST: read the body, answer a few words.
 *
 * What the API is measured against. Prints {"port":N} when it listens on 127.0.0.1, and ends with SIGTERM.
 */
#include <arpa/inet.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>

#include "common.h"

static void on_request(struct evhttp_request *r, void *arg)
{
	static const char text[] = "{\"status_code\":200,\"status\":\"OK\"}\n";
	struct evbuffer *out = arg;
	if (evhttp_request_get_command(r) != EVHTTP_REQ_POST || evbuffer_get_length(evhttp_request_get_input_buffer(r)) == 0)
		die("something that is no POST with a body");
	evhttp_add_header(evhttp_request_get_output_headers(r), "Content-Type", "application/json");
	evbuffer_add(out, text, sizeof text - 1);
	evhttp_send_reply(r, 200, "OK", out);
}

static void on_signal(evutil_socket_t signo, short what, void *arg)
{
	(void)signo;
	(void)what;
	event_base_loopbreak(arg);
}

int main(void)
{
	struct sockaddr_in at;
	socklen_t size = sizeof at;
	struct event_base *base = need(event_base_new());
	struct evhttp *http = need(evhttp_new(base));
	struct evbuffer *out = need(evbuffer_new());
	struct event *term = need(evsignal_new(base, SIGTERM, on_signal, base));
	event_add(term, NULL);
	evhttp_set_max_body_size(http, 1 << 20);
	evhttp_set_gencb(http, on_request, out);
	struct evhttp_bound_socket *bound = evhttp_bind_socket_with_handle(http, "127.0.0.1", 0);
	if (bound == NULL || getsockname(evhttp_bound_socket_get_fd(bound), (struct sockaddr *)&at, &size) != 0)
		die("cannot listen");
	printf("{\"port\":%u}\n", (unsigned)ntohs(at.sin_port));
	fflush(stdout);
	event_base_dispatch(base);
	event_free(term);
	evhttp_free(http);
	evbuffer_free(out);
	event_base_free(base);
	return 0;
}

/*
 * httpc_call - one request on one libcurl easy handle: its options, its callbacks and the verdict on how
 * it ended. Private to httpc.
 */
#ifndef REFRESHD_IO_HTTPC_CALL_H
#define REFRESHD_IO_HTTPC_CALL_H

#include <curl/curl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "io/httpc.h"
#include "io/httpc_url.h"
#include "io/loop.h"
#include "io/resolver.h"

struct httpc_call {
	unsigned magic;
	struct httpc *httpc;
	struct httpc_call *next, *prev;
	httpc_fn *fn;
	void *arg;

	/* the request */
	struct httpc_url *url;
	bool post, allow_http, fresh_connection, own_user_agent;
	struct curl_slist *headers; /* one block of as many; the last one goes on to those of all calls */
	size_t n_headers;
	struct buf header_text; /* secret */
	struct curl_slist *resolve;
	struct buf body;
	const char *ca_file, *cert_file, *key_file;
	int64_t timeout_us, connect_timeout_us;
	bool (*addr_allowed)(const struct sockaddr *sa, void *arg);
	void *addr_arg;

	/* where it stands */
	struct resolver_query *query; /* while the name is asked for */
	struct loop_timer *timer;     /* of the look-up, then of the whole */
	struct loop_task ending;
	int64_t start_mono_us, run_mono_us;
	CURL *easy; /* while it is in the multi */
	bool overdue, opened_socket, prepared, tried_again, refused_addr, refused_resend, too_late, too_large;
#ifdef REFRESHD_TORTURE
	bool watched;
#endif

	/* the reply so far */
	size_t header_bytes;
	bool headers_done;
	int64_t content_length; /* -1: not known */
	char error_text[CURL_ERROR_SIZE];
	struct httpc_reply reply;
};

/* What all calls of a client share. */
struct httpc_call_env {
	const char *ca_file;
	long max_idle_s, max_lifetime_s; /* 0: libcurl's default */
	struct curl_slist user_agent, no_expect; /* headers: the first goes on to the second */
	struct httpc_urls urls;
};

/* Check the request and build the call; the body is moved last. ST_INVALID. */
int httpc_call_new(const struct httpc_request *req, struct httpc_call_env *env, struct httpc_call **out, struct fault *f) MUST_USE;
void httpc_call_free(struct httpc_call *c); /* wipes what may be secret; not in a list or multi any more */
/* Pin the host to addresses. Not for a numeric host. */
void httpc_call_pin(struct httpc_call *c, const struct resolver_addrs *addrs);
/* Once for a new handle: every option that is the same for all calls. ST_INVALID when libcurl refuses one. */
int httpc_call_prepare(CURL *easy, const struct httpc_call_env *env) MUST_USE;
/* Set every other option on c->easy. ST_INVALID when libcurl refuses one. */
int httpc_call_setup(struct httpc_call *c, const struct httpc_call_env *env) MUST_USE;
/* Take everything of the call out of c->easy. False: the handle must not serve another call. */
bool httpc_call_strip(struct httpc_call *c) MUST_USE;
/* Fill result, error, status and times of c->reply from how libcurl ended. */
void httpc_call_judge(struct httpc_call *c, CURLcode rc);

#endif

/*
 * httpc_call - the rules of one request towards libcurl.
 *
 * Why here: what makes a request safe to send (no second presentation, no foreign address, no resolver
 * inside libcurl) is a matter of options and callbacks on the easy handle, apart from the socket
 * plumbing. The callbacks run inside libcurl: they only look at and fill the call, and never call back
 * into libcurl's multi.
 */
#include "io/httpc_call.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/header.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

#define MAX_HEADER_BYTES (64U << 10)
#define MAX_REQUEST_HEADER_BYTES (64U << 10)
/* Longer than any request: a pinned name must not fall out of libcurl's cache while a request waits. */
#define PIN_S 3600L
#define CA_CACHE_S 3600L

/* --- building */

static void append(struct curl_slist **list, const char *line)
{
	struct curl_slist *longer = curl_slist_append(*list, line);
	ALWAYS(longer != NULL);
	*list = longer;
}

/* libcurl writes this one by itself, in one piece instead of letter by letter. */
static bool is_plain_form(const struct httpc_header *h)
{
	return str_eq_nocase(h->name, strlen(h->name), "content-type") && strcmp(h->value, "application/x-www-form-urlencoded") == 0;
}

static int add_header(struct httpc_call *c, const struct httpc_header *h, struct fault *f)
{
	if (!header_is_name(h->name))
		return fault_set(f, ST_INVALID, "a header name is empty or has a character that is not allowed");
	/* Framing and routing are libcurl's; a second opinion in the headers would only be a way to smuggle. */
	if (header_is_transport(h->name))
		return fault_set(f, ST_INVALID, "header %s: is set by the program itself", h->name);
	size_t name_len = strlen(h->name), value_len = strlen(h->value);
	if (str_has_ctl(h->value, value_len))
		return fault_set(f, ST_INVALID, "header %s: control characters in the value", h->name);
	if (name_len + value_len > MAX_REQUEST_HEADER_BYTES)
		return fault_set(f, ST_INVALID, "header %s: too long", h->name);
	if (c->post && is_plain_form(h))
		return 0;
	/* libcurl's way to write a header without a value is a semicolon. */
	bool empty = h->value[strspn(h->value, " ")] == '\0';
	struct buf *text = &c->header_text;
	c->headers[c->n_headers++].data = (char *)text->data + text->len;
	ALWAYS(buf_append(text, h->name, name_len) == 0 && buf_puts(text, empty ? ";" : ": ") == 0 &&
		buf_append(text, h->value, empty ? 0 : value_len) == 0 && buf_putc(text, '\0') == 0);
	c->own_user_agent = c->own_user_agent || str_eq_nocase(h->name, name_len, "user-agent");
	return 0;
}

/* The names and values in one block that does not move, and the list that libcurl wants in another. */
static int add_headers(struct httpc_call *c, const struct httpc_request *req, struct httpc_call_env *env, struct fault *f)
{
	size_t room = 0;
	int rc = 0;
	for (size_t i = 0; i < req->n_headers; i++)
		room += strlen(req->headers[i].name) + strlen(": ") + strlen(req->headers[i].value) + 1;
	ALWAYS(buf_reserve(&c->header_text, room) == 0);
	c->headers = mem_calloc(req->n_headers + 1, sizeof *c->headers);
	for (size_t i = 0; rc == 0 && i < req->n_headers; i++)
		rc = add_header(c, &req->headers[i], f);
	for (size_t i = 0; i + 1 < c->n_headers; i++)
		c->headers[i].next = &c->headers[i + 1];
	struct curl_slist *common = c->own_user_agent ? &env->no_expect : &env->user_agent;
	if (c->n_headers > 0)
		c->headers[c->n_headers - 1].next = common;
	else
		*c->headers = *common;
	return rc;
}

static int check(const struct httpc_request *req, struct httpc_call_env *env, struct httpc_call *c, struct fault *f)
{
	c->post = strcmp(req->method, "POST") == 0;
	if (!c->post && strcmp(req->method, "GET") != 0)
		return fault_set(f, ST_INVALID, "method \"%s\": only GET and POST are sent", req->method);
	if (!c->post && req->body != NULL)
		return fault_set(f, ST_INVALID, "a GET request cannot carry a body");
	if (req->timeout_us <= 0 || req->max_reply_bytes == 0)
		return fault_set(f, ST_INVALID, "a request needs a timeout and a limit for the reply");
	if ((req->cert_file == NULL) != (req->key_file == NULL))
		return fault_set(f, ST_INVALID, "a client certificate needs both a certificate and a key file");
	int rc = httpc_url_get(&env->urls, req->url, req->keep_url, &c->url, f);
	if (rc != 0)
		return rc;
	if (strcmp(c->url->parts.scheme, "https") != 0 && !req->allow_http)
		return fault_set(f, ST_INVALID, "URL: https is required");
	return add_headers(c, req, env, f);
}

int httpc_call_new(const struct httpc_request *req, struct httpc_call_env *env, struct httpc_call **out, struct fault *f)
{
	struct httpc_call *c = mem_alloc(sizeof *c);
	buf_init_secret(&c->header_text, SIZE_MAX); /* each header is bounded; how many there are is ours */
	buf_init_secret(&c->body, 0);
	buf_init_secret(&c->reply.body, req->max_reply_bytes);
	int rc = check(req, env, c, f);
	if (rc != 0) {
		httpc_call_free(c);
		return rc == ST_INVALID ? rc : ST_INVALID;
	}
	c->allow_http = req->allow_http;
	c->fresh_connection = req->fresh_connection;
#ifdef REFRESHD_TORTURE
	c->watched = req->watched;
#endif
	c->ca_file = req->ca_file;
	c->cert_file = req->cert_file;
	c->key_file = req->key_file;
	c->timeout_us = req->timeout_us;
	c->connect_timeout_us = req->connect_timeout_us > 0 ? req->connect_timeout_us : req->timeout_us;
	c->addr_allowed = req->addr_allowed;
	c->addr_arg = req->addr_arg;
	c->content_length = -1;
	if (req->body != NULL)
		buf_move(&c->body, req->body);
	*out = c;
	return 0;
}

static void body_wipe(struct httpc_call *c)
{
	/* Whatever kind the caller's buffer was: what was sent is not left in memory. */
	if (c->body.data != NULL)
		mem_wipe(c->body.data, c->body.cap);
	buf_fini(&c->body);
}

void httpc_call_free(struct httpc_call *c)
{
	if (c == NULL)
		return;
	body_wipe(c);
	buf_fini(&c->reply.body);
	buf_fini(&c->header_text);
	mem_free(c->headers);
	curl_slist_free_all(c->resolve);
	httpc_url_unref(c->url);
	c->magic = 0;
	mem_free(c);
}

void httpc_call_pin(struct httpc_call *c, const struct resolver_addrs *addrs)
{
	struct buf line;
	buf_init(&line, 2048);
	int rc = buf_printf(&line, "+%s:%u:", c->url->parts.host, c->url->parts.port);
	for (unsigned i = 0; rc == 0 && i < addrs->n; i++) {
		char text[INET6_ADDRSTRLEN];
		const struct sockaddr *sa = (const struct sockaddr *)&addrs->addr[i];
		bool v4 = sa->sa_family == AF_INET;
		const void *raw = v4 ? (const void *)&((const struct sockaddr_in *)(const void *)sa)->sin_addr :
				       (const void *)&((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr;
		ALWAYS(inet_ntop(sa->sa_family, raw, text, sizeof text) != NULL);
		rc = buf_printf(&line, v4 ? "%s%s" : "%s[%s]", i > 0 ? "," : "", text);
	}
	ALWAYS(rc == 0);
	append(&c->resolve, buf_str(&line));
	buf_fini(&line);
}

/* --- callbacks inside libcurl */

static size_t on_write(char *data, size_t size, size_t n, void *arg)
{
	struct httpc_call *c = arg;
	if (buf_append(&c->reply.body, data, size * n) == 0)
		return size * n;
	c->too_large = true;
	return 0;
}

static void status_line(struct httpc_call *c, const char *line, size_t n)
{
	const char *space = memchr(line, ' ', n);
	int64_t status;
	c->headers_done = false;
	c->content_length = -1;
	c->reply.content_type[0] = '\0';
	c->reply.retry_after[0] = '\0';
	c->reply.status = 0;
	if (space == NULL || (size_t)(line + n - space) < 4 || str_parse_i64(space + 1, 3, &status) != 0)
		return;
	/* 1xx is not an answer. */
	if (status >= 200 && status <= 599)
		c->reply.status = (int)status;
}

static void keep(char *out, size_t size, const char *v, size_t n)
{
	out[0] = '\0';
	if (n == 0 || n >= size)
		return;
	for (size_t i = 0; i < n; i++) {
		if (v[i] < 0x20 || v[i] > 0x7e)
			return;
	}
	memcpy(out, v, n);
	out[n] = '\0';
}

static void header_line(struct httpc_call *c, const char *line, size_t n)
{
	const char *colon = memchr(line, ':', n);
	if (colon == NULL)
		return;
	const char *v = colon + 1, *end = line + n;
	size_t name_len = (size_t)(colon - line);
	while (v < end && (*v == ' ' || *v == '\t'))
		v++;
	while (end > v && (end[-1] == ' ' || end[-1] == '\t' || end[-1] == '\r' || end[-1] == '\n'))
		end--;
	size_t len = (size_t)(end - v);
	int64_t length;
	if (str_eq_nocase(line, name_len, "content-type")) {
		keep(c->reply.content_type, sizeof c->reply.content_type, v, len);
	} else if (str_eq_nocase(line, name_len, "retry-after")) {
		keep(c->reply.retry_after, sizeof c->reply.retry_after, v, len);
	} else if (str_eq_nocase(line, name_len, "content-length")) {
		bool good = len > 0 && *v != '-' && str_parse_i64(v, len, &length) == 0;
		c->content_length = good ? length : -1;
	}
}

static size_t on_header(char *line, size_t size, size_t n, void *arg)
{
	struct httpc_call *c = arg;
	size_t len = size * n;
	c->header_bytes += len;
	if (c->header_bytes > MAX_HEADER_BYTES) {
		c->too_large = true;
		return 0;
	}
	if (len >= 5 && memcmp(line, "HTTP/", 5) == 0)
		status_line(c, line, len);
	else if (len <= 2 && (line[0] == '\r' || line[0] == '\n'))
		c->headers_done = c->reply.status != 0;
	else if (!c->headers_done) /* what comes after the body is a trailer */
		header_line(c, line, len);
	FAILPOINT_IF(c->watched && c->headers_done && len <= 2, half_reply);
	return len;
}

static curl_socket_t on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *addr)
{
	struct httpc_call *c = arg;
	if (purpose != CURLSOCKTYPE_IPCXN)
		return CURL_SOCKET_BAD;
	if (c->addr_allowed != NULL && !c->addr_allowed(&addr->addr, c->addr_arg)) {
		c->refused_addr = true;
		return CURL_SOCKET_BAD;
	}
	curl_socket_t fd = socket(addr->family, addr->socktype | SOCK_CLOEXEC, addr->protocol);
	if (fd >= 0)
		c->opened_socket = true;
	return fd < 0 ? CURL_SOCKET_BAD : fd;
}

static bool peer_allowed(const struct httpc_call *c, const char *ip, int port)
{
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	struct sockaddr_in6 sin6 = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port) };
	if (c->addr_allowed == NULL)
		return true;
	if (inet_pton(AF_INET, ip, &sin.sin_addr) == 1)
		return c->addr_allowed((const struct sockaddr *)&sin, c->addr_arg);
	if (inet_pton(AF_INET6, ip, &sin6.sin6_addr) == 1)
		return c->addr_allowed((const struct sockaddr *)&sin6, c->addr_arg);
	return false;
}

/* Of this request, on any connection. Before it was prepared for one, libcurl counts what the handle did for another. */
static long bytes_sent(const struct httpc_call *c)
{
	long n = 0;
	if (c->prepared)
		(void)curl_easy_getinfo(c->easy, CURLINFO_REQUEST_SIZE, &n);
	return n;
}

/* On a connection that is up, also a kept one, before the request goes out on it: libcurl has no way round this, so here a second
 * presentation ends. */
static int on_prereq(void *arg, char *ip, char *local_ip, int port, int local_port)
{
	struct httpc_call *c = arg;
	(void)local_ip;
	(void)local_port;
	if (!peer_allowed(c, ip, port)) {
		c->refused_addr = true;
		c->opened_socket = false;
		return CURL_PREREQFUNC_ABORT;
	}
	/* The process was stopped or its machine slept while the connection was made: whoever counts on our time-out may have gone on. */
	if (sys_mono_us() - c->start_mono_us >= c->timeout_us) {
		c->too_late = true;
		return CURL_PREREQFUNC_ABORT;
	}
	/* libcurl tries a second connection when a kept one died. That is fine as long as nothing was shown to
	 * anybody on the first one. */
	long new_connections = 0;
	c->tried_again = c->prepared;
	if (bytes_sent(c) > 0) {
		c->refused_resend = true;
		return CURL_PREREQFUNC_ABORT;
	}
	/* Asked here: once libcurl has thought of a second try, its count is of that one. */
	(void)curl_easy_getinfo(c->easy, CURLINFO_NUM_CONNECTS, &new_connections);
	c->reply.reused_connection = new_connections == 0;
	c->prepared = true;
	FAILPOINT_SOON_IF(c->watched, sent);
	return CURL_PREREQFUNC_OK;
}

static int on_resolve(void *state, void *reserved, void *arg)
{
	(void)state;
	(void)reserved;
	(void)arg;
	return 1;
}

/* --- options */

static int64_t ms_of(int64_t us)
{
	return us <= US_PER_MS ? 1 : (us + US_PER_MS - 1) / US_PER_MS;
}

#define SET(opt, value) (rc = rc != CURLE_OK ? rc : curl_easy_setopt(easy, (opt), (value)))

static CURLcode prepare_network(CURL *easy, const struct httpc_call_env *env)
{
	CURLcode rc = CURLE_OK;
	SET(CURLOPT_NOSIGNAL, 1L);
	/* Both: or the environment is asked for the other each time. */
	SET(CURLOPT_PROXY, "");
	SET(CURLOPT_NOPROXY, "*");
	SET(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
	SET(CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
	SET(CURLOPT_PREREQFUNCTION, on_prereq);
	SET(CURLOPT_DNS_CACHE_TIMEOUT, PIN_S);
	if (env->max_idle_s > 0)
		SET(CURLOPT_MAXAGE_CONN, env->max_idle_s);
	if (env->max_lifetime_s > 0)
		SET(CURLOPT_MAXLIFETIME_CONN, env->max_lifetime_s);
	return rc;
}

static CURLcode prepare_tls(CURL *easy)
{
	CURLcode rc = CURLE_OK;
	SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	/* Not NULL by default on Debian, and then every connection parses the whole bundle again (20 ms). */
	SET(CURLOPT_CAPATH, (char *)NULL);
	SET(CURLOPT_CA_CACHE_TIMEOUT, CA_CACHE_S);
	return rc;
}

static CURLcode prepare_http(CURL *easy)
{
	CURLcode rc = CURLE_OK;
	SET(CURLOPT_PATH_AS_IS, 1L);
	SET(CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_HTTP_CONTENT_DECODING, 0L);
	SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
	SET(CURLOPT_HEADERFUNCTION, on_header);
	SET(CURLOPT_WRITEFUNCTION, on_write);
	return rc;
}

int httpc_call_prepare(CURL *easy, const struct httpc_call_env *env)
{
	CURLcode rc = prepare_network(easy, env);
	if (rc == CURLE_OK)
		rc = prepare_tls(easy);
	if (rc == CURLE_OK)
		rc = prepare_http(easy);
	return rc == CURLE_OK ? 0 : ST_INVALID;
}

static CURLcode set_network(CURL *easy, struct httpc_call *c, const struct httpc_call_env *env)
{
	CURLcode rc = CURLE_OK;
	bool by_name = !c->url->parts.host_is_ip;
	int64_t left_us = c->timeout_us - (c->run_mono_us - c->start_mono_us);
	SET(CURLOPT_PROTOCOLS_STR, c->allow_http ? "http,https" : "https");
	/* No CURLOPT_TIMEOUT_MS: libcurl looks at the time before it looks at the socket. See on_timeout in httpc.c. */
	int64_t connect_us = c->connect_timeout_us < left_us ? c->connect_timeout_us : left_us;
	SET(CURLOPT_CONNECTTIMEOUT_MS, (long)ms_of(connect_us));
	SET(CURLOPT_OPENSOCKETDATA, c);
	SET(CURLOPT_PREREQDATA, c);
	SET(CURLOPT_FRESH_CONNECT, c->fresh_connection ? 1L : 0L);
	SET(CURLOPT_RESOLVE, by_name ? c->resolve : NULL);
	SET(CURLOPT_RESOLVER_START_FUNCTION, by_name ? on_resolve : NULL);
	SET(CURLOPT_CAINFO, c->ca_file != NULL ? c->ca_file : env->ca_file);
	if (c->cert_file != NULL) {
		SET(CURLOPT_SSLCERT, c->cert_file);
		SET(CURLOPT_SSLKEY, c->key_file);
	}
	return rc;
}

static CURLcode set_http(CURL *easy, struct httpc_call *c)
{
	CURLcode rc = CURLE_OK;
	/* The first is what counts; without the second libcurl would write it out again. */
	SET(CURLOPT_CURLU, c->url->parsed);
	SET(CURLOPT_URL, c->url->text);
	/* Without TLS nothing tells before the first answer whether a connection can be shared: all others would wait for it. */
	SET(CURLOPT_PIPEWAIT, strcmp(c->url->parts.scheme, "https") == 0 ? 1L : 0L);
	SET(CURLOPT_HTTPHEADER, c->headers);
	SET(CURLOPT_HEADERDATA, c);
	SET(CURLOPT_WRITEDATA, c);
	SET(CURLOPT_ERRORBUFFER, c->error_text);
	if (!c->post) {
		SET(CURLOPT_HTTPGET, 1L);
		return rc;
	}
	SET(CURLOPT_POST, 1L);
	/* By reference, and not by a callback: then headers and body leave in one piece. */
	SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)c->body.len);
	SET(CURLOPT_POSTFIELDS, buf_str(&c->body));
	return rc;
}

int httpc_call_setup(struct httpc_call *c, const struct httpc_call_env *env)
{
	CURLcode rc = set_network(c->easy, c, env);
	if (rc == CURLE_OK)
		rc = set_http(c->easy, c);
	return rc == CURLE_OK ? 0 : ST_INVALID;
}

bool httpc_call_strip(struct httpc_call *c)
{
	CURL *easy = c->easy;
	CURLcode rc = CURLE_OK;
	SET(CURLOPT_CURLU, (CURLU *)NULL);
	SET(CURLOPT_URL, (char *)NULL);
	SET(CURLOPT_HTTPHEADER, (struct curl_slist *)NULL);
	SET(CURLOPT_POSTFIELDS, (char *)NULL);
	SET(CURLOPT_RESOLVE, (struct curl_slist *)NULL);
	SET(CURLOPT_ERRORBUFFER, (char *)NULL);
	/* A certificate is one client's alone, and libcurl counts second tries by the handle. */
	return rc == CURLE_OK && c->cert_file == NULL && !c->tried_again;
}

/* --- the verdict */

static enum httpc_error error_of(const struct httpc_call *c, CURLcode rc)
{
	if (c->too_large)
		return HTTPC_E_TOO_LARGE;
	if (c->refused_resend)
		return HTTPC_E_CLOSED;
	if (c->too_late)
		return HTTPC_E_TIMEOUT;
	/* An address that was refused does not matter once another one could be tried. */
	if (c->refused_addr && !c->opened_socket)
		return HTTPC_E_REFUSED_ADDR;
	switch ((int)rc) {
	case CURLE_COULDNT_RESOLVE_HOST:
		return HTTPC_E_RESOLVE;
	case CURLE_COULDNT_CONNECT:
	case CURLE_INTERFACE_FAILED:
		return HTTPC_E_CONNECT;
	case CURLE_OPERATION_TIMEDOUT:
		return HTTPC_E_TIMEOUT;
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_CERTPROBLEM:
	case CURLE_SSL_CIPHER:
	case CURLE_SSL_CACERT_BADFILE:
	case CURLE_SSL_ISSUER_ERROR:
	case CURLE_SSL_PINNEDPUBKEYNOTMATCH:
	case CURLE_SSL_INVALIDCERTSTATUS:
	case CURLE_SSL_CLIENTCERT:
	case CURLE_USE_SSL_FAILED:
		return HTTPC_E_TLS;
	case CURLE_GOT_NOTHING:
	case CURLE_SEND_ERROR:
	case CURLE_RECV_ERROR:
	case CURLE_PARTIAL_FILE:
	case CURLE_SEND_FAIL_REWIND:
	case CURLE_SSL_SHUTDOWN_FAILED:
		return HTTPC_E_CLOSED;
	case CURLE_OK: /* but no status */
	case CURLE_WEIRD_SERVER_REPLY:
	case CURLE_UNSUPPORTED_PROTOCOL: /* HTTP/0.9 */
	case CURLE_BAD_CONTENT_ENCODING:
	case CURLE_HTTP2:
	case CURLE_HTTP2_STREAM:
		return HTTPC_E_PROTOCOL;
	default:
		return HTTPC_E_INTERNAL;
	}
}

/*
 * An error after the last byte of a good answer does not make it less of an answer, and it may hold the
 * only copy of a rotated token. libcurl 7.88 ends with error 92 and no words of its own when the peer
 * answered and closed its stream cleanly before our body was out (a reset has words).
 */
static bool is_whole(const struct httpc_call *c, CURLcode rc)
{
	if (c->too_large || !c->headers_done || c->reply.status < 200 || c->reply.status > 299)
		return false;
	if (c->content_length >= 0)
		return c->reply.body.len == (uint64_t)c->content_length;
	return rc == CURLE_HTTP2_STREAM && (c->error_text[0] == '\0' ||
		strcmp(c->error_text, curl_easy_strerror(CURLE_HTTP2_STREAM)) == 0);
}

static void set_times(struct httpc_call *c)
{
	curl_off_t total = 0, connect = 0, tls = 0;
	(void)curl_easy_getinfo(c->easy, CURLINFO_TOTAL_TIME_T, &total);
	(void)curl_easy_getinfo(c->easy, CURLINFO_CONNECT_TIME_T, &connect);
	(void)curl_easy_getinfo(c->easy, CURLINFO_APPCONNECT_TIME_T, &tls);
	c->reply.duration_us = (int64_t)total;
	if (!c->reply.reused_connection)
		c->reply.connect_us = (c->run_mono_us - c->start_mono_us) + (int64_t)(tls > connect ? tls : connect);
}

void httpc_call_judge(struct httpc_call *c, CURLcode rc)
{
	bool sent = bytes_sent(c) > 0;
	set_times(c);
	/* libcurl is also content with headers that end in the middle. */
	if ((rc == CURLE_OK && c->headers_done) || (rc != CURLE_OK && is_whole(c, rc))) {
		c->reply.result = HTTPC_COMPLETE;
		c->reply.error = HTTPC_E_NONE;
		return;
	}
	/* Success without an answer happens when libcurl gave up a rewind (curl issue 2801). */
	c->reply.result = sent || rc == CURLE_OK ? HTTPC_CUT : HTTPC_NEVER_SENT;
	c->reply.error = error_of(c, rc);
}

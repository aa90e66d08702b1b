/*
 * bare_post - the least that asking a token endpoint costs with libcurl: one multi handle on libevent, so many in flight.
 *
 *	bare_post IN-FLIGHT CA-FILE URL USER:PASSWORD FILE
 *
 * POSTs each line of FILE as a refresh token and reads the answer to its end; certificates are verified, nothing is
 * parsed or kept. Settings are those that measured fastest. Prints "ready", waits for a line, then one JSON line.
 */
#include <stdbool.h>
#include <string.h>

#include "common.h"
#include "multi.h"

struct slot {
	CURL *easy;
	size_t got;
	char body[2048];
};

struct loop {
	struct multi multi;
	struct curl_slist *headers;
	const char *url, *login, *ca;
	FILE *tokens;
	unsigned long n, under_way, bytes;
};

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
	multi_add(&l->multi, s->easy);
	l->under_way++;
	return true;
}

static void on_turn(void *arg)
{
	struct loop *l = arg;
	CURL *easy;
	while ((easy = multi_answered(&l->multi)) != NULL) {
		char *mine;
		curl_easy_getinfo(easy, CURLINFO_PRIVATE, &mine);
		struct slot *s = (void *)mine;
		l->bytes += s->got;
		l->n++;
		l->under_way--;
		if (!begin(l, s) && l->under_way == 0)
			event_base_loopbreak(l->multi.base);
	}
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
	multi_init(&l.multi, in_flight, on_turn, &l);
	l.headers = need(curl_slist_append(NULL, "Accept: application/json"));
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
	event_base_dispatch(l.multi.base);
	int64_t wall = now_us() - began;
	if (l.n == 0 || l.under_way > 0)
		die("%lu answers, %lu are missing", l.n, l.under_way);
	printf("{\"n\":%lu,\"bytes\":%lu,\"seconds\":%.6f,\"per_s\":%.1f,\"cpu_us\":%.3f}\n", l.n, l.bytes, (double)wall / 1e6,
		(double)l.n * 1e6 / (double)wall, (double)(cpu_us() - cpu) / (double)l.n);
	for (unsigned long i = 0; i < in_flight; i++)
		curl_easy_cleanup(slots[i].easy);
	multi_fini(&l.multi);
	curl_slist_free_all(l.headers);
	fclose(l.tokens);
	free(slots);
	return 0;
}

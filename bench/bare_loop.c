/*
 * bare_loop - the least that refreshing can be, on one loop: claim, open, POST, parse, seal, write.
 *
 *	bare_loop CONNINFO IN-FLIGHT CA-FILE URL USER:PASSWORD FILE WARM SECONDS
 *
 * What a good prototype does and no more: one wide table of its own, ids in due order in memory, a SELECT as the
 * claim, one UPDATE a batch. No lease, fence, journal, outbox, budget, metric or retry: the first thing that is not
 * as it should be ends it. FILE has "access-token refresh-token" a line. Prints "ready" and waits for a line, "warm"
 * after WARM refreshes and, SECONDS later, a JSON line of what was committed between; then it finishes what is under
 * way and holds the table against its own count.
 */
#include <ctype.h>
#include <json-c/json.h>
#include <strings.h>

#include "common.h"
#include "multi.h"
#include "pglink.h"
#include "sealer.h"

#define CLAIM 256		/* rows of a claim */
#define WRITE 256		/* that are enough for a write ... */
#define WRITE_AFTER_US 5000	/* ... or so old a row */
#define WRITE_MAX 1024		/* rows that wait for the writer, those that are asked for now included */

#define CLAIM_SQL "SELECT id, refresh_token FROM bare_loop WHERE id = ANY($1::bigint[])"
#define ROWS_SQL " FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[]) AS u(id, life, access, refresh)"
#define INSERT_SQL "INSERT INTO bare_loop SELECT id, 1, now() + life * interval '1 s', access, refresh" ROWS_SQL
#define WRITE_SQL \
	"UPDATE bare_loop t SET version = t.version + 1, expires_at = now() + u.life * interval '1 s'," \
	" access_token = u.access, refresh_token = u.refresh" ROWS_SQL " WHERE t.id = u.id"

enum { ID, LIFE, ACCESS, REFRESH, COLUMNS };

struct batch { /* of rows to write: the columns as they go out */
	struct array v[COLUMNS];
	int64_t ids[WRITE_MAX];
	unsigned n;
};

struct slot { /* one request */
	struct slot *next;
	CURL *easy;
	int64_t id;
	size_t got, token_len;
	char token[TOKEN_MAX], body[3 * TOKEN_MAX + 64], answer[2 * TOKEN_MAX + 512];
};

struct loop {
	struct multi multi;
	struct event *old, *end;
	struct curl_slist *headers;
	struct json_tokener *json;
	struct sealer sealer;
	struct pglink claim, write;
	int64_t *due; /* a ring: all lives are equally long, so what was written last is due last */
	unsigned long rows, due_first, due_n;
	struct array wanted;
	unsigned wanted_n;
	PGresult *claimed, *ahead; /* rows that are being asked for, and those after them */
	int next_row;
	struct batch batches[2], *filling, *sent;
	bool old_enough, stopping;
	struct slot *slots, *idle;
	unsigned long under_way, done, warm, done_before;
	int64_t seconds, began_us, cpu_before_us;
};

/* --- batches of rows */

static void batch_begin(struct batch *b)
{
	for (int i = 0; i < COLUMNS; i++)
		array_begin(&b->v[i], i <= LIFE ? INT8_OID : BYTEA_OID);
	b->n = 0;
}

static void batch_end(struct batch *b)
{
	for (int i = 0; i < COLUMNS; i++)
		array_end(&b->v[i], b->n);
}

static void batch_init(struct batch *b)
{
	for (int i = 0; i < COLUMNS; i++)
		b->v[i].data =
			need(malloc(ARRAY_HEAD_BYTES + WRITE_MAX * (4 + (i <= LIFE ? 8 : SEALED_MAX))));
	batch_begin(b);
}

static void batch_add(struct loop *l, int64_t id, int64_t life_s, const char *access, size_t access_len,
	const char *refresh, size_t refresh_len)
{
	struct batch *b = l->filling;
	if (access_len == 0 || access_len > TOKEN_MAX || refresh_len == 0 || refresh_len > TOKEN_MAX)
		die("row %lld: tokens of %zu and %zu bytes", (long long)id, access_len, refresh_len);
	b->ids[b->n++] = id;
	put_i64(&b->v[ID], id);
	put_i64(&b->v[LIFE], life_s);
	seal(&l->sealer, id, ACCESS, access, access_len, &b->v[ACCESS]);
	seal(&l->sealer, id, REFRESH, refresh, refresh_len, &b->v[REFRESH]);
}

/* --- Postgres */

static void on_claimed(void *arg, PGresult *r)
{
	struct loop *l = arg;
	l->ahead = r;
	if (PQntuples(r) != (int)l->wanted_n)
		die("of %u rows %d are there", l->wanted_n, PQntuples(r));
	multi_turn(&l->multi);
}

static void claim_more(struct loop *l)
{
	if (l->claim.busy || l->ahead != NULL || l->due_n == 0 || l->stopping)
		return;
	array_begin(&l->wanted, INT8_OID);
	for (l->wanted_n = 0; l->wanted_n < CLAIM && l->due_n > 0; l->wanted_n++, l->due_n--) {
		put_i64(&l->wanted, l->due[l->due_first]);
		l->due_first = (l->due_first + 1) % l->rows;
	}
	array_end(&l->wanted, l->wanted_n);
	pglink_ask(&l->claim, &l->wanted, 1);
}

static void on_written(void *arg, PGresult *r)
{
	struct loop *l = arg;
	if (strtoul(PQcmdTuples(r), NULL, 10) != l->sent->n)
		die("of %u rows %s were written", l->sent->n, PQcmdTuples(r));
	PQclear(r);
	for (unsigned i = 0; i < l->sent->n; i++, l->due_n++)
		l->due[(l->due_first + l->due_n) % l->rows] = l->sent->ids[i];
	l->done += l->sent->n;
	multi_turn(&l->multi);
	if (l->began_us == 0 && l->done >= l->warm) {
		puts("warm");
		fflush(stdout);
		l->done_before = l->done;
		l->began_us = now_us();
		l->cpu_before_us = cpu_us();
		event_add(l->end, &(struct timeval){ .tv_sec = l->seconds });
	}
}

static void write_back(struct loop *l)
{
	struct batch *b = l->filling;
	bool last = l->stopping && l->under_way == 0;
	if (l->write.busy || b->n == 0 || (b->n < WRITE && !l->old_enough && !last))
		return;
	batch_end(b);
	l->filling = l->sent;
	l->sent = b;
	batch_begin(l->filling);
	l->old_enough = false;
	event_del(l->old);
	pglink_ask(&l->write, l->sent->v, COLUMNS);
}

/* --- the provider */

static size_t on_body(char *data, size_t size, size_t n, void *arg)
{
	struct slot *s = arg;
	if (n * size > sizeof s->answer - s->got)
		die("an answer is longer than %zu bytes", sizeof s->answer);
	memcpy(s->answer + s->got, data, n * size);
	s->got += n * size;
	return n * size;
}

static void slot_init(struct loop *l, struct slot *s, char **argv)
{
	CURL *e = s->easy = need(curl_easy_init());
	if (curl_easy_setopt(e, CURLOPT_CAINFO, argv[3]) != CURLE_OK ||
		curl_easy_setopt(e, CURLOPT_URL, argv[4]) != CURLE_OK ||
		curl_easy_setopt(e, CURLOPT_USERPWD, argv[5]) != CURLE_OK)
		die("libcurl does not take the CA file, the URL or the login");
	curl_easy_setopt(e, CURLOPT_CAPATH, NULL);
	curl_easy_setopt(e, CURLOPT_PRIVATE, s);
	curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(e, CURLOPT_HTTPHEADER, l->headers);
	curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, 30000L);
	curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(e, CURLOPT_WRITEDATA, s);
	curl_easy_setopt(e, CURLOPT_POSTFIELDS, s->body);
	s->next = l->idle;
	l->idle = s;
}

static void begin_next(struct loop *l)
{
	struct slot *s = l->idle;
	const int row = l->next_row++;
	char *to = s->body + sprintf(s->body, "grant_type=refresh_token&refresh_token=");
	s->id = get_i64(PQgetvalue(l->claimed, row, 0));
	s->token_len = unseal(&l->sealer, s->id, REFRESH, PQgetvalue(l->claimed, row, 1),
		(size_t)PQgetlength(l->claimed, row, 1), s->token);
	s->got = 0;
	for (size_t i = 0; i < s->token_len; i++) {
		unsigned char c = (unsigned char)s->token[i];
		if (isalnum(c) || c == '-' || c == '.' || c == '_')
			*to++ = (char)c;
		else
			to += sprintf(to, "%%%02X", c);
	}
	curl_easy_setopt(s->easy, CURLOPT_POSTFIELDSIZE, (long)(to - s->body));
	multi_add(&l->multi, s->easy);
	l->idle = s->next;
	l->under_way++;
}

static void begin_requests(struct loop *l)
{
	while (!l->stopping && l->idle != NULL && l->filling->n + l->under_way < WRITE_MAX) {
		if (l->claimed == NULL || l->next_row == PQntuples(l->claimed)) {
			PQclear(l->claimed);
			l->claimed = l->ahead;
			l->ahead = NULL;
			l->next_row = 0;
			claim_more(l);
		}
		if (l->claimed == NULL)
			return;
		begin_next(l);
	}
}

static const char *text_of(struct json_object *o, const char *key, size_t *n)
{
	struct json_object *v = NULL;
	if (!json_object_object_get_ex(o, key, &v) || json_object_get_type(v) != json_type_string)
		die("an answer without %s", key);
	*n = (size_t)json_object_get_string_len(v);
	return json_object_get_string(v);
}

/* The answer of a provider that rotates every time becomes a row to write. */
static void finish(struct loop *l, struct slot *s)
{
	size_t access_len, refresh_len, type_len;
	struct json_object *life = NULL;
	json_tokener_reset(l->json);
	struct json_object *o = json_tokener_parse_ex(l->json, s->answer, (int)s->got);
	if (o == NULL || json_object_get_type(o) != json_type_object)
		die("an answer is no JSON object: %s",
			json_tokener_error_desc(json_tokener_get_error(l->json)));
	const char *access = text_of(o, "access_token", &access_len),
		   *refresh = text_of(o, "refresh_token", &refresh_len);
	if (strcasecmp(text_of(o, "token_type", &type_len), "bearer") != 0 ||
		!json_object_object_get_ex(o, "expires_in", &life) ||
		json_object_get_type(life) != json_type_int)
		die("an answer without the usual type or life");
	if (refresh_len == s->token_len && memcmp(refresh, s->token, refresh_len) == 0)
		die("the token of row %lld was not rotated", (long long)s->id);
	batch_add(l, s->id, json_object_get_int64(life), access, access_len, refresh, refresh_len);
	json_object_put(o);
	if (l->filling->n == 1)
		event_add(l->old, &(struct timeval){ .tv_usec = WRITE_AFTER_US });
}

static void read_answers(struct loop *l)
{
	CURL *easy;
	while ((easy = multi_answered(&l->multi)) != NULL) {
		char *mine;
		curl_easy_getinfo(easy, CURLINFO_PRIVATE, &mine);
		struct slot *s = (void *)mine;
		finish(l, s);
		s->next = l->idle;
		l->idle = s;
		l->under_way--;
	}
}

/* --- the loop */

static void on_turn(void *arg)
{
	struct loop *l = arg;
	read_answers(l);
	begin_requests(l);
	claim_more(l);
	write_back(l);
	if (l->stopping && l->under_way == 0 && l->filling->n == 0 && !l->write.busy && !l->claim.busy)
		event_base_loopbreak(l->multi.base);
}

static void on_old(evutil_socket_t fd, short what, void *arg)
{
	struct loop *l = arg;
	(void)fd;
	(void)what;
	l->old_enough = true;
	multi_turn(&l->multi);
}

static void on_end(evutil_socket_t fd, short what, void *arg)
{
	struct loop *l = arg;
	(void)fd;
	(void)what;
	unsigned long n = l->done - l->done_before;
	int64_t wall = now_us() - l->began_us, cpu = cpu_us() - l->cpu_before_us;
	if (n == 0)
		die("nothing was refreshed in %lld s", (long long)l->seconds);
	printf("{\"n\":%lu,\"seconds\":%.6f,\"per_s\":%.1f,\"cpu_us\":%.3f}\n", n, (double)wall / 1e6,
		(double)n * 1e6 / (double)wall, (double)cpu / (double)n);
	fflush(stdout);
	l->stopping = true;
	multi_turn(&l->multi);
}

static void loop_init(struct loop *l, unsigned long in_flight, char **argv)
{
	multi_init(&l->multi, in_flight, on_turn, l);
	sealer_init(&l->sealer);
	l->old = need(evtimer_new(l->multi.base, on_old, l));
	l->end = need(evtimer_new(l->multi.base, on_end, l));
	l->json = need(json_tokener_new());
	l->headers = need(curl_slist_append(NULL, "Accept: application/json"));
	l->wanted.data = need(malloc(ARRAY_HEAD_BYTES + CLAIM * 12));
	for (int i = 0; i < 2; i++)
		batch_init(&l->batches[i]);
	l->filling = &l->batches[0];
	l->sent = &l->batches[1];
	l->slots = need(calloc(in_flight, sizeof *l->slots));
	for (unsigned long i = 0; i < in_flight; i++)
		slot_init(l, &l->slots[i], argv);
}

/* --- the table */

static void insert(struct loop *l)
{
	struct batch *b = l->filling;
	batch_end(b);
	pglink_exec(&l->write, INSERT_SQL, b->v, COLUMNS);
	batch_begin(b);
}

/* As wide as the daemon's, and like it without an index on what a refresh changes. */
static void make_table(struct loop *l, const char *path)
{
	char line[2 * TOKEN_MAX + 16], *refresh;
	FILE *f = fopen(path, "r");
	if (f == NULL)
		die("%s cannot be read", path);
	pglink_sql(&l->write, "DROP TABLE IF EXISTS bare_loop");
	/* Neighbours fall due together: on half a page each has room for its next version (HOT). Full pages measured slower. */
	pglink_sql(&l->write, "CREATE TABLE bare_loop (id bigint, version bigint NOT NULL, expires_at timestamptz NOT NULL,"
			      " access_token bytea, refresh_token bytea) WITH (fillfactor = 50)");
	pglink_sql(&l->write, "ALTER TABLE bare_loop ALTER access_token SET STORAGE EXTERNAL,"
			      " ALTER refresh_token SET STORAGE EXTERNAL");
	while (fgets(line, sizeof line, f) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		refresh = strchr(line, ' ');
		if (refresh == NULL)
			die("%s:%lu: an access token and a refresh token are needed", path, l->rows + 1);
		batch_add(l, (int64_t)++l->rows, 0, line, (size_t)(refresh - line), refresh + 1,
			strlen(refresh + 1));
		if (l->filling->n == WRITE_MAX)
			insert(l);
	}
	if (ferror(f) || l->rows == 0)
		die("%s: no tokens", path);
	fclose(f);
	if (l->filling->n > 0)
		insert(l);
	pglink_sql(&l->write, "ALTER TABLE bare_loop ADD PRIMARY KEY (id)");
	pglink_sql(&l->write, "VACUUM ANALYZE bare_loop");
	l->due = need(calloc(l->rows, sizeof *l->due));
	for (; l->due_n < l->rows; l->due_n++)
		l->due[l->due_n] = (int64_t)l->due_n + 1;
}

static void check_table(struct loop *l)
{
	pglink_stop(&l->claim);
	pglink_stop(&l->write);
	PGresult *r = PQexec(l->write.pg, "SELECT count(*), sum(version - 1) FROM bare_loop");
	if (PQresultStatus(r) != PGRES_TUPLES_OK)
		die("Postgres: %s", PQerrorMessage(l->write.pg));
	if (strtoul(PQgetvalue(r, 0, 0), NULL, 10) != l->rows ||
		strtoul(PQgetvalue(r, 0, 1), NULL, 10) != l->done)
		die("%s rows were written %s times; it should be %lu and %lu", PQgetvalue(r, 0, 0),
			PQgetvalue(r, 0, 1), l->rows, l->done);
	PQclear(r);
	pglink_sql(&l->write, "DROP TABLE bare_loop"); /* or autovacuum works on it while the next one is measured */
	printf("{\"refreshed\":%lu}\n", l->done);
}

static void loop_fini(struct loop *l, unsigned long in_flight)
{
	for (unsigned long i = 0; i < in_flight; i++)
		curl_easy_cleanup(l->slots[i].easy);
	curl_slist_free_all(l->headers);
	event_free(l->old);
	event_free(l->end);
	PQclear(l->claimed);
	PQclear(l->ahead);
	pglink_fini(&l->claim);
	pglink_fini(&l->write);
	multi_fini(&l->multi);
	json_tokener_free(l->json);
	sealer_fini(&l->sealer);
	for (int i = 0; i < 2 * COLUMNS; i++)
		free(l->batches[i / COLUMNS].v[i % COLUMNS].data);
	free(l->wanted.data);
	free(l->due);
	free(l->slots);
}

int main(int argc, char **argv)
{
	static struct loop l;
	if (argc != 9)
		die("usage: bare_loop CONNINFO IN-FLIGHT CA-FILE URL USER:PASSWORD FILE WARM SECONDS");
	unsigned long in_flight = strtoul(argv[2], NULL, 10);
	l.warm = strtoul(argv[7], NULL, 10);
	l.seconds = strtol(argv[8], NULL, 10);
	if (in_flight < 1 || in_flight > WRITE_MAX / 2 || l.warm < 1 || l.seconds < 1 || l.seconds > 86400)
		die("1 to %d in flight, and a warm-up and seconds of at least 1", WRITE_MAX / 2);
	loop_init(&l, in_flight, argv);
	pglink_init(&l.claim, argv[1], l.multi.base, on_claimed, &l);
	pglink_init(&l.write, argv[1], l.multi.base, on_written, &l);
	make_table(&l, argv[6]);
	pglink_start(&l.claim, CLAIM_SQL);
	pglink_start(&l.write, WRITE_SQL);
	printf("ready\n");
	fflush(stdout);
	if (getchar() == EOF)
		die("nobody says go");
	multi_turn(&l.multi);
	event_base_dispatch(l.multi.base);
	check_table(&l);
	loop_fini(&l, in_flight);
	return 0;
}

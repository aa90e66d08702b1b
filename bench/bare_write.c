/*
 * bare_write - the least that writing tokens back can cost: one UPDATE of a batch by unnest after the other, on one connection.
 *
 *	bare_write CONNINFO ROWS BATCH ACCESS-BYTES REFRESH-BYTES
 *
 * No lease, no fence, no schedule, nothing sealed: random bytes over every row of a table of its own, made before the clock
 * starts. Each batch is a transaction that is committed to disk. Prints one JSON line.
 */
#include <libpq-fe.h>
#include <string.h>

#include "common.h"
#include "pgwire.h"

static void done(PGconn *pg, PGresult *r, const char *what)
{
	ExecStatusType s = PQresultStatus(r);
	if (s != PGRES_COMMAND_OK && s != PGRES_TUPLES_OK)
		die("%s: %s", what, PQerrorMessage(pg));
	PQclear(r);
}

static void make_table(PGconn *pg, unsigned long rows, unsigned long access, unsigned long refresh)
{
	char sql[1024];
	done(pg, PQexec(pg, "SET client_min_messages = warning"), "set");
	done(pg, PQexec(pg, "DROP TABLE IF EXISTS bare_token"), "drop");
	done(pg, PQexec(pg, "CREATE TABLE bare_token (id bigint, version bigint NOT NULL, expires_at timestamptz NOT NULL,"
			    " access_token bytea, refresh_token bytea) WITH (fillfactor = 80)"),
		"create");
	done(pg, PQexec(pg, "ALTER TABLE bare_token ALTER access_token SET STORAGE EXTERNAL, ALTER refresh_token SET STORAGE EXTERNAL"),
		"alter");
	snprintf(sql, sizeof sql,
		"INSERT INTO bare_token SELECT n, 1, now(), substring(decode(repeat(md5(n::text), %lu), 'hex') for %lu),"
		" substring(decode(repeat(md5(n::text), %lu), 'hex') for %lu) FROM generate_series(1, %lu) n",
		access / 16 + 1, access, refresh / 16 + 1, refresh, rows);
	done(pg, PQexec(pg, sql), "fill");
	done(pg, PQexec(pg, "ALTER TABLE bare_token ADD PRIMARY KEY (id)"), "key");
	done(pg, PQexec(pg, "VACUUM ANALYZE bare_token"), "vacuum");
	done(pg, PQprepare(pg, "write",
			 "UPDATE bare_token t SET version = t.version + 1, expires_at = now() + interval '1 h', access_token = u.a,"
			 " refresh_token = u.r FROM unnest($1::bigint[], $2::bytea[], $3::bytea[]) AS u(id, a, r) WHERE t.id = u.id",
			 0, NULL),
		"prepare");
}

static void write_batch(PGconn *pg, struct array v[3])
{
	const char *values[3] = { v[0].data, v[1].data, v[2].data };
	const int lengths[3] = { (int)v[0].len, (int)v[1].len, (int)v[2].len };
	static const int binary[3] = { 1, 1, 1 };
	done(pg, PQexecPrepared(pg, "write", 3, values, lengths, binary, 1), "write");
}

int main(int argc, char **argv)
{
	static char noise[65536];
	struct array v[3];
	if (argc != 6)
		die("usage: bare_write CONNINFO ROWS BATCH ACCESS-BYTES REFRESH-BYTES");
	unsigned long rows = strtoul(argv[2], NULL, 10), batch = strtoul(argv[3], NULL, 10);
	unsigned long access = strtoul(argv[4], NULL, 10), refresh = strtoul(argv[5], NULL, 10);
	if (rows < 1 || batch < 1 || batch > 10000 || access < 1 || access > 8192 || refresh < 1 || refresh > 8192)
		die("a number is out of its bounds");
	for (int i = 0; i < 3; i++)
		v[i].data = need(malloc(ARRAY_HEAD_BYTES + batch * (4 + (i == 0 ? 8 : i == 1 ? access : refresh))));
	FILE *random = fopen("/dev/urandom", "rb");
	if (random == NULL || fread(noise, sizeof noise, 1, random) != 1)
		die("/dev/urandom cannot be read");
	fclose(random);
	PGconn *pg = PQconnectdb(argv[1]);
	if (PQstatus(pg) != CONNECTION_OK)
		die("%s", PQerrorMessage(pg));
	make_table(pg, rows, access, refresh);
	printf("ready\n");
	fflush(stdout);
	if (getchar() == EOF)
		die("nobody says go");
	int64_t began = now_us(), cpu = cpu_us();
	for (unsigned long at = 0; at < rows; at += batch) {
		unsigned long n = rows - at < batch ? rows - at : batch;
		array_begin(&v[0], INT8_OID);
		array_begin(&v[1], BYTEA_OID);
		array_begin(&v[2], BYTEA_OID);
		for (unsigned long i = 0; i < n; i++) {
			put_i64(&v[0], (int64_t)(at + i + 1));
			put_bytes(&v[1], noise + (at + i) * 131 % (sizeof noise - access), access);
			put_bytes(&v[2], noise + (at + i) * 137 % (sizeof noise - refresh), refresh);
		}
		for (int i = 0; i < 3; i++)
			array_end(&v[i], (uint32_t)n);
		write_batch(pg, v);
	}
	int64_t wall = now_us() - began;
	printf("{\"n\":%lu,\"seconds\":%.6f,\"per_s\":%.1f,\"cpu_us\":%.3f}\n", rows, (double)wall / 1e6, (double)rows * 1e6 / (double)wall,
		(double)(cpu_us() - cpu) / (double)rows);
	done(pg, PQexec(pg, "DROP TABLE bare_token"), "drop"); /* or autovacuum works on it while the next one is measured */
	PQfinish(pg);
	for (int i = 0; i < 3; i++)
		free(v[i].data);
	return 0;
}

/*
 * tlspeer - a scripted HTTP peer on the loop of a test, plain or TLS, HTTP/1.1 or a small HTTP/2.
 * What it answers is told by the path of the request; what it saw is counted. Certificates are made on
 * the spot, signed by a CA of the test's own.
 */
#ifndef REFRESHD_TESTS_TLSPEER_H
#define REFRESHD_TESTS_TLSPEER_H

#include <stdbool.h>
#include <stdint.h>

#include "io/loop.h"

struct tlspeer;
struct tlspeer_ca;

struct tlspeer_ca *tlspeer_ca_new(void);
void tlspeer_ca_free(struct tlspeer_ca *ca);
const char *tlspeer_ca_file(const struct tlspeer_ca *ca);
/* PEM of a client certificate and key, made for one test. */
const char *tlspeer_ca_client(struct tlspeer_ca *ca);

struct tlspeer_opts {
	struct tlspeer_ca *ca; /* NULL: plain */
	const char *name;      /* in the certificate */
	bool expired, want_client_cert;
	/* NULL: HTTP/1.1; "ok"; "early": answers before the body; "reset": in the middle of the answer; "die",
	 * "refuse" (REFUSED_STREAM): at the end of the second body. */
	const char *h2;
};
struct tlspeer *tlspeer_new(struct loop *l, const struct tlspeer_opts *o);
void tlspeer_free(struct tlspeer *p);
uint16_t tlspeer_port(const struct tlspeer *p);
void tlspeer_close_idle(struct tlspeer *p); /* hang up every connection */
void tlspeer_release(struct tlspeer *p);    /* answer what /hold has kept */

struct tlspeer_seen {
	int connections, handshakes, requests, bodies, held;
	char last[8192]; /* the last request, head and body */
};
const struct tlspeer_seen *tlspeer_seen(const struct tlspeer *p);

#endif

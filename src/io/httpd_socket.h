/*
 * httpd_socket - the listening socket and the TLS context of httpd.
 */
#ifndef REFRESHD_IO_HTTPD_SOCKET_H
#define REFRESHD_IO_HTTPD_SOCKET_H

#include <openssl/ssl.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "base/status.h"
#include "base/url.h"

struct httpd_socket {
	int fd;
	uint16_t port;	  /* 0 for a unix socket */
	char path[108];	  /* of a unix socket that we made, else "" */
	dev_t dev;	  /* of that path, so that only our own is removed */
	ino_t ino;
};

/*
 * Binds and listens; with inherited_fd >= 0 takes that one over. A unix socket that nobody listens on is replaced. ST_EXISTS
 * (in use, or the path is no socket), ST_DENIED, ST_INVALID, ST_NOT_FOUND (the folder of a path), ST_IO.
 */
int httpd_socket_open(const struct listen_addr *a, int inherited_fd, struct httpd_socket *out, struct fault *f) MUST_USE;
void httpd_socket_unlink(const struct httpd_socket *s); /* the descriptor is the caller's to close */

/* TLS 1.2 or newer, http/1.1 only. ST_NOT_FOUND, ST_DENIED, ST_CRYPTO (unreadable, or the key does not fit). */
int httpd_tls_new(const char *cert_file, const char *key_file, SSL_CTX **out, struct fault *f) MUST_USE;

#endif

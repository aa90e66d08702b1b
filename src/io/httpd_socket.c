/*
 * httpd_socket - makes what httpd listens on: TCP, unix or inherited sockets, and the TLS context.
 * A stale unix path is told from a living one by connecting to it. Must not accept anything.
 */
#include "io/httpd_socket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/mem.h"

#define BACKLOG 511

union address {
	struct sockaddr sa;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
	struct sockaddr_un un;
	struct sockaddr_storage ss;
};

static int socket_fault(struct fault *f, const char *name, const char *what, int err)
{
	return fault_set(f, status_of_errno(err), "%s: %s: %s", name, what, strerror(err));
}

/* Removes a socket that nobody listens on any more. */
static int clear_path(const struct sockaddr_un *un, struct fault *f)
{
	struct stat st;
	if (lstat(un->sun_path, &st) != 0)
		return errno == ENOENT ? 0 : socket_fault(f, un->sun_path, "stat", errno);
	if (!S_ISSOCK(st.st_mode))
		return fault_set(f, ST_EXISTS, "%s: is there and is not a socket", un->sun_path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return socket_fault(f, un->sun_path, "socket", errno);
	/* EAGAIN: a full accept queue, so there is someone. */
	int err = connect(fd, (const struct sockaddr *)un, sizeof(*un)) == 0 ? 0 : errno;
	close(fd);
	if (err == 0 || err == EAGAIN)
		return fault_set(f, ST_EXISTS, "%s: another process listens here", un->sun_path);
	if (err != ECONNREFUSED)
		return socket_fault(f, un->sun_path, "connect", err);
	if (unlink(un->sun_path) != 0 && errno != ENOENT)
		return socket_fault(f, un->sun_path, "unlink", errno);
	return 0;
}

static int make_address(const struct listen_addr *a, union address *out, socklen_t *len, char name[128], struct fault *f)
{
	memset(out, 0, sizeof(*out));
	if (a->is_unix) {
		snprintf(name, 128, "%s", a->path);
		out->un.sun_family = AF_UNIX;
		memcpy(out->un.sun_path, a->path, sizeof(out->un.sun_path));
		*len = sizeof(out->un);
		return clear_path(&out->un, f);
	}
	const char *host = strcmp(a->host, "localhost") == 0 ? "127.0.0.1" : a->host;
	snprintf(name, 128, strchr(host, ':') ? "[%s]:%u" : "%s:%u", host, (unsigned)a->port);
	if (inet_pton(AF_INET, host, &out->in.sin_addr) == 1) {
		out->in.sin_family = AF_INET;
		out->in.sin_port = htons(a->port);
		*len = sizeof(out->in);
	} else if (inet_pton(AF_INET6, host, &out->in6.sin6_addr) == 1) {
		out->in6.sin6_family = AF_INET6;
		out->in6.sin6_port = htons(a->port);
		*len = sizeof(out->in6);
	} else {
		return fault_set(f, ST_INVALID, "%s: not an IP address", name);
	}
	return 0;
}

static int bind_listen(int fd, const union address *addr, socklen_t len, const char *name, struct httpd_socket *s, struct fault *f)
{
	int on = 1;
	if (addr->sa.sa_family != AF_UNIX && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0)
		return socket_fault(f, name, "setsockopt", errno);
	if (bind(fd, &addr->sa, len) != 0)
		return socket_fault(f, name, "bind", errno);
	if (addr->sa.sa_family == AF_UNIX) {
		struct stat st;
		memcpy(s->path, addr->un.sun_path, sizeof(s->path));
		/* Nobody can connect before listen, so there is no moment with wrong rights. */
		if (chmod(s->path, 0660) != 0 || lstat(s->path, &st) != 0)
			return socket_fault(f, name, "chmod", errno);
		s->dev = st.st_dev;
		s->ino = st.st_ino;
	}
	if (listen(fd, BACKLOG) != 0)
		return socket_fault(f, name, "listen", errno);
	return 0;
}

static int take_over(int fd, struct fault *f)
{
	int listening = 0, type = 0;
	socklen_t n = sizeof(listening);
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &n) != 0)
		return fault_set(f, ST_INVALID, "inherited descriptor %d: %s", fd, strerror(errno));
	n = sizeof(type);
	if (!listening || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n) != 0 || type != SOCK_STREAM)
		return fault_set(f, ST_INVALID, "inherited descriptor %d: not a listening stream socket", fd);
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
		return fault_set(f, ST_IO, "inherited descriptor %d: fcntl: %s", fd, strerror(errno));
	return 0;
}

static uint16_t port_of(int fd)
{
	union address a;
	socklen_t n = sizeof(a);
	if (getsockname(fd, &a.sa, &n) != 0)
		return 0;
	if (a.sa.sa_family == AF_INET)
		return ntohs(a.in.sin_port);
	return a.sa.sa_family == AF_INET6 ? ntohs(a.in6.sin6_port) : 0;
}

int httpd_socket_open(const struct listen_addr *a, int inherited_fd, struct httpd_socket *out, struct fault *f)
{
	struct httpd_socket s = { .fd = inherited_fd, .path = "" };
	int code;
	if (inherited_fd >= 0) {
		code = take_over(inherited_fd, f);
		if (code != 0)
			return code;
	} else {
		union address addr;
		socklen_t len;
		char name[128];
		code = make_address(a, &addr, &len, name, f);
		if (code != 0)
			return code;
		s.fd = socket(addr.sa.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (s.fd < 0)
			return socket_fault(f, name, "socket", errno);
		code = bind_listen(s.fd, &addr, len, name, &s, f);
		if (code != 0) {
			close(s.fd);
			httpd_socket_unlink(&s);
			return code;
		}
	}
	s.port = port_of(s.fd);
	*out = s;
	return 0;
}

void httpd_socket_unlink(const struct httpd_socket *s)
{
	struct stat st;
	if (s->path[0] && lstat(s->path, &st) == 0 && st.st_dev == s->dev && st.st_ino == s->ino)
		unlink(s->path);
}

/* --- TLS */

/* An encrypted key must fail, not ask on the terminal. */
static int no_password(char *p, int size, int rw, void *arg)
{
	(void)p, (void)size, (void)rw, (void)arg;
	return 0;
}

static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in, unsigned in_len, void *arg)
{
	static const unsigned char http11[] = { 8, 'h', 't', 't', 'p', '/', '1', '.', '1' };
	unsigned char *chosen;
	(void)ssl, (void)arg;
	if (SSL_select_next_proto(&chosen, out_len, http11, sizeof(http11), in, in_len) != OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*out = chosen;
	return SSL_TLSEXT_ERR_OK;
}

static int tls_fault(struct fault *f, const char *path, const char *what)
{
	const char *reason = ERR_reason_error_string(ERR_peek_last_error());
	ERR_clear_error();
	return fault_set(f, ST_CRYPTO, "%s: %s: %s", path, what, reason ? reason : "unknown reason");
}

static int check_readable(const char *path, struct fault *f)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return fault_set(f, status_of_errno(errno), "%s: %s", path, strerror(errno));
	close(fd);
	return 0;
}

static int configure(SSL_CTX *ctx, const char *cert, const char *key, struct fault *f)
{
	SSL_CTX_set_default_passwd_cb(ctx, no_password);
	SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
	SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_alpn_select_cb(ctx, choose_protocol, NULL);
	if (SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION) != 1)
		return tls_fault(f, cert, "TLS 1.2");
	if (SSL_CTX_use_certificate_chain_file(ctx, cert) != 1)
		return tls_fault(f, cert, "certificate");
	if (SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1)
		return tls_fault(f, key, "private key");
	if (SSL_CTX_check_private_key(ctx) != 1)
		return tls_fault(f, key, "does not fit the certificate");
	return 0;
}

int httpd_tls_new(const char *cert_file, const char *key_file, SSL_CTX **out, struct fault *f)
{
	int code = check_readable(cert_file, f);
	if (code == 0)
		code = check_readable(key_file, f);
	if (code != 0)
		return code;
	SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
	if (ctx == NULL)
		return tls_fault(f, cert_file, "TLS");
	code = configure(ctx, cert_file, key_file, f);
	if (code != 0) {
		SSL_CTX_free(ctx);
		return code;
	}
	*out = ctx;
	return 0;
}

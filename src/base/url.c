/*
 * url - absolute http(s) URLs and listen addresses, split and checked.
 *
 * Stricter than the URL parser behind the HTTP client on purpose: whatever two parsers could read
 * differently (user names, odd spellings of an address, backslashes) is refused here, so that an
 * address check and the connection that follows mean the same host. Must not resolve anything.
 */
#include "base/url.h"

#include <arpa/inet.h>
#include <string.h>

#include "base/mem.h"
#include "base/str.h"

#define NAME_MAX_BYTES 253 /* RFC 1035 2.3.4, as text */
#define LABEL_MAX_BYTES 63

/* A piece of the text being parsed. */
struct span {
	const char *s;
	size_t n;
};

struct pieces {
	struct span scheme, host, path;
	uint16_t port;
	bool bracketed;
};

static int bad(struct fault *f, const char *text, const char *at, const char *reason)
{
	return fault_set(f, ST_SYNTAX, "%s (at byte %zu)", reason, (size_t)(at - text) + 1);
}

static bool is_alnum(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* --- hosts */

static bool ip_of(int family, struct span host, void *addr)
{
	char text[INET6_ADDRSTRLEN];

	if (host.n == 0 || host.n >= sizeof(text) || memchr(host.s, '\0', host.n) != NULL)
		return false;
	memcpy(text, host.s, host.n);
	text[host.n] = '\0';
	return inet_pton(family, text, addr) == 1;
}

static bool is_ipv4(struct span host)
{
	struct in_addr addr;

	return ip_of(AF_INET, host, &addr);
}

static bool is_ipv6(struct span host)
{
	struct in6_addr addr;

	return ip_of(AF_INET6, host, &addr);
}

/* The last label is a number, so getaddrinfo would read the name as an address. */
static bool ends_in_number(struct span host)
{
	size_t end = host.n;

	if (end > 0 && host.s[end - 1] == '.')
		end--;
	size_t start = end;
	while (start > 0 && host.s[start - 1] != '.')
		start--;
	const char *label = host.s + start;
	size_t n = end - start;
	bool hex = n >= 2 && label[0] == '0' && (label[1] == 'x' || label[1] == 'X');
	uint64_t ignored;
	return hex || str_parse_u64(label, n, &ignored) != ST_SYNTAX;
}

/* NULL, or what is wrong with the name; *at is moved to the place. */
static const char *check_name(struct span host, const char **at)
{
	size_t label = 0;

	if (host.n > NAME_MAX_BYTES)
		return "host name longer than 253 bytes";
	for (size_t i = 0; i < host.n; i++) {
		char c = host.s[i];
		*at = host.s + i;
		if (c == '.' && label == 0)
			return "empty label in the host name";
		label = c == '.' ? 0 : label + 1;
		if (label > LABEL_MAX_BYTES)
			return "label of the host name longer than 63 bytes";
		if (c == '-' && label == 1)
			return "label of the host name starts with a hyphen";
		if (!is_alnum(c) && c != '.' && c != '-' && c != '_')
			return "byte not allowed in a host name";
	}
	*at = host.s;
	return ends_in_number(host) && !is_ipv4(host) ? "host is a number, yet no IPv4 address of four parts"
						      : NULL;
}

/* --- URLs */

static int split_scheme(const char *s, struct pieces *p, struct fault *f)
{
	size_t n = strcspn(s, ":/?#");

	if (n == 0 || strncmp(s + n, "://", 3) != 0)
		return bad(f, s, s, "no http:// or https:// in front");
	if (!str_eq_nocase(s, n, "http") && !str_eq_nocase(s, n, "https"))
		return bad(f, s, s, "scheme is neither http nor https");
	p->scheme = (struct span){s, n};
	return 0;
}

static int split_port(const char *url, struct span text, struct pieces *p, struct fault *f)
{
	uint64_t port;

	if (text.n == 0) {
		p->port = p->scheme.n == strlen("https") ? 443 : 80;
		return 0;
	}
	if (text.s[0] != ':')
		return bad(f, url, text.s, "unexpected text behind the host");
	if (str_parse_u64(text.s + 1, text.n - 1, &port) < 0 || port < 1 || port > UINT16_MAX)
		return bad(f, url, text.s + 1, "port is no number from 1 to 65535");
	p->port = (uint16_t)port;
	return 0;
}

static int split_bracketed(
	const char *url, struct span auth, struct pieces *p, struct span *rest, struct fault *f)
{
	const char *end = memchr(auth.s, ']', auth.n);

	if (end == NULL)
		return bad(f, url, auth.s, "no ] behind the IPv6 address");
	p->host = (struct span){auth.s + 1, (size_t)(end - auth.s) - 1};
	p->bracketed = true;
	*rest = (struct span){end + 1, auth.n - p->host.n - 2};
	return is_ipv6(p->host) ? 0 : bad(f, url, auth.s + 1, "no IPv6 address within the brackets");
}

static int split_authority(const char *url, struct span auth, struct pieces *p, struct fault *f)
{
	struct span rest;
	const char *at = memchr(auth.s, '@', auth.n);

	if (at != NULL)
		return bad(f, url, at, "user name or password in the URL");
	if (auth.n > 0 && auth.s[0] == '[') {
		int rc = split_bracketed(url, auth, p, &rest, f);
		return rc < 0 ? rc : split_port(url, rest, p, f);
	}
	const char *colon = memchr(auth.s, ':', auth.n);
	size_t n = colon != NULL ? (size_t)(colon - auth.s) : auth.n;
	p->host = (struct span){auth.s, n};
	rest = (struct span){auth.s + n, auth.n - n};
	if (n == 0)
		return bad(f, url, auth.s, "no host");
	const char *place = auth.s;
	const char *reason = check_name(p->host, &place);
	return reason != NULL ? bad(f, url, place, reason) : split_port(url, rest, p, f);
}

/* RFC 3986 3.3 and 3.4: pchar, "/" and "?". */
static int check_path(const char *url, struct span path, struct fault *f)
{
	static const char marks[] = "-._~!$&'()*+,;=:@/?";
	uint8_t byte;

	for (size_t i = 0; i < path.n; i++) {
		const char *c = path.s + i;
		if (*c == '#')
			return bad(f, url, c, "fragment in the URL");
		if (*c == '%') {
			if (path.n - i < 3 || str_hex_parse(c + 1, 2, &byte, 1) < 0)
				return bad(f, url, c, "percent sign without two hex digits");
			continue;
		}
		if (!is_alnum(*c) && strchr(marks, *c) == NULL)
			return bad(f, url, c, "byte not allowed in a URL (percent-encode it)");
	}
	return 0;
}

static void copy_lower(char *to, struct span from)
{
	for (size_t i = 0; i < from.n; i++) {
		char c = from.s[i];
		to[i] = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
	}
}

static void assemble(const struct pieces *p, struct url *out)
{
	bool slash = p->path.n == 0 || p->path.s[0] != '/';
	char *block = mem_calloc(p->scheme.n + 1 + p->host.n + 1 + (slash ? 1 : 0) + p->path.n + 1, 1);

	out->scheme = block;
	copy_lower(out->scheme, p->scheme);
	out->host = out->scheme + p->scheme.n + 1;
	copy_lower(out->host, p->host);
	out->path = out->host + p->host.n + 1;
	out->path[0] = '/';
	memcpy(out->path + (slash ? 1 : 0), p->path.s, p->path.n);
	out->port = p->port;
	out->host_is_ip = p->bracketed || is_ipv4(p->host);
}

int url_parse(const char *s, struct url *out, struct fault *f)
{
	struct pieces p = {.bracketed = false};
	size_t len = strnlen(s, URL_MAX_BYTES + 1);

	if (len > URL_MAX_BYTES)
		return fault_set(f, ST_RANGE, "URL longer than %d bytes", URL_MAX_BYTES);
	for (size_t i = 0; i < len; i++) {
		uint8_t c = (uint8_t)s[i];
		if (c <= ' ' || c == 0x7f)
			return bad(f, s, s + i, "space or control byte in the URL");
	}
	int rc = split_scheme(s, &p, f);
	if (rc < 0)
		return rc;
	const char *auth = s + p.scheme.n + strlen("://");
	size_t n = strcspn(auth, "/?#");
	rc = split_authority(s, (struct span){auth, n}, &p, f);
	if (rc < 0)
		return rc;
	p.path = (struct span){auth + n, strlen(auth + n)};
	rc = check_path(s, p.path, f);
	if (rc < 0)
		return rc;
	assemble(&p, out);
	return 0;
}

void url_fini(struct url *u)
{
	/* A query may hold a key. */
	if (u->scheme != NULL)
		mem_wipe(u->path, strlen(u->path));
	mem_free(u->scheme); /* the block of all three */
	*u = (struct url){.scheme = NULL};
}

bool url_is_loopback(const struct url *u)
{
	struct span host = {u->host, strlen(u->host)};
	struct in_addr v4;
	struct in6_addr v6;

	if (ip_of(AF_INET, host, &v4))
		return ntohl(v4.s_addr) >> 24 == 127;
	if (ip_of(AF_INET6, host, &v6))
		return IN6_IS_ADDR_LOOPBACK(&v6);
	return strcmp(u->host, "localhost") == 0;
}

/* --- listen addresses */

static int parse_unix(const char *s, struct listen_addr *out, struct fault *f)
{
	const char *path = s + strlen("unix:");
	size_t n = strlen(path);

	if (path[0] != '/')
		return bad(f, s, path, "path of a unix socket must be absolute");
	if (str_has_ctl(path, n))
		return bad(f, s, path, "control byte in the path");
	if (n >= sizeof(out->path))
		return fault_set(
			f, ST_RANGE, "path of a unix socket longer than %zu bytes", sizeof(out->path) - 1);
	*out = (struct listen_addr){.is_unix = true};
	memcpy(out->path, path, n + 1);
	return 0;
}

int listen_addr_parse(const char *s, struct listen_addr *out, struct fault *f)
{
	uint64_t port;

	if (strncmp(s, "unix:", 5) == 0)
		return parse_unix(s, out, f);
	const char *colon = strrchr(s, ':');
	if (colon == NULL)
		return bad(f, s, s, "neither address:port nor [v6]:port nor unix:/path");
	struct span host = {s, (size_t)(colon - s)};
	bool bracketed = host.n >= 2 && s[0] == '[' && colon[-1] == ']';
	if (bracketed)
		host = (struct span){s + 1, host.n - 2};
	bool good = bracketed ? is_ipv6(host) : is_ipv4(host) || str_eq_nocase(host.s, host.n, "localhost");
	if (!good)
		return bad(f, s, s, "no IP address (IPv6 goes in brackets) and not localhost");
	if (str_parse_u64(colon + 1, strlen(colon + 1), &port) < 0 || port > UINT16_MAX)
		return bad(f, s, colon + 1, "port is no number from 0 to 65535");
	*out = (struct listen_addr){.port = (uint16_t)port};
	copy_lower(out->host, host);
	return 0;
}

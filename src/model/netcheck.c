/*
 * netcheck - which addresses are public, by the IANA special-purpose registries (RFC 6890 and successors).
 *
 * IPv4 is open with a list of exceptions; IPv6 is closed but for 2000::/3, again with exceptions. It judges
 * bytes of a socket address only: no name, no text form, no look-up, so that there is one spelling of every
 * address.
 */
#include "model/netcheck.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct v4_block {
	uint32_t net; /* host byte order */
	unsigned bits;
};

#define V4(a, b, c, d) (((uint32_t)(a) << 24) | ((uint32_t)(b) << 16) | ((uint32_t)(c) << 8) | (uint32_t)(d))

static const struct v4_block v4_denied[] = {
	{V4(0, 0, 0, 0), 8},        /* this network, RFC 791 */
	{V4(10, 0, 0, 0), 8},       /* private, RFC 1918 */
	{V4(100, 64, 0, 0), 10},    /* shared, RFC 6598; a cloud's metadata at 100.100.100.200 */
	{V4(127, 0, 0, 0), 8},      /* loopback */
	{V4(168, 63, 129, 16), 32}, /* a cloud's host agent behind a public number */
	{V4(169, 254, 0, 0), 16},   /* link-local, RFC 3927; metadata services */
	{V4(172, 16, 0, 0), 12},    /* private */
	{V4(192, 0, 0, 0), 24},     /* protocol assignments, RFC 6890 */
	{V4(192, 0, 2, 0), 24},     /* documentation, RFC 5737 */
	{V4(192, 88, 99, 0), 24},   /* 6to4 relays, RFC 7526 */
	{V4(192, 168, 0, 0), 16},   /* private */
	{V4(198, 18, 0, 0), 15},    /* benchmarking, RFC 2544 */
	{V4(198, 51, 100, 0), 24},  /* documentation */
	{V4(203, 0, 113, 0), 24},   /* documentation */
	{V4(224, 0, 0, 0), 4},      /* multicast */
	{V4(240, 0, 0, 0), 4},      /* reserved, and the broadcast address */
};

struct v6_block {
	uint8_t net[16];
	unsigned bits;
};

static const struct v6_block v6_global = {{0x20}, 3};
static const struct v6_block v6_denied[] = {
	{{0x20, 0x01}, 23},             /* protocol assignments, RFC 2928: Teredo, ORCHID, benchmarking */
	{{0x20, 0x01, 0x0d, 0xb8}, 32}, /* documentation, RFC 3849 */
	{{0x20, 0x02}, 16},             /* 6to4, RFC 3056: any IPv4 inside */
	{{0x3f, 0xff}, 20},             /* documentation, RFC 9637 */
};
static const struct v6_block v6_mapped = {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, 96};
static const struct v6_block v6_nat64 = {{0x00, 0x64, 0xff, 0x9b}, 96}; /* RFC 6052 */

static bool v4_in(uint32_t addr, const struct v4_block *b)
{
	return ((addr ^ b->net) >> (32 - b->bits)) == 0;
}

static bool v4_is_public(uint32_t addr)
{
	for (size_t i = 0; i < sizeof(v4_denied) / sizeof(v4_denied[0]); i++)
		if (v4_in(addr, &v4_denied[i]))
			return false;
	return true;
}

static bool v6_in(const uint8_t *addr, const struct v6_block *b)
{
	unsigned whole = b->bits / 8, rest = b->bits % 8;

	if (memcmp(addr, b->net, whole) != 0)
		return false;
	return rest == 0 || (addr[whole] ^ b->net[whole]) >> (8 - rest) == 0;
}

static uint32_t v4_inside(const uint8_t *addr)
{
	return V4(addr[12], addr[13], addr[14], addr[15]);
}

static bool v6_is_public(const uint8_t *addr)
{
	if (v6_in(addr, &v6_mapped) || v6_in(addr, &v6_nat64))
		return v4_is_public(v4_inside(addr));
	if (!v6_in(addr, &v6_global))
		return false;
	for (size_t i = 0; i < sizeof(v6_denied) / sizeof(v6_denied[0]); i++)
		if (v6_in(addr, &v6_denied[i]))
			return false;
	return true;
}

/* Copies, because a caller's buffer need not be aligned for the family. */
static bool take_v4(const struct sockaddr *sa, uint32_t *addr)
{
	struct sockaddr_in in;

	if (sa->sa_family != AF_INET)
		return false;
	memcpy(&in, sa, sizeof(in));
	*addr = ntohl(in.sin_addr.s_addr);
	return true;
}

static bool take_v6(const struct sockaddr *sa, uint8_t addr[16])
{
	struct sockaddr_in6 in;

	if (sa->sa_family != AF_INET6)
		return false;
	memcpy(&in, sa, sizeof(in));
	memcpy(addr, in.sin6_addr.s6_addr, 16);
	return true;
}

bool netcheck_is_public(const struct sockaddr *sa)
{
	uint32_t v4;
	uint8_t v6[16];

	if (take_v4(sa, &v4))
		return v4_is_public(v4);
	return take_v6(sa, v6) && v6_is_public(v6);
}

bool netcheck_is_loopback(const struct sockaddr *sa)
{
	static const struct v4_block loopback = {V4(127, 0, 0, 0), 8};
	static const uint8_t one[16] = {[15] = 1};
	uint32_t v4;
	uint8_t v6[16];

	if (take_v4(sa, &v4))
		return v4_in(v4, &loopback);
	if (!take_v6(sa, v6))
		return false;
	if (v6_in(v6, &v6_mapped))
		return v4_in(v4_inside(v6), &loopback);
	return memcmp(v6, one, sizeof(one)) == 0;
}

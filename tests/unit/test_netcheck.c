/*
 * netcheck - one address on each edge of every denied block, and its neighbours.
 */
#include "unit/unit.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/un.h>

#include "model/netcheck.h"

static struct sockaddr_storage address(const char *text)
{
	struct sockaddr_storage ss = {0};

	if (strchr(text, ':') != NULL) {
		struct sockaddr_in6 in = {.sin6_family = AF_INET6, .sin6_port = htons(443)};
		ck_assert_msg(inet_pton(AF_INET6, text, &in.sin6_addr) == 1, "%s", text);
		memcpy(&ss, &in, sizeof(in));
	} else {
		struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(443)};
		ck_assert_msg(inet_pton(AF_INET, text, &in.sin_addr) == 1, "%s", text);
		memcpy(&ss, &in, sizeof(in));
	}
	return ss;
}

static bool is_public(const char *text)
{
	struct sockaddr_storage ss = address(text);
	return netcheck_is_public((const struct sockaddr *)&ss);
}

static bool is_loopback(const char *text)
{
	struct sockaddr_storage ss = address(text);
	return netcheck_is_loopback((const struct sockaddr *)&ss);
}

static const char *const denied[] = {
	"0.0.0.0",
	"0.255.255.255",
	"10.0.0.0",
	"10.1.2.3",
	"10.255.255.255",
	"100.64.0.0",
	"100.100.100.200",
	"100.127.255.255",
	"127.0.0.0",
	"127.0.0.1",
	"127.255.255.255",
	"168.63.129.16",
	"169.254.0.0",
	"169.254.169.254",
	"169.254.255.255",
	"172.16.0.0",
	"172.31.255.255",
	"192.0.0.0",
	"192.0.0.192",
	"192.0.0.255",
	"192.0.2.0",
	"192.0.2.255",
	"192.88.99.0",
	"192.88.99.255",
	"192.168.0.0",
	"192.168.255.255",
	"198.18.0.0",
	"198.19.255.255",
	"198.51.100.0",
	"198.51.100.255",
	"203.0.113.0",
	"203.0.113.255",
	"224.0.0.0",
	"239.255.255.255",
	"240.0.0.0",
	"255.255.255.254",
	"255.255.255.255",
	"::",
	"::1",
	"::2",
	"::127.0.0.1",
	"::8.8.8.8",
	"::ffff:0.0.0.0",
	"::ffff:127.0.0.1",
	"::ffff:10.0.0.1",
	"::ffff:169.254.169.254",
	"::ffff:192.168.1.1",
	"::ffff:255.255.255.255",
	"::fffe:8.8.8.8",
	"::ffff:0:8.8.8.8",
	"fe80::",
	"fe80::1",
	"febf:ffff::1",
	"fec0::1",
	"fc00::",
	"fd00:ec2::254",
	"fdff:ffff::1",
	"ff00::",
	"ff02::1",
	"ffff::1",
	"2001:db8::",
	"2001:db8:ffff::1",
	"3fff::",
	"3fff:fff:ffff::1",
	"100::",
	"100::ffff",
	"2002::",
	"2002:7f00:1::",
	"2002:a00:1::1",
	"2002:808:808::1",
	"64:ff9b::127.0.0.1",
	"64:ff9b::10.0.0.1",
	"64:ff9b::169.254.169.254",
	"64:ff9b::0.0.0.0",
	"64:ff9b:1::8.8.8.8",
	"64:ff9b:0:0:0:1:808:808",
	"5f00::",
	"5f00:1::1",
	"2001::1",
	"2001:0:4136:e378:8000:63bf:3fff:fdd2",
	"2001:10::1",
	"2001:20::1",
	"2001:1ff:ffff::1",
	"4000::1",
	"1fff:ffff::1",
	"8000::1",
};

static const char *const allowed[] = {
	"1.0.0.0",
	"1.1.1.1",
	"8.8.8.8",
	"9.255.255.255",
	"11.0.0.0",
	"100.63.255.255",
	"100.128.0.0",
	"126.255.255.255",
	"128.0.0.0",
	"168.63.129.15",
	"168.63.129.17",
	"169.253.255.255",
	"169.255.0.0",
	"172.15.255.255",
	"172.32.0.0",
	"191.255.255.255",
	"192.0.1.0",
	"192.0.3.0",
	"192.88.98.255",
	"192.88.100.0",
	"192.167.255.255",
	"192.169.0.0",
	"198.17.255.255",
	"198.20.0.0",
	"198.51.99.255",
	"198.51.101.0",
	"203.0.112.255",
	"203.0.114.0",
	"223.255.255.255",
	"::ffff:8.8.8.8",
	"64:ff9b::8.8.8.8",
	"2000::1",
	"2001:200::1",
	"2001:db7:ffff::1",
	"2001:db9::1",
	"2001:4860:4860::8888",
	"2003::1",
	"2606:4700:4700::1111",
	"2a00:1450:4001::1",
	"3ffe:ffff::1",
	"3fff:1000::1",
};

START_TEST(denied_addresses)
{
	ck_assert_msg(!is_public(denied[_i]), "%s", denied[_i]);
}
END_TEST

START_TEST(allowed_addresses)
{
	ck_assert_msg(is_public(allowed[_i]), "%s", allowed[_i]);
}
END_TEST

START_TEST(loopback_is_told_apart)
{
	ck_assert(is_loopback("127.0.0.1"));
	ck_assert(is_loopback("127.255.255.254"));
	ck_assert(is_loopback("::1"));
	ck_assert(is_loopback("::ffff:127.0.0.1"));
	ck_assert(!is_loopback("126.255.255.255"));
	ck_assert(!is_loopback("128.0.0.1"));
	ck_assert(!is_loopback("::"));
	ck_assert(!is_loopback("::2"));
	ck_assert(!is_loopback("::ffff:8.8.8.8"));
	ck_assert(!is_loopback("fe80::1"));
}
END_TEST

START_TEST(other_families_are_neither)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct sockaddr none = {.sa_family = AF_UNSPEC};

	ck_assert(!netcheck_is_public((const struct sockaddr *)&un));
	ck_assert(!netcheck_is_loopback((const struct sockaddr *)&un));
	ck_assert(!netcheck_is_public(&none));
	ck_assert(!netcheck_is_loopback(&none));
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("netcheck");
	TCase *t = tcase_create("netcheck");

	tcase_add_loop_test(t, denied_addresses, 0, (int)(sizeof(denied) / sizeof(denied[0])));
	tcase_add_loop_test(t, allowed_addresses, 0, (int)(sizeof(allowed) / sizeof(allowed[0])));
	unit_add(t, loopback_is_told_apart);
	unit_add(t, other_families_are_neither);
	suite_add_tcase(s, t);
	return s;
}

/*
 * url: what is split, and above all what is refused.
 */
#include "unit/unit.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/url.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

START_TEST(urls_are_split)
{
	static const struct {
		const char *text, *scheme, *host;
		uint16_t port;
		const char *path;
		bool is_ip;
	} cases[] = {
		{"https://example.com", "https", "example.com", 443, "/", false},
		{"http://example.com", "http", "example.com", 80, "/", false},
		{"HTTPS://Login.Example.COM:8443/oauth2/v2.0/Token", "https", "login.example.com", 8443,
			"/oauth2/v2.0/Token", false},
		{"https://h/a/b?q=1&r=%2f%2F?/", "https", "h", 443, "/a/b?q=1&r=%2f%2F?/", false},
		{"https://h?q=1", "https", "h", 443, "/?q=1", false},
		{"https://h/?", "https", "h", 443, "/?", false},
		{"https://h:1/", "https", "h", 1, "/", false},
		{"https://h:65535/", "https", "h", 65535, "/", false},
		{"https://h:00443/", "https", "h", 443, "/", false},
		{"http://127.0.0.1:8090/x", "http", "127.0.0.1", 8090, "/x", true},
		{"http://[::1]/x", "http", "::1", 80, "/x", true},
		{"http://[2001:DB8::A]:81", "http", "2001:db8::a", 81, "/", true},
		{"http://[::ffff:127.0.0.1]:81", "http", "::ffff:127.0.0.1", 81, "/", true},
		{"https://example.com./", "https", "example.com.", 443, "/", false},
		{"https://a_b.x--y.1a/", "https", "a_b.x--y.1a", 443, "/", false},
		{"https://h/-._~!$&'()*+,;=:@/", "https", "h", 443, "/-._~!$&'()*+,;=:@/", false},
		{"https://1.example/", "https", "1.example", 443, "/", false},
		{"https://x.0y/", "https", "x.0y", 443, "/", false},
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct url u;
		struct fault f = {0};
		char *copy = mem_strdup(cases[i].text);
		ck_assert_msg(url_parse(copy, &u, &f) == 0, "%s: %s", cases[i].text, f.text);
		mem_free(copy);
		ck_assert_str_eq(u.scheme, cases[i].scheme);
		ck_assert_str_eq(u.host, cases[i].host);
		ck_assert_uint_eq(u.port, cases[i].port);
		ck_assert_str_eq(u.path, cases[i].path);
		ck_assert_msg(u.host_is_ip == cases[i].is_ip, "%s", cases[i].text);
		url_fini(&u);
		ck_assert_ptr_null(u.host);
		url_fini(&u);
	}
}
END_TEST

static void assert_refused(const char *text, const char *reason)
{
	struct url u = {.port = 77};
	struct fault f = {0};

	ck_assert_msg(url_parse(text, &u, &f) == ST_SYNTAX, "\"%s\" accepted or %d", text, f.code);
	ck_assert_int_eq(f.code, ST_SYNTAX);
	ck_assert_msg(strstr(f.text, reason) != NULL, "\"%s\": %s", text, f.text);
	ck_assert_ptr_null(u.scheme);
	ck_assert_uint_eq(u.port, 77);
	ck_assert_int_eq(url_parse(text, &u, NULL), ST_SYNTAX);
}

START_TEST(urls_are_refused_with_a_reason)
{
	static const struct {
		const char *text, *reason;
	} cases[] = {
		{"", "no http:// or https:// in front (at byte 1)"},
		{"example.com", "no http"},
		{"//example.com/", "no http"},
		{"/path", "no http"},
		{"https:", "no http"},
		{"https:/h", "no http"},
		{"https:h", "no http"},
		{"://h/", "no http"},
		{"ftp://h/", "scheme is neither"},
		{"httpss://h/", "scheme is neither"},
		{"javascript://h/", "scheme is neither"},
		{"https://", "no host"},
		{"https:///path", "no host"},
		{"https://:80/", "no host"},
		{"https://?q", "no host"},
		{"https://u@h/", "user name or password"},
		{"https://u:p@h/", "user name or password in the URL (at byte 12)"},
		{"https://@h/", "user name"},
		{"https://h/#frag", "fragment in the URL (at byte 11)"},
		{"https://h#frag", "fragment"},
		{"https://h/?a#", "fragment"},
		{" https://h/", "space or control byte in the URL (at byte 1)"},
		{"https://h/ ", "space or control"},
		{"https://h/a b", "space or control"},
		{"https://h/\r\nX: y", "space or control"},
		{"https://h\t/", "space or control"},
		{"https://h/\x7f", "space or control"},
		{"https://h:/", "port is no number from 1 to 65535 (at byte 11)"},
		{"https://h:0/", "port"},
		{"https://h:65536/", "port"},
		{"https://h:99999999999999999999/", "port"},
		{"https://h:-1/", "port"},
		{"https://h:+1/", "port"},
		{"https://h:80a/", "port"},
		{"https://h:80:80/", "port"},
		{"https://::1/", "no host"},
		{"https://2001:db8::1/", "host is a number"},
		{"https://[::1/", "no ]"},
		{"https://[]/", "no IPv6"},
		{"https://[1.2.3.4]/", "no IPv6"},
		{"https://[fe80::1%eth0]/", "no IPv6"},
		{"https://[::1%25lo]/", "no IPv6"},
		{"https://[::1]x/", "unexpected text"},
		{"https://[::1]:/", "port"},
		{"https://[1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa]/", "no IPv6"},
		{"https://a..b/", "empty label"},
		{"https://.a/", "empty label"},
		{"https://./", "empty label"},
		{"https://a.../", "empty label"},
		{"https://-a/", "hyphen"},
		{"https://a.-b/", "hyphen"},
		{"https://a%41/", "not allowed in a host"},
		{"https://a\\b/", "not allowed in a host"},
		{"https://b\xc3\xbc"
		 "cher/",
			"byte not allowed in a host name (at byte 10)"},
		{"https://a]b/", "not allowed in a host"},
		{"https://a*b/", "not allowed in a host"},
		{"https://127.1/", "host is a number"},
		{"https://2130706433/", "host is a number"},
		{"https://0x7f.0.0.1/", "host is a number"},
		{"https://0x7f000001/", "host is a number"},
		{"https://0X7F000001/", "host is a number"},
		{"https://0177.0.0.1/", "host is a number"},
		{"https://127.0.0.1./", "host is a number"},
		{"https://1.2.3.4.5/", "host is a number"},
		{"https://256.1.1.1/", "host is a number"},
		{"https://a.0x/", "host is a number"},
		{"https://a.99999999999999999999/", "host is a number"},
		{"https://h/%", "percent sign"},
		{"https://h/%4", "percent sign"},
		{"https://h/%zz", "percent sign without two hex digits (at byte 11)"},
		{"https://h/a\\b", "not allowed in a URL"},
		{"https://h/{tenant}/", "byte not allowed in a URL (percent-encode it) (at byte 11)"},
		{"https://h/\xc3\xbc", "not allowed in a URL"},
		{"https://h/?\"", "not allowed in a URL"},
		{"https://h/<", "not allowed in a URL"},
		{"https://h/[", "not allowed in a URL"},
		{"https://h/|^`", "not allowed in a URL"},
	};

	for (size_t i = 0; i < COUNT(cases); i++)
		assert_refused(cases[i].text, cases[i].reason);
}
END_TEST

/* "https://" + labels of `label` bytes up to `total` bytes of host + "/" */
static char *long_host(size_t label, size_t total)
{
	char *s = mem_alloc(total + 10);

	memcpy(s, "https://", 8);
	for (size_t i = 0; i < total; i++)
		s[8 + i] = i % (label + 1) == label ? '.' : 'a';
	s[8 + total] = '/';
	return s;
}

START_TEST(host_lengths)
{
	static const struct {
		size_t label, total;
		const char *reason;
	} cases[] = {
		{63, 63, NULL},
		{64, 64, "longer than 63"},
		{63, 253, NULL},
		{63, 254, "longer than 253"},
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		char *s = long_host(cases[i].label, cases[i].total);
		struct url u;
		if (cases[i].reason != NULL) {
			assert_refused(s, cases[i].reason);
		} else {
			ck_ok(url_parse(s, &u, NULL));
			ck_assert_uint_eq(strlen(u.host), cases[i].total);
			url_fini(&u);
		}
		mem_free(s);
	}
}
END_TEST

START_TEST(url_length)
{
	char *s = mem_alloc(URL_MAX_BYTES + 2);
	struct url u;
	struct fault f = {0};

	memset(s, 'a', URL_MAX_BYTES);
	memcpy(s, "https://h/", 10);
	ck_ok(url_parse(s, &u, &f));
	ck_assert_uint_eq(strlen(u.path), URL_MAX_BYTES - 9);
	url_fini(&u);
	s[URL_MAX_BYTES] = 'a';
	ck_assert_int_eq(url_parse(s, &u, &f), ST_RANGE);
	ck_assert_ptr_nonnull(strstr(f.text, "8192"));
	mem_free(s);
}
END_TEST

START_TEST(a_fault_never_quotes_the_url)
{
	struct url u;
	struct fault f = {0};

	ck_assert_int_eq(url_parse("https://user:hunter2@h/", &u, &f), ST_SYNTAX);
	ck_assert_ptr_null(strstr(f.text, "hunter2"));
	ck_assert_int_eq(url_parse("https://h/?key=hunter2#", &u, &f), ST_SYNTAX);
	ck_assert_ptr_null(strstr(f.text, "hunter2"));
}
END_TEST

START_TEST(loopback)
{
	static const struct {
		const char *text;
		bool loopback;
	} cases[] = {
		{"http://127.0.0.1/", true},
		{"http://127.255.255.254/", true},
		{"http://[::1]/", true},
		{"http://[0:0:0:0:0:0:0:1]/", true},
		{"http://localhost/", true},
		{"http://LocalHost:80/", true},
		{"http://128.0.0.1/", false},
		{"http://126.255.255.255/", false},
		{"http://0.0.0.0/", false},
		{"http://[::]/", false},
		{"http://[::2]/", false},
		{"http://[::ffff:127.0.0.1]/", false},
		{"http://localhost.example.com/", false},
		{"http://127.0.0.1.example.com/", false},
		{"http://localhos/", false},
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct url u;
		ck_ok(url_parse(cases[i].text, &u, NULL));
		ck_assert_msg(url_is_loopback(&u) == cases[i].loopback, "%s", cases[i].text);
		url_fini(&u);
	}
}
END_TEST

START_TEST(listen_addresses)
{
	static const struct {
		const char *text, *host;
		uint16_t port;
	} cases[] = {
		{"127.0.0.1:8090", "127.0.0.1", 8090},
		{"0.0.0.0:0", "0.0.0.0", 0},
		{"[::]:65535", "::", 65535},
		{"[2001:DB8::1]:1", "2001:db8::1", 1},
		{"localhost:80", "localhost", 80},
		{"LOCALHOST:80", "localhost", 80},
	};
	struct listen_addr a;
	struct fault f = {0};

	for (size_t i = 0; i < COUNT(cases); i++) {
		ck_assert_msg(listen_addr_parse(cases[i].text, &a, &f) == 0, "%s: %s", cases[i].text, f.text);
		ck_assert(!a.is_unix);
		ck_assert_str_eq(a.host, cases[i].host);
		ck_assert_uint_eq(a.port, cases[i].port);
		ck_assert_str_eq(a.path, "");
	}
	ck_ok(listen_addr_parse("unix:/run/refreshd/api.sock", &a, &f));
	ck_assert(a.is_unix);
	ck_assert_str_eq(a.path, "/run/refreshd/api.sock");
	ck_assert_str_eq(a.host, "");
}
END_TEST

START_TEST(listen_addresses_refused)
{
	static const struct {
		const char *text, *reason;
	} cases[] = {
		{"", "neither address:port"},
		{"8090", "neither address:port"},
		{"127.0.0.1", "neither address:port"},
		{":8090", "no IP address"},
		{"*:8090", "no IP address"},
		{"example.com:80", "no IP address"},
		{"127.1:80", "no IP address"},
		{"::1:80", "no IP address"},
		{"[::1]", "no IP address"},
		{"[::1:80", "no IP address"},
		{"[127.0.0.1]:80", "no IP address"},
		{"[]:80", "no IP address"},
		{"[fe80::1%lo]:80", "no IP address"},
		{" 127.0.0.1:80", "no IP address"},
		{"127.0.0.1:", "port is no number from 0 to 65535 (at byte 11)"},
		{"127.0.0.1:65536", "port"},
		{"127.0.0.1:-1", "port"},
		{"127.0.0.1:80 ", "port"},
		{"127.0.0.1:http", "port"},
		{"unix:", "absolute"},
		{"unix:run/x", "path of a unix socket must be absolute (at byte 6)"},
		{"unix:/a\nb", "control byte"},
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct listen_addr a = {.port = 77};
		struct fault f = {0};
		ck_assert_msg(listen_addr_parse(cases[i].text, &a, &f) == ST_SYNTAX, "\"%s\"", cases[i].text);
		ck_assert_msg(strstr(f.text, cases[i].reason) != NULL, "\"%s\": %s", cases[i].text, f.text);
		ck_assert_uint_eq(a.port, 77);
	}
}
END_TEST

START_TEST(unix_path_length)
{
	char text[5 + 109];
	struct listen_addr a;
	struct fault f = {0};

	memset(text, 'a', sizeof(text));
	memcpy(text, "unix:/", 6);
	text[5 + 107] = '\0';
	ck_ok(listen_addr_parse(text, &a, &f));
	ck_assert_uint_eq(strlen(a.path), 107);
	text[5 + 107] = 'a';
	text[5 + 108] = '\0';
	ck_assert_int_eq(listen_addr_parse(text, &a, &f), ST_RANGE);
	ck_assert_ptr_nonnull(strstr(f.text, "107 bytes"));
}
END_TEST

Suite *unit_suite(void)
{
	Suite *s = suite_create("url");
	TCase *tc = tcase_create("url");

	unit_add(tc, urls_are_split);
	unit_add(tc, urls_are_refused_with_a_reason);
	unit_add(tc, host_lengths);
	unit_add(tc, url_length);
	unit_add(tc, a_fault_never_quotes_the_url);
	unit_add(tc, loopback);
	unit_add(tc, listen_addresses);
	unit_add(tc, listen_addresses_refused);
	unit_add(tc, unix_path_length);
	suite_add_tcase(s, tc);
	return s;
}

/*
 * unit - what every Check program shares: one main, TAP on stdout.
 * A test file defines `unit_suite`; main.c runs it in-process (no fork, so that the sanitizers see
 * everything) unless CK_FORK=yes.
 */
#ifndef REFRESHD_TESTS_UNIT_H
#define REFRESHD_TESTS_UNIT_H

#include <check.h>

Suite *unit_suite(void);

#define ck_ok(expr) ck_assert_int_eq((expr), 0)
#define unit_add(tcase, fn) tcase_add_test((tcase), (fn))

#endif

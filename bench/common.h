/*
 * common - what the small programs of the benchmark share: they end at the first thing that is not as it should be.
 */
#ifndef REFRESHD_BENCH_COMMON_H
#define REFRESHD_BENCH_COMMON_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static inline void *need(void *p)
{
	if (p == NULL)
		die("out of memory");
	return p;
}

static inline int64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* User and system time of this process so far. */
static inline int64_t cpu_us(void)
{
	struct rusage r;
	if (getrusage(RUSAGE_SELF, &r) != 0)
		die("getrusage failed");
	return (int64_t)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1000000 + r.ru_utime.tv_usec + r.ru_stime.tv_usec;
}

#endif

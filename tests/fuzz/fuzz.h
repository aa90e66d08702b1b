/*
 * fuzz - what every fuzz target shares: the entry that libFuzzer calls, and the plain driver that runs the seeds.
 */
#ifndef REFRESHD_TESTS_FUZZ_H
#define REFRESHD_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A private folder for this process, made at the first call and removed at exit with what is in it. */
const char *fuzz_folder(void);
void fuzz_empty_folder(void);
void fuzz_write_file(const char *name, const void *p, size_t n); /* in that folder, mode 0600, replaced */
int fuzz_no_sync(int fd); /* in place of fsync: 0 */

#endif

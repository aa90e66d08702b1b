/*
 * driver - runs a fuzz target over its seeds without a fuzzer, so that any compiler and every `make check` does.
 * A seed that breaks something aborts the program, which the test harness sees as a plan that was not kept.
 */
#include "fuzz/fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"

static int not_hidden(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

static void run(const char *folder, const char *name)
{
	char *path = mem_printf("%s/%s", folder, name);
	struct buf seed = BUF_INIT((size_t)1 << 20);
	struct fault f = { .code = 0 };

	if (buf_read_file(&seed, path, &f) != 0) {
		printf("Bail out! %s\n", f.text);
		exit(EXIT_FAILURE);
	}
	/* A block of exactly that size, as the fuzzer gives it: the sanitizer then sees a read behind its end. */
	uint8_t *exact = malloc(seed.len > 0 ? seed.len : 1);
	ALWAYS(exact != NULL);
	if (seed.len > 0)
		memcpy(exact, seed.data, seed.len);
	(void)LLVMFuzzerTestOneInput(exact, seed.len);
	free(exact);
	buf_fini(&seed);
	mem_free(path);
}

int main(int argc, char **argv)
{
	const char *top = getenv("TOP_SRCDIR"), *target = strrchr(argv[0], '/');
	struct dirent **seeds;

	target = target != NULL ? target + 1 : argv[0];
	char *folder = argc > 1 ? mem_strdup(argv[1]) : mem_printf("%s/tests/fuzz/seeds/%s", top != NULL ? top : ".", target);
	int n = scandir(folder, &seeds, not_hidden, alphasort);
	if (n <= 0) {
		printf("Bail out! %s: %s\n", folder, n < 0 ? strerror(errno) : "no seeds");
		mem_free(folder);
		return EXIT_FAILURE;
	}
	printf("1..%d\n", n);
	for (int i = 0; i < n; i++) {
		run(folder, seeds[i]->d_name);
		printf("ok %d - %s\n", i + 1, seeds[i]->d_name);
		(void)fflush(stdout);
		free(seeds[i]);
	}
	free(seeds);
	mem_free(folder);
	return EXIT_SUCCESS;
}

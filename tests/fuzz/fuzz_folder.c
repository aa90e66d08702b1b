/*
 * fuzz_folder - a folder of its own for a target that needs files, in memory where there is room for that.
 */
#include "fuzz/fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

static char folder[64];

void fuzz_empty_folder(void)
{
	DIR *dir = opendir(fuzz_folder());

	for (struct dirent *e; dir != NULL && (e = readdir(dir)) != NULL;)
		(void)unlinkat(dirfd(dir), e->d_name, 0);
	if (dir != NULL)
		closedir(dir);
}

static void remove_folder(void)
{
	fuzz_empty_folder();
	(void)rmdir(folder);
}

const char *fuzz_folder(void)
{
	if (folder[0] != '\0')
		return folder;
	snprintf(folder, sizeof(folder), "%s/refreshd-fuzz.XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	ALWAYS(mkdtemp(folder) != NULL);
	ALWAYS(atexit(remove_folder) == 0);
	return folder;
}

void fuzz_write_file(const char *name, const void *p, size_t n)
{
	char *path = mem_printf("%s/%s", fuzz_folder(), name);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	ALWAYS(fd >= 0);
	ALWAYS(write(fd, p, n) == (ssize_t)n);
	close(fd);
	mem_free(path);
}

int fuzz_no_sync(int fd)
{
	(void)fd;
	return 0;
}

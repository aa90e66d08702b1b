/*
 * diskfault - a disk that breaks, for a program that was not built for it: by LD_PRELOAD, one journal directory.
 *
 * DISKFAULT_CONTROL names a file with one word: "fsync" (every fdatasync and fsync of a file in a folder called "journal" fails),
 * "fsync-once" (the first of them after the word came), "write" (every pwrite as well); anything else: all is well. The
 * file is looked at before each call, so a test breaks and mends the disk while the program runs.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_int spent;

static int is_journal(int fd)
{
	char link[64], path[4096];
	(void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, path, sizeof path - 1);
	if (n <= 0)
		return 0;
	path[n] = '\0';
	return strstr(path, "/journal") != NULL;
}

static void control(char word[32])
{
	const char *name = getenv("DISKFAULT_CONTROL");
	word[0] = '\0';
	int fd = name != NULL ? open(name, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	ssize_t n = read(fd, word, 31);
	(void)close(fd);
	word[n > 0 ? n : 0] = '\0';
	word[strcspn(word, "\n")] = '\0';
}

static int sync_fails(int fd)
{
	char word[32];
	control(word);
	if (strcmp(word, "fsync-once") != 0)
		spent = 0;
	if (!is_journal(fd))
		return 0;
	if (strcmp(word, "fsync-once") == 0)
		return atomic_exchange(&spent, 1) == 0;
	return strcmp(word, "fsync") == 0 || strcmp(word, "write") == 0;
}

static int write_fails(int fd)
{
	char word[32];
	control(word);
	return strcmp(word, "write") == 0 && is_journal(fd);
}

int fdatasync(int fd)
{
	int (*real)(int);
	*(void **)&real = dlsym(RTLD_NEXT, "fdatasync");
	if (sync_fails(fd)) {
		errno = EIO;
		return -1;
	}
	return real(fd);
}

int fsync(int fd)
{
	int (*real)(int);
	*(void **)&real = dlsym(RTLD_NEXT, "fsync");
	if (sync_fails(fd)) {
		errno = EIO;
		return -1;
	}
	return real(fd);
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t at)
{
	ssize_t (*real)(int, const void *, size_t, off_t);
	*(void **)&real = dlsym(RTLD_NEXT, "pwrite");
	if (write_fails(fd)) {
		errno = EIO;
		return -1;
	}
	return real(fd, p, n, at);
}

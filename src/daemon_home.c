/*
 * daemon_home - a name for the journal's directory, drawn once.
 *
 * The database remembers it with our epoch, so that only the process that has this very journal may take back at once
 * what an earlier run claimed. Must not: make a new one where one cannot be read.
 */
#include "daemon_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/str.h"
#include "base/sys.h"

static int read_home(const char *path, uint8_t home[16])
{
	struct buf text;
	buf_init(&text, 64);
	int e = buf_read_file(&text, path, NULL);
	if (e == 0)
		e = str_parse_uuid(buf_str(&text), text.len > 36 ? 36 : text.len, home);
	buf_fini(&text);
	return e;
}

static int write_home(const char *dir, const char *path, const uint8_t home[16], struct fault *f)
{
	char text[STR_UUID_BYTES + 1];
	str_format_uuid(home, text);
	text[STR_UUID_BYTES - 1] = '\n';
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	bool ok = fd >= 0 && write(fd, text, STR_UUID_BYTES) == STR_UUID_BYTES && fsync(fd) == 0;
	int why = errno;
	if (fd >= 0)
		(void)close(fd);
	int dirfd = ok ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	if (ok && (dirfd < 0 || fsync(dirfd) != 0)) {
		ok = false;
		why = errno;
	}
	if (dirfd >= 0)
		(void)close(dirfd);
	return ok ? 0 : fault_set(f, ST_IO, "%s: %s", path, strerror(why));
}

int daemon_home(const char *dir, uint8_t home[16], struct fault *f)
{
	char *path = mem_printf("%s/home", dir);
	int e = read_home(path, home);
	if (e == ST_NOT_FOUND) {
		sys_uuid4(home);
		e = write_home(dir, path, home, f);
	} else if (e != 0) {
		(void)fault_set(f, e, "%s: it should hold one UUID (%s); remove it to start as a new instance", path, status_text(e));
	}
	mem_free(path);
	return e;
}

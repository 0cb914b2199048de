/* A disk that fails or is slow, in the files below one folder: a layer below SQLite.
 *
 *     cc -shared -fPIC -O2 -o diskfault.so diskfault.c
 *     LD_PRELOAD=diskfault.so DISKFAULT_ROOT=/folder DISKFAULT_MODE=/elsewhere/mode program …
 *
 * The mode is a file of `struct mode`, mapped, so that who runs the test changes it while the program runs: a number for each
 * sort of call, errno's, with which it fails from then on, 0 for a disk in good health; and the milliseconds that a sync takes.
 * Paths are compared as they are given: the program names its folder by an absolute path without links.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct mode {
    int32_t reads;
    int32_t writes; /* of bytes and of names: also what would create, remove or open for writing */
    int32_t syncs;
    int32_t sync_ms;
};

static const volatile struct mode *mode;
static char root[PATH_MAX];
static size_t root_size;

__attribute__((constructor)) static void begin(void)
{
    const char *folder = getenv("DISKFAULT_ROOT"), *path = getenv("DISKFAULT_MODE");
    if (folder == NULL || path == NULL || strlen(folder) >= sizeof root)
        return;
    root_size = strlen(strcpy(root, folder));
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    void *found = fd < 0 ? MAP_FAILED : (void *)syscall(SYS_mmap, NULL, sizeof *mode, PROT_READ, MAP_SHARED, fd, 0);
    if (found == MAP_FAILED)
        abort();
    syscall(SYS_close, fd);
    mode = found;
}

static int is_below(const char *path)
{
    return path != NULL && strncmp(path, root, root_size) == 0 && (path[root_size] == '/' || path[root_size] == 0);
}

static int is_ours(int fd)
{
    char name[64], path[PATH_MAX];
    int before = errno;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(name, path, sizeof path - 1);
    errno = before;
    path[size < 0 ? 0 : size] = 0;
    return is_below(path);
}

/* The call, or its failure where it is one of ours. */
#define OR_FAIL(failure, ours, call)                                                                               \
    int32_t error = mode == NULL ? 0 : (failure);                                                                  \
    if (error != 0 && (ours)) {                                                                                    \
        errno = error;                                                                                             \
        return -1;                                                                                                 \
    }                                                                                                              \
    return call;

ssize_t read(int fd, void *to, size_t size) { OR_FAIL(mode->reads, is_ours(fd), syscall(SYS_read, fd, to, size)) }
ssize_t pread(int fd, void *to, size_t size, off_t at)
{
    OR_FAIL(mode->reads, is_ours(fd), syscall(SYS_pread64, fd, to, size, at))
}
ssize_t pread64(int fd, void *to, size_t size, off_t at) { return pread(fd, to, size, at); }
ssize_t preadv(int fd, const struct iovec *to, int count, off_t at)
{
    OR_FAIL(mode->reads, is_ours(fd), syscall(SYS_preadv, fd, to, count, at, 0))
}
ssize_t preadv2(int fd, const struct iovec *to, int count, off_t at, int flags)
{
    OR_FAIL(mode->reads, is_ours(fd), syscall(SYS_preadv2, fd, to, count, at, 0, flags))
}
ssize_t preadv64(int fd, const struct iovec *to, int count, off_t at) { return preadv(fd, to, count, at); }
ssize_t preadv64v2(int fd, const struct iovec *to, int count, off_t at, int flags)
{
    return preadv2(fd, to, count, at, flags);
}

ssize_t write(int fd, const void *data, size_t size)
{
    OR_FAIL(mode->writes, is_ours(fd), syscall(SYS_write, fd, data, size))
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    OR_FAIL(mode->writes, is_ours(fd), syscall(SYS_pwrite64, fd, data, size, at))
}
int ftruncate(int fd, off_t size) { OR_FAIL(mode->writes, is_ours(fd), syscall(SYS_ftruncate, fd, size)) }
int fallocate(int fd, int how, off_t at, off_t size)
{
    OR_FAIL(mode->writes, is_ours(fd), syscall(SYS_fallocate, fd, how, at, size))
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return pwrite(fd, data, size, at); }
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
int fallocate64(int fd, int how, off_t at, off_t size) { return fallocate(fd, how, at, size); }
int posix_fallocate(int fd, off_t at, off_t size)
{
    int before = errno, result = fallocate(fd, 0, at, size) < 0 ? errno : 0;
    errno = before;
    return result;
}
int posix_fallocate64(int fd, off_t at, off_t size) { return posix_fallocate(fd, at, size); }

/* -- names ------------------------------------------------------------------------------------------------------ */

static int opened(int at, const char *path, int flags, mode_t rights)
{
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
    OR_FAIL(mode->writes, writes && is_below(path), syscall(SYS_openat, at, path, flags, rights))
}

#define RIGHTS(flags)                                                                                              \
    mode_t rights = 0;                                                                                             \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                         \
        va_list more;                                                                                              \
        va_start(more, flags);                                                                                     \
        rights = va_arg(more, mode_t);                                                                             \
        va_end(more);                                                                                              \
    }

int open(const char *path, int flags, ...) { RIGHTS(flags) return opened(AT_FDCWD, path, flags, rights); }
int open64(const char *path, int flags, ...) { RIGHTS(flags) return opened(AT_FDCWD, path, flags, rights); }
int openat(int at, const char *path, int flags, ...) { RIGHTS(flags) return opened(at, path, flags, rights); }
int openat64(int at, const char *path, int flags, ...) { RIGHTS(flags) return opened(at, path, flags, rights); }

int unlinkat(int at, const char *path, int flags)
{
    OR_FAIL(mode->writes, is_below(path), syscall(SYS_unlinkat, at, path, flags))
}
int mkdirat(int at, const char *path, mode_t rights)
{
    OR_FAIL(mode->writes, is_below(path), syscall(SYS_mkdirat, at, path, rights))
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags)
{
    OR_FAIL(mode->writes, is_below(to), syscall(SYS_renameat2, a, from, b, to, flags))
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdir(const char *path, mode_t rights) { return mkdirat(AT_FDCWD, path, rights); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

/* -- what is made to last --------------------------------------------------------------------------------------- */

static int synced(int number, int fd)
{
    int32_t wait_ms = mode == NULL ? 0 : mode->sync_ms;
    if (wait_ms > 0 && is_ours(fd)) {
        struct timespec wait = { wait_ms / 1000, wait_ms % 1000 * 1000000L };
        nanosleep(&wait, NULL);
    }
    OR_FAIL(mode->syncs, is_ours(fd), syscall(number, fd))
}

int fsync(int fd) { return synced(SYS_fsync, fd); }
int fdatasync(int fd) { return synced(SYS_fdatasync, fd); }

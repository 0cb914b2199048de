/* Records what a process does to the files below one folder, in order and with the data: a layer below SQLite.
 *
 *     cc -shared -fPIC -O2 -o powerloss.so powerloss.c -pthread
 *     LD_PRELOAD=powerloss.so POWERLOSS_ROOT=/folder POWERLOSS_LOG=/elsewhere/log program …
 *
 * Every call is made as it was asked for, and then appended to the log while a lock on the log is held: an entry is in the log
 * before its caller goes on, so whoever was told something by the program finds in the log what the program had done by then.
 * flock(2) keeps processes apart, the one that wants to kill this one included (it takes the lock first, so that no call is
 * cut from its entry), a mutex the threads. powerloss_kit.py reads the log.
 *
 * Before each entry it is noted how the mapped file begins, if that has changed: stores into memory are no calls.
 *
 * What the log can't say makes an entry UNMODELLED with the call's name, for the reader to refuse; calls that the C library
 * makes within itself (fopen) are not seen, which is why the reader compares its end with the real folder.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE, TRUNCATE, ALLOCATE, SYNC, UNLINK, MKDIR, MMAP, CLOSE, MAPPED, UNMODELLED };

struct entry { /* little-endian, no holes; then `path_size` bytes of path, relative to the root, and `data_size` of data */
    uint32_t op;
    int32_t pid;
    int32_t fd;
    int32_t flags;
    int64_t offset;
    int64_t size;
    uint32_t path_size;
    uint32_t data_size;
};

#define FDS 4096
static char root[PATH_MAX];
static size_t root_size;
static int log_fd = -1;
static unsigned char ours[FDS]; /* file descriptors of files below the root */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static const void *mapped; /* the file that is mapped shared and writable: SQLite's -shm */
static int mapped_fd;
static unsigned char mapped_was[512]; /* its beginning as it was noted last */

__attribute__((constructor)) static void begin(void)
{
    const char *folder = getenv("POWERLOSS_ROOT"), *path = getenv("POWERLOSS_LOG");
    if (folder == NULL || path == NULL || realpath(folder, root) == NULL)
        return;
    root_size = strlen(root);
    log_fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (log_fd >= 0) { /* out of the way of programs that count on low numbers */
        int high = fcntl(log_fd, F_DUPFD_CLOEXEC, 200);
        syscall(SYS_close, log_fd);
        log_fd = high;
    }
    if (log_fd < 0)
        abort();
}

static void lock(void)
{
    pthread_mutex_lock(&mutex);
    while (flock(log_fd, LOCK_EX) < 0 && errno == EINTR)
        ;
}

/* `errno` is the recorded call's own. */
static void unlock(void)
{
    int error = errno;
    flock(log_fd, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    errno = error;
}

static void append(int op, int fd, int flags, int64_t offset, int64_t size, const char *path, const void *data,
                   size_t data_size)
{
    struct entry head = { op, (int32_t)getpid(), fd, flags, offset, size, path ? strlen(path) : 0, data_size };
    struct iovec parts[3] = { { &head, sizeof head }, { (void *)path, head.path_size }, { (void *)data, data_size } };
    ssize_t whole = sizeof head + head.path_size + data_size;
    if (syscall(SYS_writev, log_fd, parts, 3) != whole)
        abort(); /* a log with a hole would prove anything */
}

/* What was stored into the mapped file since the last call, and then this one. */
static void note(int op, int fd, int flags, int64_t offset, int64_t size, const char *path, const void *data,
                 size_t data_size)
{
    int error = errno;
    if (mapped != NULL && memcmp(mapped_was, mapped, sizeof mapped_was) != 0) {
        memcpy(mapped_was, mapped, sizeof mapped_was);
        append(MAPPED, mapped_fd, 0, 0, sizeof mapped_was, NULL, mapped_was, sizeof mapped_was);
    }
    append(op, fd, flags, offset, size, path, data, data_size);
    errno = error;
}

static int is_ours(int fd)
{
    return log_fd >= 0 && fd >= 0 && fd < FDS && ours[fd];
}

/* A path below the root, relative to it; NULL for others. The folder of what is named has to exist, as it does for whoever makes
 * or removes something in it. */
static const char *below(int at, const char *path, char *buffer)
{
    char folder[PATH_MAX], whole[PATH_MAX];
    if (log_fd < 0 || path == NULL || strlen(path) + 32 > sizeof whole)
        return NULL;
    if (path[0] == '/' || at == AT_FDCWD)
        snprintf(whole, sizeof whole, "%s", path);
    else
        snprintf(whole, sizeof whole, "/proc/self/fd/%d/%s", at, path);
    size_t size = strlen(whole);
    while (size > 1 && whole[size - 1] == '/')
        whole[--size] = 0;
    char *slash = strrchr(whole, '/');
    const char *name = slash ? slash + 1 : whole;
    if (slash != NULL)
        *slash = 0;
    int error = errno;
    char *found = realpath(slash == NULL ? "." : slash == whole ? "/" : whole, folder);
    errno = error;
    if (found == NULL || snprintf(buffer, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX)
        return NULL;
    if (strncmp(buffer, root, root_size) != 0 || (buffer[root_size] != '/' && buffer[root_size] != 0))
        return NULL;
    return buffer[root_size] == 0 ? buffer + root_size : buffer + root_size + 1;
}

/* -- files come and go ------------------------------------------------------------------------------------------ */

static int opened(int at, const char *path, int flags, mode_t mode)
{
    char buffer[PATH_MAX];
    const char *name = below(at, path, buffer);
    if (name == NULL) {
        int fd = syscall(SYS_openat, at, path, flags, mode);
        if (fd >= 0 && fd < FDS)
            ours[fd] = 0;
        return fd;
    }
    lock();
    int fd = syscall(SYS_openat, at, path, flags, mode);
    if (fd >= FDS)
        abort();
    if (fd >= 0) {
        int odd = (flags & O_DSYNC) || (flags & O_TMPFILE) == O_TMPFILE;
        ours[fd] = 1;
        note(odd ? UNMODELLED : OPEN, fd, flags, 0, 0, odd ? "open with O_DSYNC, O_SYNC or O_TMPFILE" : name, NULL, 0);
    }
    unlock();
    return fd;
}

#define MODE(flags)                                                                                                \
    mode_t mode = 0;                                                                                               \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                         \
        va_list more;                                                                                              \
        va_start(more, flags);                                                                                     \
        mode = va_arg(more, mode_t);                                                                               \
        va_end(more);                                                                                              \
    }

int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) return opened(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) return opened(at, path, flags, mode); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int close(int fd)
{
    if (!is_ours(fd))
        return syscall(SYS_close, fd);
    lock();
    ours[fd] = 0;
    int result = syscall(SYS_close, fd);
    note(CLOSE, fd, 0, 0, 0, NULL, NULL, 0);
    unlock();
    return result;
}

/* A call on a path: `op` if it is one that the log can say, UNMODELLED with the call's name otherwise. */
#define ON_PATH(op, at, path, call)                                                                                \
    char buffer[PATH_MAX];                                                                                         \
    const char *name = below(at, path, buffer);                                                                    \
    if (name == NULL)                                                                                              \
        return call;                                                                                               \
    lock();                                                                                                        \
    int result = call;                                                                                             \
    if (result == 0)                                                                                               \
        note(op, -1, 0, 0, 0, (op) == UNMODELLED ? __func__ : name, NULL, 0);                                      \
    unlock();                                                                                                      \
    return result;

int unlinkat(int at, const char *path, int flags)
{
    ON_PATH(flags ? UNMODELLED : UNLINK, at, path, syscall(SYS_unlinkat, at, path, flags))
}

int mkdirat(int at, const char *path, mode_t mode)
{
    ON_PATH(MKDIR, at, path, syscall(SYS_mkdirat, at, path, mode))
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags)
{
    ON_PATH(UNMODELLED, b, to, syscall(SYS_renameat2, a, from, b, to, flags))
}

int linkat(int a, const char *from, int b, const char *to, int flags)
{
    ON_PATH(UNMODELLED, b, to, syscall(SYS_linkat, a, from, b, to, flags))
}

int symlinkat(const char *to, int at, const char *path)
{
    ON_PATH(UNMODELLED, at, path, syscall(SYS_symlinkat, to, at, path))
}

int truncate(const char *path, off_t size)
{
    ON_PATH(UNMODELLED, AT_FDCWD, path, syscall(SYS_truncate, path, size))
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int a, const char *from, int b, const char *to) { return renameat2(a, from, b, to, 0); }
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
int symlink(const char *to, const char *path) { return symlinkat(to, AT_FDCWD, path); }
int truncate64(const char *path, off_t size) { return truncate(path, size); }

/* -- what is written -------------------------------------------------------------------------------------------- */

/* Makes a call on a file of ours; `entry` notes it if it went well. */
#define ON_FILE(type, fd, call, entry)                                                                             \
    if (!is_ours(fd))                                                                                              \
        return call;                                                                                               \
    lock();                                                                                                        \
    type result = call;                                                                                            \
    if (result >= 0)                                                                                               \
        entry;                                                                                                     \
    unlock();                                                                                                      \
    return result;

/* Where a write without an offset has just ended; the same for O_APPEND. */
static int64_t end_of(int fd) { return lseek(fd, 0, SEEK_CUR); }

static void note_parts(int fd, const struct iovec *parts, int count, int64_t offset, size_t size)
{
    char *whole = malloc(size + 1), *place = whole;
    size_t left = size;
    if (whole == NULL)
        abort();
    for (int i = 0; i < count && left > 0; i++) {
        size_t part = parts[i].iov_len < left ? parts[i].iov_len : left;
        memcpy(place, parts[i].iov_base, part);
        place += part;
        left -= part;
    }
    note(WRITE, fd, 0, offset, size, NULL, whole, size);
    free(whole);
}

ssize_t write(int fd, const void *data, size_t size)
{
    ON_FILE(ssize_t, fd, syscall(SYS_write, fd, data, size),
            note(WRITE, fd, 0, end_of(fd) - result, result, NULL, data, result))
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    ON_FILE(ssize_t, fd, syscall(SYS_pwrite64, fd, data, size, offset),
            note(WRITE, fd, 0, offset, result, NULL, data, result))
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    ON_FILE(ssize_t, fd, syscall(SYS_writev, fd, parts, count),
            note_parts(fd, parts, count, end_of(fd) - result, result))
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    ON_FILE(ssize_t, fd, syscall(SYS_pwritev, fd, parts, count, offset, 0),
            note_parts(fd, parts, count, offset, result))
}

ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    ON_FILE(ssize_t, fd, syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags),
            note(UNMODELLED, fd, flags, offset, result, __func__, NULL, 0))
}

ssize_t sendfile(int to, int from, off_t *offset, size_t size)
{
    ON_FILE(ssize_t, to, syscall(SYS_sendfile, to, from, offset, size),
            note(UNMODELLED, to, 0, 0, result, __func__, NULL, 0))
}

ssize_t copy_file_range(int from, off_t *a, int to, off_t *b, size_t size, unsigned flags)
{
    ON_FILE(ssize_t, to, syscall(SYS_copy_file_range, from, a, to, b, size, flags),
            note(UNMODELLED, to, 0, 0, result, __func__, NULL, 0))
}

int ftruncate(int fd, off_t size)
{
    ON_FILE(int, fd, syscall(SYS_ftruncate, fd, size), note(TRUNCATE, fd, 0, 0, size, NULL, NULL, 0))
}

int fallocate(int fd, int mode, off_t offset, off_t size)
{
    ON_FILE(int, fd, syscall(SYS_fallocate, fd, mode, offset, size),
            note(mode ? UNMODELLED : ALLOCATE, fd, mode, offset, size, mode ? __func__ : NULL, NULL, 0))
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return pwrite(fd, data, size, at); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t at) { return pwritev(fd, parts, count, at); }
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off_t at, int flags)
{
    return pwritev2(fd, parts, count, at, flags);
}
ssize_t sendfile64(int to, int from, off_t *offset, size_t size) { return sendfile(to, from, offset, size); }
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
int fallocate64(int fd, int mode, off_t offset, off_t size) { return fallocate(fd, mode, offset, size); }

int posix_fallocate(int fd, off_t offset, off_t size)
{
    int before = errno, result = fallocate(fd, 0, offset, size) < 0 ? errno : 0;
    errno = before;
    return result;
}
int posix_fallocate64(int fd, off_t offset, off_t size) { return posix_fallocate(fd, offset, size); }

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (!is_ours(fd))
        return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
    lock();
    void *result = (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
    if (result != MAP_FAILED) {
        note(MMAP, fd, flags, offset, size, NULL, NULL, 0);
        if ((flags & MAP_SHARED) && (protection & PROT_WRITE) && offset == 0 && size >= sizeof mapped_was) {
            mapped = result;
            mapped_fd = fd;
        }
    }
    unlock();
    return result;
}

int munmap(void *address, size_t size)
{
    if (log_fd >= 0 && address == mapped && address != NULL) {
        lock();
        mapped = NULL;
        unlock();
    }
    return syscall(SYS_munmap, address, size);
}

void *mmap64(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    return mmap(address, size, protection, flags, fd, offset);
}

/* -- what is made to last --------------------------------------------------------------------------------------- */

int fsync(int fd) { ON_FILE(int, fd, syscall(SYS_fsync, fd), note(SYNC, fd, 0, 0, 0, NULL, NULL, 0)) }
int fdatasync(int fd) { ON_FILE(int, fd, syscall(SYS_fdatasync, fd), note(SYNC, fd, 1, 0, 0, NULL, NULL, 0)) }
int syncfs(int fd) { ON_FILE(int, fd, syscall(SYS_syncfs, fd), note(UNMODELLED, fd, 0, 0, 0, __func__, NULL, 0)) }

int msync(void *address, size_t size, int flags)
{
    int result = syscall(SYS_msync, address, size, flags);
    if (log_fd >= 0 && result == 0) {
        lock();
        note(UNMODELLED, -1, flags, 0, 0, __func__, NULL, 0);
        unlock();
    }
    return result;
}

/* sync_file_range(2) writes back without file size, extents or the disk's own cache: it makes nothing last, and is not noted.
 * What a descriptor's copy (dup, fcntl) is used for is not seen either. */

/* Put before the C library by LD_PRELOAD: while the file $NO_ROOM_FLAG exists, the disk below $NO_ROOM_ROOT is full. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int full(void) {
    const char *flag = getenv("NO_ROOM_FLAG");
    return flag && access(flag, F_OK) == 0;
}

static int below(const char *path) {
    const char *root = getenv("NO_ROOM_ROOT");
    return root && strncmp(path, root, strlen(root)) == 0;
}

static int refused(int fd) {
    char link[64], path[PATH_MAX];
    int saved = errno, no = 0;
    if (fd > 2 && full()) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length > 0) { path[length] = 0; no = below(path); }
    }
    errno = saved;
    return no;
}

static int no_new(const char *path) {
    int saved = errno, no = full() && below(path) && access(path, F_OK) != 0;
    errno = no ? ENOSPC : saved;
    return no;
}

ssize_t write(int fd, const void *data, size_t size) {
    if (refused(fd)) { errno = ENOSPC; return -1; }
    return REAL(write)(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (refused(fd)) { errno = ENOSPC; return -1; }
    return REAL(writev)(fd, parts, count);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    if (refused(fd)) { errno = ENOSPC; return -1; }
    return REAL(pwrite64)(fd, data, size, offset);
}
int mkdir(const char *path, mode_t mode) { return no_new(path) ? -1 : REAL(mkdir)(path, mode); }
int symlink(const char *to, const char *path) { return no_new(path) ? -1 : REAL(symlink)(to, path); }
int statvfs64(const char *path, struct statvfs64 *info) {
    int result = REAL(statvfs64)(path, info);
    if (!result && full() && below(path)) info->f_bavail = info->f_bfree = 0;
    return result;
}
int statvfs(const char *path, struct statvfs *info) { return statvfs64(path, (struct statvfs64 *)info); }

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
        if ((flags & O_CREAT) && no_new(path)) return -1;                                                              \
        return REAL(name)(path, flags, mode);                                                                          \
    }
OPEN(open)
OPEN(open64)

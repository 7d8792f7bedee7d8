/* Counts what a process does to the file system below one folder, whichever of its libraries does it, and kills the
 * process in front of a given event. Loaded in front of the C library by LD_PRELOAD; see test_checkpoints.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_long seen;
static long last = -1;

/* Starts counting; the process dies in front of event `at`, counted from 0, or never if that is negative. */
void watch(const char *path, long at) {
  seen = 0;
  last = at;
  snprintf(folder, sizeof folder, "%s", path);
}

long events_seen(void) { return seen; }

static void event(int place, const char *path) {
  char link[64], where[PATH_MAX];
  if (!folder[0]) return;
  if (!path || (path[0] != '/' && place != AT_FDCWD)) { /* within an open folder, or an open file */
    snprintf(link, sizeof link, "/proc/self/fd/%d", place);
    ssize_t length = readlink(link, where, sizeof where - 1);
    if (length < 0) return;
    where[length] = 0, path = where;
  }
  if (strncmp(path, folder, strlen(folder))) return;
  if (atomic_fetch_add(&seen, 1) == last) kill(getpid(), SIGKILL), pause();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)

#define OPEN(name)                                     \
  int name(const char *path, int flags, ...) {         \
    va_list more;                                      \
    va_start(more, flags);                             \
    mode_t mode = va_arg(more, mode_t);                \
    va_end(more);                                      \
    if (flags & WRITES) event(AT_FDCWD, path);         \
    return REAL(name)(path, flags, mode);              \
  }
#define OPENAT(name)                                   \
  int name(int place, const char *path, int flags, ...) { \
    va_list more;                                      \
    va_start(more, flags);                             \
    mode_t mode = va_arg(more, mode_t);                \
    va_end(more);                                      \
    if (flags & WRITES) event(place, path);            \
    return REAL(name)(place, path, flags, mode);       \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int mkdir(const char *path, mode_t mode) { return event(AT_FDCWD, path), REAL(mkdir)(path, mode); }
int mkdirat(int place, const char *path, mode_t mode) { return event(place, path), REAL(mkdirat)(place, path, mode); }
int rmdir(const char *path) { return event(AT_FDCWD, path), REAL(rmdir)(path); }
int unlink(const char *path) { return event(AT_FDCWD, path), REAL(unlink)(path); }
int unlinkat(int place, const char *path, int flags) {
  return event(place, path), REAL(unlinkat)(place, path, flags);
}
int rename(const char *from, const char *to) { return event(AT_FDCWD, from), REAL(rename)(from, to); }
int renameat(int place, const char *from, int there, const char *to) {
  return event(place, from), REAL(renameat)(place, from, there, to);
}
int ftruncate(int file, off_t size) { return event(file, NULL), REAL(ftruncate)(file, size); }
int ftruncate64(int file, off64_t size) { return event(file, NULL), REAL(ftruncate64)(file, size); }
int fsync(int file) { return event(file, NULL), REAL(fsync)(file); }
ssize_t write(int file, const void *bytes, size_t size) { return event(file, NULL), REAL(write)(file, bytes, size); }
ssize_t pwrite(int file, const void *bytes, size_t size, off_t at) {
  return event(file, NULL), REAL(pwrite)(file, bytes, size, at);
}
ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t at) {
  return event(file, NULL), REAL(pwrite64)(file, bytes, size, at);
}

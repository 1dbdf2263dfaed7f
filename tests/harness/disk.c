/* Preloaded into a process: a disk that does not answer, and a file system that refuses calls.
 *
 * DISK_HANGS_FILE  while this file exists, syncfs(2) and fsync(2) do not return.
 * DISK_REFUSES     call=errno,..., such as "flock=38,fsync-folder=22": these calls fail.
 * DISK_BELOW       only on files below this folder.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define LOOK_MICROSECONDS 10000
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_below(int descriptor) {
    const char *below = getenv("DISK_BELOW");
    char link[64], path[PATH_MAX] = "";
    if (!below)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    return readlink(link, path, sizeof path - 1) > 0 && strncmp(path, below, strlen(below)) == 0;
}

/* The errno with which a call is refused; 0: it is not. */
static int refusal(const char *call, int descriptor) {
    const char *found = getenv("DISK_REFUSES");
    size_t length = strlen(call);
    for (; found; found = strchr(found, ',')) {
        found += *found == ',';
        if (strncmp(found, call, length) == 0 && found[length] == '=')
            return is_below(descriptor) ? atoi(found + length + 1) : 0;
    }
    return 0;
}

static int is_refused(const char *call, int descriptor) {
    int number = refusal(call, descriptor);
    if (number)
        errno = number;
    return number;
}

static void hang(void) {
    const char *hangs = getenv("DISK_HANGS_FILE");
    while (hangs && access(hangs, F_OK) == 0)
        usleep(LOOK_MICROSECONDS);
}

int syncfs(int folder) {
    hang();
    return is_refused("syncfs", folder) ? -1 : (int)syscall(SYS_syncfs, folder);
}

int fsync(int file) {
    struct stat found;
    hang();
    int is_folder = fstat(file, &found) == 0 && S_ISDIR(found.st_mode);
    return is_refused(is_folder ? "fsync-folder" : "fsync", file) ? -1 : REAL(fsync)(file);
}

int flock(int file, int how) {
    return is_refused("flock", file) ? -1 : REAL(flock)(file, how);
}

int renameat2(int from, const char *name, int to, const char *new, unsigned int flags) {
    return is_refused("renameat2", from) ? -1 : (int)syscall(SYS_renameat2, from, name, to, new, flags);
}

int posix_fallocate64(int file, off64_t offset, off64_t length) {
    int number = refusal("posix_fallocate", file);
    return number ? number : REAL(posix_fallocate64)(file, offset, length);
}

int posix_fallocate(int file, off_t offset, off_t length) {
    return posix_fallocate64(file, offset, length);
}

void *mmap64(void *at, size_t length, int protection, int flags, int file, off64_t offset) {
    if (file >= 0 && is_refused("mmap", file))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, length, protection, flags, file, offset);
}

void *mmap(void *at, size_t length, int protection, int flags, int file, off_t offset) {
    return mmap64(at, length, protection, flags, file, offset);
}

/* A socket has no file yet: the folder in its path counts. */
int bind(int file, const struct sockaddr *address, socklen_t length) {
    if (address->sa_family == AF_UNIX) {
        const char *path = ((const struct sockaddr_un *)address)->sun_path;
        char folder[PATH_MAX] = "";
        snprintf(folder, sizeof folder, "%s", path);
        if (strrchr(folder, '/'))
            *strrchr(folder, '/') = 0;
        int opened = *folder ? (int)syscall(SYS_open, folder, 0x200000 /* O_PATH */, 0) : -1;
        int refused = opened >= 0 && is_refused("bind", opened);
        if (opened >= 0)
            syscall(SYS_close, opened);
        if (refused)
            return -1;
    }
    return REAL(bind)(file, address, length);
}

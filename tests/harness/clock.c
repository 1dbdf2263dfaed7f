/* Preloaded into a process: its wall clock, and that of its libraries, runs ahead of the machine's or behind it
 * by the number of seconds in a file, as if somebody had set the machine's. The monotonic clock runs on.
 *
 * libfaketime does the same, but not to cnd_timedwait, with which librdkafka waits: a wait of one second then
 * lasts an hour and one second, which no clock that is set can cause.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

/* Absolute times below it are of the monotonic clock, which began when the machine did. */
#define A_WALL_CLOCK 1000000000

static volatile int64_t nothing;
static volatile int64_t *ahead_seconds = &nothing;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("CLOCK_AHEAD_FILE");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        ahead_seconds = mapped;
    close(file);
}

static void *next(const char *name) {
    /* Plain dlsym may give the oldest of several versions. */
    void *found = dlvsym(RTLD_NEXT, name, "GLIBC_2.3.2");
    return found ? found : dlsym(RTLD_NEXT, name);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = next("clock_gettime");
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *ahead_seconds;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now)
        *now = precise.tv_sec;
    return precise.tv_sec;
}

int timespec_get(struct timespec *now, int base) {
    if (base != TIME_UTC)
        return 0;
    clock_gettime(CLOCK_REALTIME, now);
    return base;
}

/* What the kernel, whose clock was not set, takes for the same moment. */
static struct timespec real_moment(const struct timespec *until) {
    struct timespec moment = *until;
    if (moment.tv_sec > A_WALL_CLOCK)
        moment.tv_sec -= *ahead_seconds;
    return moment;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real)
        real = next("pthread_cond_timedwait");
    struct timespec moment = real_moment(until);
    return real(condition, mutex, &moment);
}

int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *until) {
    static int (*real)(cnd_t *, mtx_t *, const struct timespec *);
    if (!real)
        real = next("cnd_timedwait");
    struct timespec moment = real_moment(until);
    return real(condition, mutex, &moment);
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
    static int (*real)(sem_t *, const struct timespec *);
    if (!real)
        real = next("sem_timedwait");
    struct timespec moment = real_moment(until);
    return real(semaphore, &moment);
}

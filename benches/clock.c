/* Loaded with LD_PRELOAD: a program's calendar clock (CLOCK_REALTIME) is ahead of the machine's, or behind it, by what stands in a mapped file,
 * which another process changes at any moment. The monotonic clock, by which seconds are measured, is left as it is, as when a machine's clock
 * is set. Allocates nothing. The file that CLOCK_FILE names holds two integers of 64 bits: the seconds ahead, and how often a clock that was
 * ahead or behind has been read. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct shared {
    int64_t ahead, reads;
};

static struct shared *shared;

__attribute__((constructor)) static void map(void) {
    const char *path = getenv("CLOCK_FILE");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) {
        static const char message[] = "clock.c: CLOCK_FILE cannot be mapped\n";
        (void)!write(2, message, sizeof message - 1);
        _exit(1);
    }
    close(file);
    shared = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    int calendar = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || clock == CLOCK_TAI;
    /* Other libraries' constructors may ask before the file is mapped. */
    int64_t ahead = shared ? __atomic_load_n(&shared->ahead, __ATOMIC_RELAXED) : 0;
    if (result == 0 && calendar && ahead != 0) {
        time->tv_sec += ahead;
        __atomic_fetch_add(&shared->reads, 1, __ATOMIC_RELAXED);
    }
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *seconds) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (seconds)
        *seconds = now.tv_sec;
    return now.tv_sec;
}

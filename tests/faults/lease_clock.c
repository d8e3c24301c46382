/* Lets a process believe in another time of day; its monotonic clock stays right.
 *
 * Loaded with LD_PRELOAD. LLMSPELL_TEST_CLOCK names a file of 8 bytes: nanoseconds, signed, that are
 * added to the time of day. It is mapped, so that a test can change it while the process runs. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *off_ns;

__attribute__((constructor)) static void map_offset(void) {
  const char *path = getenv("LLMSPELL_TEST_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *found = mmap(NULL, 8, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (found != MAP_FAILED) off_ns = found;
}

static int read_clock(clockid_t id, struct timespec *now) {
  int failed = (int)syscall(SYS_clock_gettime, id, now);
  if (failed || !off_ns || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE)) return failed;
  int64_t ns = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec + *off_ns;
  now->tv_sec = ns / 1000000000;
  now->tv_nsec = ns % 1000000000;
  return 0;
}

int clock_gettime(clockid_t id, struct timespec *now) { return read_clock(id, now); }

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec read;
  (void)zone;
  if (read_clock(CLOCK_REALTIME, &read)) return -1;
  now->tv_sec = read.tv_sec;
  now->tv_usec = read.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *seconds) {
  struct timespec read;
  read_clock(CLOCK_REALTIME, &read);
  if (seconds) *seconds = read.tv_sec;
  return read.tv_sec;
}

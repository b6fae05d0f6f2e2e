#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <cstdlib>

#include "threads/system.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rnnkern::os {
namespace {
Nanoseconds read(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return Nanoseconds{1000000000} * t.tv_sec + t.tv_nsec;
}
}  // namespace

Nanoseconds wall_clock() { return read(CLOCK_MONOTONIC); }
Nanoseconds thread_clock() { return read(CLOCK_THREAD_CPUTIME_ID); }
Nanoseconds process_clock() { return read(CLOCK_PROCESS_CPUTIME_ID); }

void sleep([[maybe_unused]] int* word, [[maybe_unused]] int expected) {
#if defined(__linux__)
  constexpr timespec limit{0, 10000000};  // short against the time between two questions
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, &limit, nullptr, 0);
#else
  sched_yield();
#endif
}

void wake([[maybe_unused]] int* word, [[maybe_unused]] int most) {
#if defined(__linux__)
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, most, nullptr, nullptr, 0);
#endif
}

bool in_forked_children(void (*call)()) noexcept {
  return pthread_atfork(nullptr, nullptr, call) == 0;
}

int startable(int threads) {
  pthread_mutex_t hold = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&hold);
  const auto pass = [](void* held) -> void* {
    pthread_mutex_lock(static_cast<pthread_mutex_t*>(held));
    pthread_mutex_unlock(static_cast<pthread_mutex_t*>(held));
    return nullptr;
  };
  pthread_t trial[kMostThreads];
  int started = 0;
  while (started < threads && pthread_create(&trial[started], nullptr, pass, &hold) == 0) ++started;
  pthread_mutex_unlock(&hold);
  for (int i = 0; i < started; ++i) pthread_join(trial[i], nullptr);
  return started;
}

void* allocate_aligned(std::size_t alignment, std::size_t bytes) {
  return std::aligned_alloc(alignment, bytes);
}
void free_aligned(void* p) { std::free(p); }

void request_large_pages([[maybe_unused]] void* p, [[maybe_unused]] std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  madvise(p, bytes, MADV_HUGEPAGE);  // that it fails is of no account
#endif
}

}  // namespace rnnkern::os

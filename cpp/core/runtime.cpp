#include "runtime.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rnnkern {
namespace {

std::atomic<int> chosen{0};

// GNU OpenMP's pool does not survive fork: a child that asked for it would wait for ever.
std::atomic<bool> forked{false};
void stay_single_after_fork() { forked.store(true, std::memory_order_relaxed); }
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, stay_single_after_fork);

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

int threads() {
  if (forked.load(std::memory_order_relaxed)) return 1;
  const int n = chosen_threads();
  return std::min(n > 0 ? n : omp_get_max_threads(), kMostThreads);
}

int chosen_threads() { return chosen.load(std::memory_order_relaxed); }

// More threads than the last time are started on trial, all at once. What OpenMP keeps of its own
// since then is not in the trial, nor is what other threads take meanwhile: likely, not certain.
int startable_threads(int n) {
  thread_local int last = 1;
  if (n > last) {
    pthread_mutex_t hold = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&hold);
    const auto pass = [](void* held) -> void* {
      pthread_mutex_lock(static_cast<pthread_mutex_t*>(held));
      pthread_mutex_unlock(static_cast<pthread_mutex_t*>(held));
      return nullptr;
    };
    pthread_t trial[kMostThreads];
    int started = 0;
    while (started < n - 1 && pthread_create(&trial[started], nullptr, pass, &hold) == 0) ++started;
    pthread_mutex_unlock(&hold);
    for (int i = 0; i < started; ++i) pthread_join(trial[i], nullptr);
    n = started + 1;
  }
  return last = n;
}

void set_threads(int n) { chosen.store(n, std::memory_order_relaxed); }

bool look(Watch& watch) {
  Stop& stop = *watch.stop;
  watch.left = kWorkBetweenLooks;
  if (__atomic_load_n(&stop.asked, __ATOMIC_RELAXED) != 0) return false;
  if (watch.calling && stop.interrupt.asked) {
    using Seconds = std::chrono::duration<double>;
    const double now = Seconds(std::chrono::steady_clock::now().time_since_epoch()).count();
    if (watch.next == 0) watch.next = now + kSecondsBetweenQuestions;
    if (now >= watch.next) {
      leave_float_environment(watch.environment);
      const bool asked = stop.interrupt.asked(stop.interrupt.context);
      watch.environment = enter_float_environment();
      watch.next = now + kSecondsBetweenQuestions;
      if (asked) __atomic_store_n(&stop.asked, 1, __ATOMIC_RELAXED);
      return !asked;
    }
  }
  return true;
}

bool wait(Barrier& barrier, int size, Watch& watch) {
  constexpr int spins = 2000;
  const int generation = __atomic_load_n(&barrier.generation, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&barrier.arrived, 1, __ATOMIC_ACQ_REL) == size) {
    // The last to arrive decides for all, or some would wait for others that have left.
    barrier.stopped = __atomic_load_n(&watch.stop->asked, __ATOMIC_RELAXED);
    const bool go_on = barrier.stopped == 0;
    __atomic_store_n(&barrier.arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&barrier.generation, generation + 1, __ATOMIC_RELEASE);
    return go_on;
  }
  for (int i = 0; __atomic_load_n(&barrier.generation, __ATOMIC_ACQUIRE) == generation; ++i) {
    if (i < spins) {
      pause();
    } else {
      sched_yield();
      look(watch);
    }
  }
  return barrier.stopped == 0;
}

#if defined(__x86_64__)
std::uint64_t enter_float_environment() {
  constexpr unsigned all_masked = 0x1f80, flush_to_zero = 0x8000, subnormals_are_zero = 0x0040;
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(all_masked | flush_to_zero | subnormals_are_zero);
  return saved;
}
void leave_float_environment(std::uint64_t saved) { _mm_setcsr(static_cast<unsigned>(saved)); }
#elif defined(__aarch64__)
std::uint64_t enter_float_environment() {
  constexpr std::uint64_t flush_to_zero = std::uint64_t{1} << 24;
  std::uint64_t saved;
  asm volatile("mrs %0, fpcr" : "=r"(saved));
  asm volatile("msr fpcr, %0" : : "r"(flush_to_zero));
  return saved;
}
void leave_float_environment(std::uint64_t saved) { asm volatile("msr fpcr, %0" : : "r"(saved)); }
#endif

}  // namespace rnnkern

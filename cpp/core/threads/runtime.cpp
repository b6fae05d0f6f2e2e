#include "threads/runtime.h"

#include "threads/cores.h"
#include "threads/grid.h"
#include "threads/system.h"

#include <omp.h>

#include <algorithm>
#include <atomic>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rnnkern {
namespace {

std::atomic<int> chosen{0};
std::atomic<int> usable_cores{0};  // 0: not known
std::atomic<int> logical_cpus{0};  // what OpenMP said then
std::atomic<int> choices{0};       // how often the program chose

// GNU OpenMP's pool does not survive fork: a child that asked for it would wait for ever.
std::atomic<int> fork_count{0};
void stay_single_after_fork() { fork_count.fetch_add(1, std::memory_order_relaxed); }
[[maybe_unused]] const bool fork_handler = os::in_forked_children(stay_single_after_fork);

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether working together is a gain: each calling thread sees for itself. Where another process
// keeps a core busy, the threads of a call wait for the one that has none, time slice after time
// slice. Then it is left to work alone for a while, twice as long after each trial that fails. If
// the busy thread is of this process, such as one of another library that spins until its next
// call, the while ends as soon as it no longer is.
struct AdaptiveThreads {
  static constexpr Nanoseconds most_gain = 5000000;    // one slice lost now and then is forgiven
  static constexpr Nanoseconds first_gain = 200000;    // a trial's first call wakes threads up
  static constexpr Nanoseconds first_rest = 20000000;  // a few slices; GNU's threads spin less
  static constexpr Nanoseconds most_rest = 500000000;  // some percent of it are lost in a trial
  // Linux adds up the times of threads that run elsewhere once a tick, every 4 to 10 ms.
  static constexpr Nanoseconds between_looks = 20000000;
  int choices = 0;
  Nanoseconds gain = first_gain;
  Nanoseconds rest = first_rest;
  Nanoseconds alone_until = 0;
  // The last look at the other threads of this process, the first one being after first_rest.
  Nanoseconds look_at = 0;
  Nanoseconds others_time = 0;
  bool looked = false;
  bool others_were_busy = false;

  void work_alone(Nanoseconds from) {
    alone_until = from + rest;
    look_at = from + first_rest;
    looked = others_were_busy = false;
    rest = std::min(2 * rest, most_rest);
  }
  // Whether other threads of this process had half of a core or more, and now less than a tenth.
  bool others_stopped(Nanoseconds at) {
    if (at < (looked ? look_at + between_looks : look_at)) return false;
    const Nanoseconds others = os::process_clock() - os::thread_clock();
    const Nanoseconds passed = at - look_at, busy = others - others_time;
    const bool first = !looked;
    looked = true, look_at = at, others_time = others;
    if (first) return false;
    others_were_busy = others_were_busy || 2 * busy >= passed;
    return others_were_busy && 10 * busy < passed;
  }
};
thread_local AdaptiveThreads adaptive;

// More threads than the last time are started on trial, all at once. What OpenMP keeps of its own
// since then is not in the trial, nor is what other threads take meanwhile: likely, not certain.
int startable_threads(int n) {
  thread_local int last = 1;
  if (n > last) n = 1 + os::startable(n - 1);
  return last = n;
}

}  // namespace

int threads() {
  if (forks() > 0) return 1;
  if (const int n = chosen_threads(); n > 0) return std::min(n, kMostThreads);
  const int most = omp_get_max_threads(), cores = usable_cores.load(std::memory_order_relaxed);
  const bool told = cores == 0 || most != logical_cpus.load(std::memory_order_relaxed);
  return std::min(told ? most : std::min(cores, most), kMostThreads);
}

void set_usable_cores(int n) {
  logical_cpus.store(omp_get_max_threads(), std::memory_order_relaxed);
  usable_cores.store(n, std::memory_order_relaxed);
}

int forks() { return fork_count.load(std::memory_order_relaxed); }

int chosen_threads() { return chosen.load(std::memory_order_relaxed); }

void set_threads(int n) {
  chosen.store(n, std::memory_order_relaxed);
  choices.fetch_add(1, std::memory_order_relaxed);
}

namespace {
// Whoever chooses a number gets it, to begin with.
void heed_choice() {
  const int made = choices.load(std::memory_order_relaxed);
  if (made == adaptive.choices) return;
  adaptive = AdaptiveThreads{};
  adaptive.choices = made;
}
}  // namespace

int usable_threads(int n) {
  heed_choice();
  if (adaptive.alone_until != 0 && forced_grid.threads == 0) {
    const Nanoseconds at = now();
    if (at < adaptive.alone_until && !adaptive.others_stopped(at)) return 1;
    adaptive.alone_until = 0;
  }
  return startable_threads(n);
}

Nanoseconds alone_for() {
  heed_choice();
  return adaptive.alone_until == 0 ? 0 : std::max<Nanoseconds>(0, adaptive.alone_until - now());
}

Nanoseconds now() { return os::wall_clock(); }
Nanoseconds thread_time() { return os::thread_clock(); }

void record_call(Nanoseconds took, Nanoseconds computed) {
  AdaptiveThreads& e = adaptive;
  e.gain += computed - took;
  if (e.gain >= AdaptiveThreads::most_gain) {
    e.gain = AdaptiveThreads::most_gain;
    e.rest = AdaptiveThreads::first_rest;
  } else if (e.gain < 0) {
    e.gain = AdaptiveThreads::first_gain;
    e.work_alone(now());
  }
}

namespace {
bool canceled(const CancelToken& token) {
  return __atomic_load_n(&token.stop->canceled, __ATOMIC_RELAXED) != 0;
}
}  // namespace

bool look(CancelToken& token) {
  Stop& stop = *token.stop;
  token.left = 0;  // once the call is to end, every look says so
  if (canceled(token)) return false;
  if (token.calling && is_due(stop.interrupt)) {
    leave_float_environment(token.environment);
    const bool cancel = ask(stop.interrupt);
    token.environment = enter_float_environment();
    if (cancel) {
      __atomic_store_n(&stop.canceled, 1, __ATOMIC_RELAXED);
      return false;
    }
  }
  token.left = kWorkBetweenPolls;
  return true;
}

namespace {
constexpr auto kPollInterval = static_cast<Nanoseconds>(1e9 * kSecondsBetweenPolls);
}

bool is_due(const Interrupt& caller) {
  if (!caller.asked) return false;
  const Nanoseconds at = now();
  if (*caller.due == 0) *caller.due = at + kPollInterval;
  return at >= *caller.due;
}

bool ask(const Interrupt& caller) {
  const bool end = caller.asked(caller.context);
  // After a yes, whatever else polls asks at once and ends, too.
  *caller.due = end ? now() : now() + kPollInterval;
  return end;
}

namespace {

// Waits for over(): spins briefly, then sleeps on `word` while it is `expected()`. Whoever brings
// it about stores, then reads `asleep`; whoever sleeps says so, then reads: one order of these four
// accesses for all threads, so that either this thread sees the store or the other who is asleep.
template <class Over, class Expected>
void wait_for(const Over& over, int& word, const Expected& expected, int& asleep,
              CancelToken& token) {
  // Longer than threads that run wait for each other mostly, shorter than a sleep costs by much.
  constexpr Nanoseconds longest_spin = 10000;
  constexpr int pauses = 16;  // between two looks at the clock
  const Nanoseconds begin = now();
  Nanoseconds spun = 0;
  while (!over() && (spun = now() - begin) < longest_spin)
    for (int i = 0; i < pauses && !over(); ++i) pause();
  token.spun += std::min(spun, longest_spin);
  while (!over()) {
    __atomic_add_fetch(&asleep, 1, __ATOMIC_SEQ_CST);
    os::sleep(&word, expected());
    __atomic_sub_fetch(&asleep, 1, __ATOMIC_RELAXED);
    look(token);
  }
}

}  // namespace

void advance(Progress& progress) {
  __atomic_add_fetch(&progress.done, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&progress.asleep, __ATOMIC_SEQ_CST) != 0)
    os::wake(&progress.done, kMostThreads);
}

bool reached(Progress& progress, int done, CancelToken& token) {
  const auto now_done = [&] { return __atomic_load_n(&progress.done, __ATOMIC_SEQ_CST); };
  // What was read too early to be enough is what a sleep must not find changed.
  int seen = now_done();
  const auto over = [&] { return (seen = now_done()) >= done || canceled(token); };
  if (!over()) wait_for(over, progress.done, [&] { return seen; }, progress.asleep, token);
  return !canceled(token);
}

namespace {
int barrier_groups(int threads) {
  return threads > kBarrierGroup ? (threads + kBarrierGroup - 1) / kBarrierGroup : 0;
}

// Whether all of `count` have arrived with this one. Then the place is as before, for their next
// time.
bool last_to_arrive(Barrier& place, int count) {
  if (__atomic_add_fetch(&place.arrived, 1, __ATOMIC_ACQ_REL) != count) return false;
  __atomic_store_n(&place.arrived, 0, __ATOMIC_RELAXED);
  return true;
}
}  // namespace

int barrier_places(int threads) { return 1 + barrier_groups(threads); }

int barrier_arrivals(int threads) {
  const int groups = barrier_groups(threads);
  return groups > 0 ? kBarrierGroup + groups : threads;
}

bool wait(Barrier* barrier, int thread, int threads, CancelToken& token) {
  Barrier& all = *barrier;
  const int generation = __atomic_load_n(&all.generation, __ATOMIC_RELAXED);
  const int groups = barrier_groups(threads), group = thread / kBarrierGroup;
  const int size = std::min(kBarrierGroup, threads - group * kBarrierGroup);
  const bool last = groups == 0
                        ? last_to_arrive(all, threads)
                        : last_to_arrive(barrier[1 + group], size) && last_to_arrive(all, groups);
  if (last) {
    // The last to arrive decides for all, or some would wait for others that have left.
    const bool go_on = !canceled(token);
    all.stopped = go_on ? 0 : 1;
    __atomic_store_n(&all.generation, generation + 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&all.asleep, __ATOMIC_SEQ_CST) != 0) os::wake(&all.generation, threads);
    return go_on;
  }
  const auto all_arrived = [&] {
    return __atomic_load_n(&all.generation, __ATOMIC_SEQ_CST) != generation;
  };
  wait_for(all_arrived, all.generation, [&] { return generation; }, all.asleep, token);
  return all.stopped == 0;
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

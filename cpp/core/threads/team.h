// How work and workspace are handed out: parallel regions, shares of a range, teams, one arena a
// call.
#pragma once

#include <omp.h>

#include "simd/simd.h"
#include "threads/grid.h"
#include "threads/runtime.h"

namespace rnnkern::RNNKERN_ISA {

struct Range {
  Index first, last;
  Index size() const { return last - first; }
};

// Part `index` of [0, n) cut into `count` parts.
inline Range share(Index n, Index index, Index count) {
  if (count == 1) return {0, n};  // a step alone is too short for two divisions
  return {n * index / count, n * (index + 1) / count};
}

// At most `most` of the threads, rounded down, and at least one.
inline int capped(int threads, double most) {
  return most < static_cast<double>(threads) ? (most < 1 ? 1 : static_cast<int>(most)) : threads;
}
inline double as_double(Index n) { return static_cast<double>(n); }
inline constexpr double kFlopsOfAThread = 1e6;  // fewer take less time than a thread's start

RNNKERN_INLINE bool canceled(const CancelToken& token) {
  return __atomic_load_n(&token.stop->canceled, __ATOMIC_RELAXED) != 0;
}

// Whether to go on, after so many vector operations since the last time.
RNNKERN_INLINE bool go_on(CancelToken& token, Index work) {
  return (token.left -= work) > 0 || look(token);
}

// What a row costs a loop that touches some of its memory for the first time, in vector operations.
inline constexpr Index kRowOperations = 64;

// Runs body(watch, thread, threads) on up to `threads` threads, the calling thread being the first,
// and returns how many there were. One thread does not enter OpenMP at all.
template <class Body>
int parallel(int threads, const Interrupt& interrupt, const Body& body) {
  Stop stop{interrupt, 0, 0};
  const auto one = [&](int thread, int count) {
    CancelToken token{&stop, thread == 0, enter_float_environment(), kWorkBetweenPolls, 0};
    body(token, thread, count);
    leave_float_environment(token.environment);
    return token.spun;
  };
  if (threads > 1) threads = usable_threads(threads);
  if (threads == 1) {
    one(0, 1);
    return 1;
  }
  const Nanoseconds begin = now();
  int started = 1;
#pragma omp parallel num_threads(threads)
  {
    const Nanoseconds before = thread_time();
    const int thread = omp_get_thread_num(), count = omp_get_num_threads();
    const Nanoseconds spun = one(thread, count);
    __atomic_add_fetch(&stop.computed, thread_time() - before - spun, __ATOMIC_RELAXED);
    if (thread == 0) started = count;
  }
  if (started > 1) record_call(now() - begin, stop.computed);
  return started;
}

// Threads that work on one thing together.
struct Team {
  int index, size;
  Barrier* barrier;
  CancelToken* token;  // the thread's
  // False for all of the team or for none: leave.
  bool wait() const {
    if (size > 1) return rnnkern::wait(barrier, index, size, *token);
    return !stopped();
  }
  bool stopped() const { return canceled(*token); }
  // Whether to go on, after so many vector operations. Whoever leaves goes to the next `wait`.
  bool worked(Index work) const { return go_on(*token, work); }
  Range share_of(Index n) const { return share(n, index, size); }
};

// Hands out parts of one block, each on its own cache lines. With a null base it only counts, so
// that the code which takes the workspace is also the code which says how much is needed.
struct Arena {
  char* base;
  Index used = 0;
  template <class T>
  T* allocate(Index n) {
    const Index bytes =
        (n * static_cast<Index>(sizeof(T)) + kLineBytes - 1) / kLineBytes * kLineBytes;
    T* part = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += bytes;
    return part;
  }
};

// The rows of a schedule.
inline Index row_of(const Schedule& s, Index r) { return s.order ? s.order[r] : r; }
inline Index alive_at(const Schedule& s, Index t) { return s.count ? s.count[t] : s.B; }
inline Index rows_before(const Schedule& s, Index t) {
  return s.offset ? s.offset[t] - s.offset[0] : t * s.B;
}

// Whether the state before step t, in the direction's order of steps, is a fresh one, because
// another sequence begins or, on the way back, ended there.
inline bool is_reset(const Schedule& s, Index t, Index r, bool reverse) {
  return s.resets && s.resets[(reverse ? t + 1 : t) * s.B + row_of(s, r)] != 0;
}

// Which part of a layer a thread works on: a direction, some of its rows, some of its units. Teams
// do not wait for each other; the members of a team meet after each step.
struct WorkShare {
  int direction;
  bool idle;
  Range rows;
  Range blocks;
  Team team;
};

// barriers: one place for each thread. A team meets at those of its own threads.
inline WorkShare work_share_of(CancelToken& token, int thread, const Grid& grid, Index D, Index B,
                               Index blocks, Barrier* barriers) {
  WorkShare part{0, false, {0, B}, {0, blocks}, {0, 1, nullptr, &token}};
  if (grid.threads == 1) return part;                 // a step alone is too short for divisions
  Index first = 0, size = ceil_div(grid.threads, D);  // of the direction's threads
  if (thread >= size) part.direction = 1, first = size, size = grid.threads - size;
  if (size == 1) return part;
  const Index place = thread - first, groups = least(grid.row_groups, size);
  const Range members = share(size, ((place + 1) * groups - 1) / size, groups);
  part.rows = {B * members.first / size, B * members.last / size};
  const auto index = static_cast<int>(place - members.first);
  const auto sharing = static_cast<int>(least(members.size(), blocks));
  part.idle = index >= sharing;
  if (part.idle) return part;
  part.blocks = share(blocks, index, sharing);
  part.team = {index, sharing, &barriers[first + members.first], &token};
  return part;
}

}  // namespace rnnkern::RNNKERN_ISA

// What all instruction sets share at run time: the thread count, the barrier, the floating-point
// environment. Compiled once, for the plain machine.
#pragma once

#include <cstdint>

#include "problem.h"

namespace rnnkern {

// The number of threads that a call may use: set by the program, else what OpenMP says. Always 1 in
// a forked child.
int threads();
inline constexpr int kMostThreads = 1024;
int chosen_threads();     // 0: nothing was set
void set_threads(int n);  // 0: leave it to OpenMP

// How many forks lie between the process that loaded this library and this one.
int forks();

// How many of n threads the calling one should ask OpenMP for now: one where threads were seen to
// be no gain lately, and no more than can be started, since GNU's ends the process otherwise.
int usable_threads(int n);

using Nanoseconds = std::int64_t;
Nanoseconds alone_for();    // how long that is one for the calling thread, at most
Nanoseconds now();          // the wall clock
Nanoseconds thread_time();  // what the calling thread has had of a core
// What the calling thread learns from a call on many threads: how long it took, and how long all of
// them together had a core and did not wait, which is what one thread would have needed.
void record_call(Nanoseconds took, Nanoseconds computed);

// What the threads of a call tell each other.
struct Stop {
  Interrupt interrupt;
  int canceled;          // 1 once the caller wants the call to end
  Nanoseconds computed;  // for record_call
};

// One thread's watch on that. `look` is for every kWorkBetweenPolls vector operations or so: the
// calling thread asks the caller every kSecondsBetweenPolls, the others are told.
struct CancelToken {
  Stop* stop;
  bool calling;               // of the thread that made the call
  std::uint64_t environment;  // the floating-point environment that was found on entry
  Index left;                 // operations until the next look
  Nanoseconds spun;           // at barriers
};
inline constexpr Index kWorkBetweenPolls = Index{1} << 18;  // 50 microseconds or so
inline constexpr double kSecondsBetweenPolls = 0.1;         // asking may mean to wait for a lock
bool look(CancelToken& token);                              // false: leave
bool is_due(const Interrupt& caller);                       // the caller's next question
bool ask(const Interrupt& caller);                          // true: end the call

// Polls an Interrupt at most every kSecondsBetweenPolls: for a loop whose single passes are too
// short to poll, outside the kernels. Once the answer is yes, it stays yes.
class ThrottledPoll {
 public:
  explicit ThrottledPoll(const Interrupt& caller) : caller_(caller) {}
  Interrupt interrupt() { return {caller_.asked ? asked : nullptr, this, caller_.due}; }
  bool go_on() {
    if (!over_ && is_due(caller_)) ask(interrupt());
    return !over_;
  }
  // The same after `work` more elements: reads the clock every kWorkBetweenPolls of them.
  bool go_on(Index work) {
    left_ -= work;
    if (left_ > 0) return !over_;
    left_ = kWorkBetweenPolls;
    return go_on();
  }

 private:
  static bool asked(void* context) {
    auto& self = *static_cast<ThrottledPoll*>(context);
    self.over_ = self.over_ || self.caller_.asked(self.caller_.context);
    return self.over_;
  }
  Interrupt caller_;
  Index left_ = kWorkBetweenPolls;
  bool over_ = false;
};

// A barrier for a fixed number of threads: spins briefly, then sleeps. Few threads count themselves
// at one place. More do so in groups, each at a place of its own, and the last of each group counts
// the group: fewer threads then wait for the same cache line.
struct alignas(64) Barrier {
  int arrived = 0;
  int generation = 0;
  int stopped = 0;
  int asleep = 0;
};
inline constexpr int kBarrierGroup = 8;
// The places of a barrier, one after another. Never more than its threads.
int barrier_places(int threads);
inline constexpr int kMostBarrierPlaces = 1 + kMostThreads / kBarrierGroup;
// How many threads count themselves one after another before a barrier opens.
int barrier_arrivals(int threads);
// False for all threads or for none: leave. `thread` counts from 0.
bool wait(Barrier* barrier, int thread, int threads, CancelToken& token);

// How far the work of one thread is, for others that follow: waits as at a barrier.
struct alignas(64) Progress {
  int done = 0;
  int asleep = 0;
};
void advance(Progress& progress);
bool reached(Progress& progress, int done, CancelToken& token);  // false: leave

// Round to nearest, subnormals flushed to zero, all exceptions masked; and back. The kernels run
// in between, on each thread.
std::uint64_t enter_float_environment();
void leave_float_environment(std::uint64_t saved);

}  // namespace rnnkern

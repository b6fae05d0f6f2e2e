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

// How many of n threads the calling one may ask OpenMP for now: GNU's ends the process when it
// can't start one.
int startable_threads(int n);

// Whether a call is to end early: one a call, seen by all its threads.
struct Stop {
  Interrupt interrupt;
  int asked;  // 1 once the caller wants the call to end
};

// One thread's watch on that. `look` is for every kWorkBetweenLooks vector operations or so: the
// calling thread asks the caller every kSecondsBetweenQuestions, the others are told.
struct Watch {
  Stop* stop;
  bool calling;               // of the thread that made the call
  std::uint64_t environment;  // the floating-point environment that was found on entry
  Index left;                 // operations until the next look
  double next;                // when the calling thread asks; 0: not known yet
};
inline constexpr Index kWorkBetweenLooks = Index{1} << 18;  // 50 microseconds or so
inline constexpr double kSecondsBetweenQuestions = 0.1;     // asking may mean to wait for a lock
bool look(Watch& watch);                                    // false: leave

// A barrier for a fixed group of threads: spins briefly, then gives up its time slice.
struct alignas(64) Barrier {
  int arrived = 0;
  int generation = 0;
  int stopped = 0;
};
// False for all of the group or for none: leave.
bool wait(Barrier& barrier, int size, Watch& watch);

// Round to nearest, subnormals flushed to zero, all exceptions masked; and back. The kernels run
// in between, on each thread.
std::uint64_t enter_float_environment();
void leave_float_environment(std::uint64_t saved);

}  // namespace rnnkern

// What all instruction sets share at run time: the thread count, the barrier, the floating-point
// environment. Compiled once, for the plain machine.
#pragma once

#include <cstdint>

namespace rnnkern {

// The number of threads that a call may use: set by the program, else what OpenMP says. Always 1 in
// a forked child.
int threads();
int chosen_threads();     // 0: nothing was set
void set_threads(int n);  // 0: leave it to OpenMP

// A barrier for a fixed group of threads: spins briefly, then gives up its time slice.
struct alignas(64) Barrier {
  int arrived = 0;
  int generation = 0;
};
void wait(Barrier& barrier, int size);

// Round to nearest, subnormals flushed to zero, all exceptions masked; and back. The kernels run
// in between, on each thread.
std::uint64_t enter_float_environment();
void leave_float_environment(std::uint64_t saved);

}  // namespace rnnkern

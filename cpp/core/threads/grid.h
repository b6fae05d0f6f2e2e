// How the threads of a call share its work. Compiled once, for the plain machine.
#pragma once

#include "problem.h"

namespace rnnkern {

// How the threads of a call are arranged. Each direction has half of them. They form `row_groups`
// teams; each team has rows of its own, and its members share the units.
struct Grid {
  int threads, row_groups;
};

// Tests and drivers set it: calls then take this grid, with no more threads than they may use.
// No threads: the core chooses.
extern Grid forced_grid;

}  // namespace rnnkern

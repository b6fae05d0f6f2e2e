// How the threads of a call share its work, and the model of its time by which they do. Compiled
// once, for the plain machine.
#pragma once

#include "problem.h"

namespace rnnkern {

// How the threads of a call are arranged. Each direction has half of them. They form `row_groups`
// teams; each team has rows of its own, and its members share the units.
struct Grid {
  int threads, row_groups;
};

// What the threads of a grid share: "nothing", "directions", "rows", "units", or both in a "grid".
const char* shared_in(const Grid& grid, Index directions);

// How a call was shared: what its threads shared (also "layers", or "members" of an ensemble), how
// many were planned, and how many there were. Kept of each thread's last call.
struct Sharing {
  const char* shared;  // null: no call yet
  int planned, threads;
};
void record_sharing(const Sharing& sharing);
Sharing last_sharing();

// Times are in nanoseconds, rates in bytes per nanosecond (GB/s). The rates were measured on Zen 5.
struct Machine {
  double l2_bytes = 1 << 20;     // of each core
  double l3_bytes = 32 << 20;    // of each L3 cache
  int l3_cores = 8;              // cores that share an L3 cache
  double l3_rate = 340;          // from the L3 cache to one core
  double memory_rate = 80;       // from memory to one core
  double all_memory_rate = 300;  // from memory to all cores; not measured
  double exchange_rate = 40;     // to one core, of what others have just written
  double barrier = 180;          // of a barrier, for each arrival one after another
  // The share of a step's arithmetic by which the slowest member of a team is behind the average.
  double waiting = 0.05;
  // What layers on different threads take longer than their steps and the wait for the first chunk.
  double pipeline_loss = 1.15;
};
extern Machine machine;  // the caches are read on import (machine.py)

// One time step of one direction, on average over the layers.
struct StepWork {
  Index directions;
  Index rows;
  Index blocks;          // of units, the smallest parts that a thread takes
  double flops;          // of the products of all rows and units, the input's included
  double flops_rate;     // flops of one core per nanosecond
  double weights_bytes;  // of the matrices that are read again in each step
  // What each member of a team reads in each step of what the others have written, of a row, if
  // all units are others'. 0: the members never meet.
  double row_bytes;
};

// Bytes of weights that a step brings to the caches of one core from its L3 cache, and to one L3
// cache from memory.
struct Traffic {
  double from_l3, from_memory;
};
Traffic step_traffic(const Machine& machine, const StepWork& work, const Grid& grid);

// The time of a step with the rows and units shared as `grid` says.
double step_time(const Machine& machine, const StepWork& work, const Grid& grid);

// The time of a step, on average over `layers`, if each of `threads` threads runs whole layers, one
// chunk of steps after the thread with the layer below.
double pipeline_time(const Machine& machine, const StepWork& work, Index layers, int threads,
                     Index steps, Index chunk);

// The grid of at most `threads` threads whose steps take the shortest time.
Grid choose_grid(const Machine& machine, const StepWork& work, int threads);

// Rows of a team, at least: a product reads the weights in the time that it needs for so many rows,
// so fewer gain nothing.
inline constexpr Index kFewestRows = 4;

// Tests and drivers set it: calls then take this grid, with no more threads than they may use, also
// where threads were seen to be no gain lately. No threads: the core chooses.
extern Grid forced_grid;

}  // namespace rnnkern

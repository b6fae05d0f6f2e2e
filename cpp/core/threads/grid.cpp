#include "threads/grid.h"

#include "threads/runtime.h"

#include <algorithm>

namespace rnnkern {
namespace {

Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// The larger share of n things among `count`, as a fraction of all.
double largest_share(Index n, Index count) {
  return n > 0 ? static_cast<double>(ceil_div(n, count)) / static_cast<double>(n) : 0;
}

// How a grid divides a step.
struct Division {
  Index size;      // threads of a direction; the other may have one more
  Index members;   // threads of a team; a smaller one has fewer rows
  Index together;  // threads that share an L3 cache
  double rows;     // the team's share of all, before it is rounded to whole rows
  double units;    // the largest share that a member has
};
Division division_of(const Machine& m, const StepWork& work, const Grid& grid) {
  const Index size = std::max<Index>(1, grid.threads / work.directions);
  const Index groups = std::min<Index>(grid.row_groups, size), members = ceil_div(size, groups);
  return {size, members, std::min<Index>(grid.threads, m.l3_cores),
          static_cast<double>(members) / static_cast<double>(size),
          largest_share(work.blocks, members)};
}

thread_local Sharing last{nullptr, 0, 0};

}  // namespace

Machine machine;
Grid forced_grid{0, 1};

const char* shared_in(const Grid& grid, Index directions) {
  if (grid.threads == 1) return "nothing";
  const Index size = ceil_div(grid.threads, directions);
  if (size == 1) return "directions";
  return grid.row_groups == 1 ? "units" : grid.row_groups >= size ? "rows" : "grid";
}

void record_sharing(const Sharing& sharing) { last = sharing; }
Sharing last_sharing() { return last; }

Traffic step_traffic(const Machine& m, const StepWork& work, const Grid& grid) {
  const Division d = division_of(m, work, grid);
  // Steps read the weights in alternating order, so a cache keeps as much of them as it holds. The
  // threads of an L3 cache are neighbours: they find there what one of them has read.
  const Index directions = std::min(work.directions, ceil_div(d.together, d.size));
  const double read = std::min(1.0, d.units * static_cast<double>(d.together)) *
                      static_cast<double>(directions) * work.weights_bytes;
  return {std::max(0.0, d.units * work.weights_bytes - m.l2_bytes),
          std::max(0.0, read - m.l3_bytes)};
}

double step_time(const Machine& m, const StepWork& work, const Grid& grid) {
  const Division d = division_of(m, work, grid);
  const Traffic traffic = step_traffic(m, work, grid);
  const double caches = static_cast<double>(ceil_div(grid.threads, d.together));
  const double memory_rate =
      std::min(static_cast<double>(d.together) * m.memory_rate, m.all_memory_rate / caches);
  const double arithmetic = work.flops * d.rows * d.units / work.flops_rate;
  double time = arithmetic + traffic.from_l3 / m.l3_rate + traffic.from_memory / memory_rate;
  if (d.members > 1 && work.row_bytes > 0) {
    const double others = d.rows * static_cast<double>(work.rows) * work.row_bytes * (1 - d.units);
    const double barrier = barrier_arrivals(static_cast<int>(d.members)) * m.barrier;
    time += arithmetic * m.waiting + barrier + others / m.exchange_rate;
  }
  return grid.threads < work.directions ? 2 * time : time;  // one direction after the other
}

double pipeline_time(const Machine& m, const StepWork& work, Index layers, int threads, Index steps,
                     Index chunk) {
  const double late = static_cast<double>((threads - 1) * chunk) / static_cast<double>(steps);
  return step_time(m, work, {1, 1}) * largest_share(layers, threads) * (1 + late) * m.pipeline_loss;
}

Grid choose_grid(const Machine& m, const StepWork& work, int threads) {
  const Index size = ceil_div(threads, work.directions);  // threads of a direction
  const Index most_groups = std::max<Index>(1, work.rows / kFewestRows);
  const Index most_members = std::max<Index>(1, std::min(size, work.blocks));
  Grid best{1, 1};
  double shortest = 0;
  for (Index members = 1; members <= most_members; ++members) {
    const Index groups = std::min(size / members, most_groups);
    const Index used = std::min<Index>(threads, work.directions * groups * members);
    const Grid grid{static_cast<int>(used), static_cast<int>(groups)};
    const double time = step_time(m, work, grid);
    if (members > 1 && time >= shortest) continue;
    best = grid, shortest = time;
  }
  return best;
}

}  // namespace rnnkern

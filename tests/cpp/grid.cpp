// How a call's threads share its work, for tests/test_grids.py. Each line of the input is a machine
// and a step of a call, in the order of their records:
//
//   l2_bytes  l3_bytes  l3_cores   directions  rows  blocks  flops  flops_rate  weights_bytes
//   row_bytes   threads  row_groups
//
// 0 row_groups: the model chooses the grid, of at most so many threads. Each line of the output is
// the grid, the time of its step and that of a step on one thread, the bytes from the L3 cache and
// from memory; then of each thread the direction, its rows and its blocks of units.
#include <cstdio>

#include "threads/team.h"

using namespace rnnkern;
using namespace rnnkern::RNNKERN_ISA;

int main() {
  Machine m;
  StepWork w;
  int threads, row_groups;
  while (std::scanf("%lf %lf %d %td %td %td %lf %lf %lf %lf %d %d", &m.l2_bytes, &m.l3_bytes,
                    &m.l3_cores, &w.directions, &w.rows, &w.blocks, &w.flops, &w.flops_rate,
                    &w.weights_bytes, &w.row_bytes, &threads, &row_groups) == 12) {
    const Grid grid = row_groups > 0 ? Grid{threads, row_groups} : choose_grid(m, w, threads);
    const Traffic traffic = step_traffic(m, w, grid);
    std::printf("%d %d %g %g %g %g", grid.threads, grid.row_groups, step_time(m, w, grid),
                step_time(m, w, {1, 1}), traffic.from_l3, traffic.from_memory);
    CancelToken token{};
    Barrier barriers[kMostThreads];
    for (int thread = 0; thread < grid.threads; ++thread) {
      const WorkShare part =
          work_share_of(token, thread, grid, w.directions, w.rows, w.blocks, barriers);
      const Range blocks = part.idle ? Range{0, 0} : part.blocks;
      std::printf(" %d %td %td %td %td", part.direction, part.rows.first, part.rows.last,
                  blocks.first, blocks.last);
    }
    std::printf("\n");
  }
}

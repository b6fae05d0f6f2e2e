// How the core divides calls, for tests/test_plan.py. Each line of the input is a call:
//
//   kind  is_double  I  H  P  heads  T  B  L  D  threads
//
// and each line of the output says of it: threads, what they share, the steps of a forward's and of
// a backward's chunk.
#include <cstdio>

#include "cells/all.h"
#include "stack/stack.h"

using namespace rnnkern;
using namespace rnnkern::RNNKERN_ISA;

namespace {

template <class T>
void plan(int kind, Index I, Index H, Index P, int heads, Index steps, Index B, Index L, Index D,
          int threads) {
  Layer<T> layer{};
  layer.inputs = I;
  ForwardCall<T> call{};
  call.kind = static_cast<Kind>(kind);
  call.L = L, call.D = D, call.H = H, call.P = P, call.constants.heads = heads;
  call.rows.T = steps, call.rows.B = B;
  call.layers = &layer;
  call.threads = threads;
  with_cell<T>(call.kind, call.constants, [&](auto cell) {
    using Cell = decltype(cell);
    Arena arena{nullptr};
    const CellFunctions<T> functions{layout_of<Cell>(), {}, nullptr, nullptr};  // a plan calls none
    const ForwardStack<T> stack(functions, call, arena);
    ForwardWorkspace<T> forward;
    forward.allocate(arena, functions.layout, call.constants, call.rows, I, H, P, false,
                     stack.pipeline.chunk);
    BackwardWorkspace<T> backward;
    backward.allocate(arena, functions.layout, call.constants, call.rows, I, H, P, false, false,
                      stack.pipeline.chunk);
    CancelToken token{};
    Barrier barriers[16];
    const WorkShare part = work_share_of(token, 0, stack.grid, D, B, H, barriers);
    const char* shared = stack.pipeline.threads > 1 ? "layers"
                         : part.team.size > 1       ? "units"
                         : part.rows.size() < B     ? "rows"
                         : stack.threads > 1        ? "directions"
                                                    : "nothing";
    std::printf("%d %s %td %td\n", stack.threads, shared, forward.chunk, backward.chunk);
  });
}

}  // namespace

int main() {
  int kind, is_double, heads, threads;
  Index I, H, P, T, B, L, D;
  while (std::scanf("%d %d %td %td %td %d %td %td %td %td %d", &kind, &is_double, &I, &H, &P,
                    &heads, &T, &B, &L, &D, &threads) == 11)
    (is_double ? plan<double> : plan<float>)(kind, I, H, P, heads, T, B, L, D, threads);
}

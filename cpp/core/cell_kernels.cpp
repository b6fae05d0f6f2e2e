// The kernels of one cell for one instruction set: the build compiles this file once for each row
// of the table of kinds (RNNKERN_CELL names it) and each set (RNNKERN_ISA), so that they compile in
// parallel. As in kernels.cpp, no C++ standard library in here.
#include "cells/all.h"
#include "dispatch.h"
#include "stack/stack.h"

namespace rnnkern::RNNKERN_ISA {
namespace {

// A stack laid out in an arena. Its sums leave no flag behind in the caller's floating-point
// environment and raise no trap there; `run` comes after, and sees that environment.
template <class Stack, class Cell, class Call>
Stack laid_out(const Cell& cell, const Call& call, Arena& arena) {
  const std::uint64_t saved = enter_float_environment();
  const Stack stack(cell, call, arena);
  leave_float_environment(saved);
  return stack;
}

template <class T, template <class> class CellOfType>
struct Functions {
  using Cell = CellOfType<T>;
  using Forwards = ForwardStack<Cell, T>;
  using Backwards = BackwardStack<Cell, T>;

  static Index forward_workspace(const ForwardCall<T>& call) {
    Arena arena{nullptr};
    laid_out<Forwards>(Cell(call.constants), call, arena);
    return arena.used;
  }
  static void forward(const ForwardCall<T>& call, void* workspace) {
    Arena arena{static_cast<char*>(workspace)};
    laid_out<Forwards>(Cell(call.constants), call, arena).run();
  }
  static Index backward_workspace(const BackwardCall<T>& call) {
    Arena arena{nullptr};
    laid_out<Backwards>(Cell(call.constants), call, arena);
    return arena.used;
  }
  static GradientNorm backward(const BackwardCall<T>& call, void* workspace) {
    Arena arena{static_cast<char*>(workspace)};
    return laid_out<Backwards>(Cell(call.constants), call, arena).run();
  }
  static void forward_members(const ForwardCall<T>* calls, Index n, int threads, void* workspaces) {
    members<Forwards>(calls, n, threads, workspaces, forward_workspace(*calls),
                      [](const Forwards&, Index) {});
  }
  static void backward_members(const BackwardCall<T>* calls, Index n, int threads, void* workspaces,
                               GradientNorm* norms) {
    members<Backwards>(calls, n, threads, workspaces, backward_workspace(*calls),
                       [&](const Backwards& stack, Index i) { norms[i] = *stack.result; });
  }
  template <class Stack, class Call, class Done>
  static void members(const Call* calls, Index n, int threads, void* workspaces, Index workspace,
                      const Done& done) {
    const double flops = work_of<Cell>(*calls) + ThreadingThresholds::flops_of_a_call;
    threads = capped(static_cast<int>(least(threads, n)),
                     as_double(n) * flops / ThreadingThresholds::flops_of_a_thread);
    Barrier end;  // where the calling thread still polls once its own members are done
    parallel(threads, calls->interrupt, [&](CancelToken& token, int thread, int count) {
      const Range mine = share(n, thread, count);
      for (Index i = mine.first; i < mine.last; ++i) {
        Arena arena{static_cast<char*>(workspaces) + thread * workspace};
        const Stack stack(Cell(calls[i].constants), calls[i], arena);
        stack.begin();
        stack.work(token, 0, 1);
        done(stack, i);
      }
      wait(end, count, token);
    });
  }
  static Index packed_bytes(Index I, Index H, Index P) {
    Arena arena{nullptr};
    ForwardWeights<Cell, T>{}.allocate(arena, I, H, P);
    return arena.used;
  }
  static void pack(const Direction<T>& direction, Index I, Index H, Index P, int threads,
                   const Interrupt& interrupt, void* out) {
    constexpr double elements_of_a_thread = 1 << 18;  // that take longer than a thread's start
    Arena arena{static_cast<char*>(out)};
    ForwardWeights<Cell, T> weights;
    weights.allocate(arena, I, H, P);
    const double elements = as_double(arena.used) / sizeof(T);
    parallel(capped(threads, elements / elements_of_a_thread), interrupt,
             [&](CancelToken& token, int thread, int count) {
               weights.pack(direction, I, H, P, {thread, count, nullptr, &token});
             });
  }
};

template <class T, template <class> class CellOfType>
constexpr CellKernels<T> table() {
  using F = Functions<T, CellOfType>;
  return {F::forward_workspace, F::forward,          F::backward_workspace, F::backward,
          F::forward_members,   F::backward_members, F::packed_bytes,       F::pack};
}

// The cell's struct, by its row.
#define RNNKERN_ALIAS(kind, Cell, ...) \
  template <class T>                   \
  using kind##_struct = Cell<T>;
RNNKERN_KINDS(RNNKERN_ALIAS)
#undef RNNKERN_ALIAS

}  // namespace

#define RNNKERN_JOIN_OF(a, b) a##b
#define RNNKERN_JOIN(a, b) RNNKERN_JOIN_OF(a, b)
#define RNNKERN_STRUCT RNNKERN_JOIN(RNNKERN_CELL, _struct)

extern const CellKernels<float> RNNKERN_JOIN(RNNKERN_CELL, _f32);
extern const CellKernels<double> RNNKERN_JOIN(RNNKERN_CELL, _f64);
constexpr CellKernels<float> RNNKERN_JOIN(RNNKERN_CELL, _f32) = table<float, RNNKERN_STRUCT>();
constexpr CellKernels<double> RNNKERN_JOIN(RNNKERN_CELL, _f64) = table<double, RNNKERN_STRUCT>();

}  // namespace rnnkern::RNNKERN_ISA

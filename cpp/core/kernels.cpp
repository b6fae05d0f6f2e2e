// Compiled once for each instruction set, with its flags and RNNKERN_ISA naming it. No C++ standard
// library in here: a function of it that the linker merges with another file's copy could carry
// instructions that the machine lacks.
#include "cells/all.h"
#include "dispatch.h"
#include "modules.h"
#include "optim.h"
#include "probe.h"
#include "stack.h"

namespace rnnkern::RNNKERN_ISA {
namespace {

bool runs_here() {
#if defined(__x86_64__) && defined(__AVX512F__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__x86_64__) && defined(__AVX2__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return true;
#endif
}

// A stack laid out in an arena. Its sums leave no flag behind in the caller's floating-point
// environment and raise no trap there; `run` comes after, and sees that environment.
template <class Stack, class Call>
Stack laid_out(const Call& call, Arena& arena) {
  const std::uint64_t saved = enter_float_environment();
  const Stack stack(call, arena);
  leave_float_environment(saved);
  return stack;
}

template <class T>
struct Functions {
  static Index forward_room(const ForwardCall<T>& call) {
    return with_cell<T>(call.kind, [&](auto cell) {
      Arena arena{nullptr};
      laid_out<ForwardStack<decltype(cell), T>>(call, arena);
      return arena.used;
    });
  }
  static void forward(const ForwardCall<T>& call, void* room) {
    with_cell<T>(call.kind, [&](auto cell) {
      Arena arena{static_cast<char*>(room)};
      laid_out<ForwardStack<decltype(cell), T>>(call, arena).run();
    });
  }
  static Index backward_room(const BackwardCall<T>& call) {
    return with_cell<T>(call.kind, [&](auto cell) {
      Arena arena{nullptr};
      laid_out<BackwardStack<decltype(cell), T>>(call, arena);
      return arena.used;
    });
  }
  static GradientNorm backward(const BackwardCall<T>& call, void* room) {
    return with_cell<T>(call.kind, [&](auto cell) {
      Arena arena{static_cast<char*>(room)};
      return laid_out<BackwardStack<decltype(cell), T>>(call, arena).run();
    });
  }
  static void forward_members(const ForwardCall<T>* calls, Index n, int threads, void* rooms) {
    with_cell<T>(calls->kind, [&](auto cell) {
      using Stack = ForwardStack<decltype(cell), T>;
      members<decltype(cell), Stack>(calls, n, threads, rooms, forward_room(*calls),
                                     [](const Stack&, Index) {});
    });
  }
  static void backward_members(const BackwardCall<T>* calls, Index n, int threads, void* rooms,
                               GradientNorm* norms) {
    with_cell<T>(calls->kind, [&](auto cell) {
      using Stack = BackwardStack<decltype(cell), T>;
      members<decltype(cell), Stack>(
          calls, n, threads, rooms, backward_room(*calls),
          [&](const Stack& stack, Index i) { norms[i] = *stack.result; });
    });
  }
  template <class Cell, class Stack, class Call, class Done>
  static void members(const Call* calls, Index n, int threads, void* rooms, Index room,
                      const Done& done) {
    const double flops = work_of<Cell>(*calls) + Worth::flops_of_a_call;
    threads = capped(static_cast<int>(least(threads, n)),
                     as_double(n) * flops / Worth::flops_of_a_thread);
    parallel(threads, calls->interrupt, [&](Watch& watch, int thread, int count) {
      const Range mine = share(n, thread, count);
      for (Index i = mine.first; i < mine.last; ++i) {
        Arena arena{static_cast<char*>(rooms) + thread * room};
        const Stack stack(calls[i], arena);
        stack.begin();
        stack.work(watch, 0, 1);
        done(stack, i);
      }
    });
  }
  static Index packed_bytes(Kind kind, Index I, Index H) {
    return with_cell<T>(kind, [&](auto cell) {
      Arena arena{nullptr};
      ForwardWeights<decltype(cell), T>{}.take(arena, I, H);
      return arena.used;
    });
  }
  static void pack(Kind kind, const Direction<T>& direction, Index I, Index H, int threads,
                   const Interrupt& interrupt, void* out) {
    constexpr double elements_of_a_thread = 1 << 18;  // that take longer than a thread's start
    with_cell<T>(kind, [&](auto cell) {
      Arena arena{static_cast<char*>(out)};
      ForwardWeights<decltype(cell), T> weights;
      weights.take(arena, I, H);
      const double elements = as_double(arena.used) / sizeof(T);
      threads = capped(threads, elements / elements_of_a_thread);
      parallel(threads, interrupt, [&](Watch& watch, int thread, int count) {
        weights.pack(direction, I, H, {thread, count, nullptr, &watch});
      });
    });
  }
  template <class Map>
  static void map(const T* x, T* y, Index n, const Map& f) {
    const std::uint64_t saved = enter_float_environment();
    for (Index i = 0; i < n; i += kLanes<T>) store_n(y + i, f(load_n(x + i, n - i)), n - i);
    leave_float_environment(saved);
  }
  static void sigmoid(const T* x, T* y, Index n) {
    map(x, y, n, [](Vec<T> v) { return RNNKERN_ISA::sigmoid<T>(v); });
  }
  static void tanh(const T* x, T* y, Index n) {
    map(x, y, n, [](Vec<T> v) { return hyperbolic_tangent<T>(v); });
  }

  static constexpr TypedKernels<T> table() {
    return {forward_room,      forward,
            backward_room,     backward,
            forward_members,   backward_members,
            packed_bytes,      pack,
            sum_of_squares<T>, optimizer_steps<T>,
            cross_entropy<T>,  add_rows<T>,
            sigmoid,           tanh,
            probe_fma<T>,      probe_read<T>};
  }
};

#define RNNKERN_TEXT_OF(name) #name
#define RNNKERN_TEXT(name) RNNKERN_TEXT_OF(name)

}  // namespace

extern const Kernels table;
constexpr Kernels table = {RNNKERN_TEXT(RNNKERN_ISA), runs_here, Functions<float>::table(),
                           Functions<double>::table()};

}  // namespace rnnkern::RNNKERN_ISA

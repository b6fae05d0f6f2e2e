// What is compiled once for each instruction set, with its flags and RNNKERN_ISA naming it, and the
// set's table; cell_kernels.cpp has the cells' maths, module_kernels.cpp the modules around a
// layer. No C++ standard library in here: a function of it that the linker merges with another
// file's copy could carry instructions that the machine lacks.
#include "dispatch.h"
#include "stack/stack.h"
#include "threads/probe.h"
#include "training/optim.h"

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

}  // namespace

#define RNNKERN_EXTERN(kind, Cell, ...)         \
  extern const CellFunctions<float> kind##_f32; \
  extern const CellFunctions<double> kind##_f64;
RNNKERN_KINDS(RNNKERN_EXTERN)
#undef RNNKERN_EXTERN
extern const ModuleKernels<float> modules_f32;
extern const ModuleKernels<double> modules_f64;

namespace {

// The cells' functions, by kind.
template <class T>
const CellFunctions<T>& cell_of(Kind kind);
#define RNNKERN_F32(kind, Cell, ...) &kind##_f32,
#define RNNKERN_F64(kind, Cell, ...) &kind##_f64,
template <>
const CellFunctions<float>& cell_of(Kind kind) {
  static constexpr const CellFunctions<float>* all[] = {RNNKERN_KINDS(RNNKERN_F32)};
  return *all[static_cast<int>(kind)];
}
template <>
const CellFunctions<double>& cell_of(Kind kind) {
  static constexpr const CellFunctions<double>* all[] = {RNNKERN_KINDS(RNNKERN_F64)};
  return *all[static_cast<int>(kind)];
}

// A stack laid out in an arena. Its sums leave no flag behind in the caller's floating-point
// environment and raise no trap there; `run` comes after, and sees that environment.
template <class Stack, class Call>
Stack laid_out(const Call& call, Arena& arena) {
  const std::uint64_t saved = enter_float_environment();
  const Stack stack(cell_of<typename Stack::Number>(call.kind), call, arena);
  leave_float_environment(saved);
  return stack;
}

// Calls use(W()) for the format that a layer's weights have in panels.
template <class T, class Use>
auto with_format(const CellConstants& constants, const Use& use) {
  if constexpr (sizeof(T) == sizeof(float))
    if (constants.precision != Precision::full) return use(Bf16Pair{});
  return use(T{});
}

template <class T>
struct Functions {
  template <class W>
  using Forwards = ForwardStack<T, W>;
  template <class W>
  using Backwards = BackwardStack<T, W>;

  static CallPlan plan(const ForwardCall<T>& call) {
    return with_format<T>(call.constants, [&](auto w) {
      Arena arena{nullptr};
      const auto stack = laid_out<Forwards<decltype(w)>>(call, arena);
      const Index I = stack.most_inputs(), steps = stack.pipeline.chunk;
      ForwardWorkspace<T, decltype(w)> forward;
      forward.allocate(arena, stack.cell, call.constants, call.rows, I, call.H, call.P, false,
                       steps);
      BackwardWorkspace<T, decltype(w)> backward;
      backward.allocate(arena, stack.cell, call.constants, call.rows, I, call.H, call.P, false,
                        false, steps);
      return CallPlan{stack.threads, stack.shared(), forward.chunk, backward.chunk};
    });
  }
  static Index forward_workspace(const ForwardCall<T>& call) {
    return with_format<T>(call.constants, [&](auto w) {
      Arena arena{nullptr};
      arena.allocate<Forwards<decltype(w)>>(1);
      laid_out<Forwards<decltype(w)>>(call, arena);
      return arena.used;
    });
  }
  static void prepare_forward(const ForwardCall<T>& call, void* workspace) {
    with_format<T>(call.constants, [&](auto w) {
      using Stack = Forwards<decltype(w)>;
      Arena arena{static_cast<char*>(workspace)};
      Stack* const place = arena.allocate<Stack>(1);
      const Stack stack = laid_out<Stack>(call, arena);
      __builtin_memcpy(static_cast<void*>(place), &stack, sizeof stack);  // it has references
    });
  }
  static void run_forward(const void* workspace) {
    const auto* stack = static_cast<const Stack<T, ForwardCall<T>>*>(workspace);  // of any format
    with_format<T>(stack->call.constants,
                   [&](auto w) { static_cast<const Forwards<decltype(w)>*>(workspace)->run(); });
  }
  static void forward(const ForwardCall<T>& call, void* workspace) {
    prepare_forward(call, workspace);
    run_forward(workspace);
  }
  static Index backward_workspace(const BackwardCall<T>& call) {
    return with_format<T>(call.constants, [&](auto w) {
      Arena arena{nullptr};
      laid_out<Backwards<decltype(w)>>(call, arena);
      return arena.used;
    });
  }
  static GradientNorm backward(const BackwardCall<T>& call, void* workspace) {
    return with_format<T>(call.constants, [&](auto w) {
      Arena arena{static_cast<char*>(workspace)};
      return laid_out<Backwards<decltype(w)>>(call, arena).run();
    });
  }
  template <class Call>
  static int threads_of(const Call& call, Index n) {
    return threads_of_members<T>(cell_of<T>(call.kind).layout, call, n);
  }
  static void forward_members(const ForwardCall<T>* calls, Index n, int threads, void* workspaces) {
    with_format<T>(calls->constants, [&](auto w) {
      using Stack = Forwards<decltype(w)>;
      members<Stack>(calls, n, threads, workspaces, forward_workspace(*calls),
                     [](const Stack&, Index) {});
    });
  }
  static void backward_members(const BackwardCall<T>* calls, Index n, int threads, void* workspaces,
                               GradientNorm* norms) {
    with_format<T>(calls->constants, [&](auto w) {
      using Stack = Backwards<decltype(w)>;
      members<Stack>(calls, n, threads, workspaces, backward_workspace(*calls),
                     [&](const Stack& stack, Index i) { norms[i] = *stack.result; });
    });
  }
  template <class Stack, class Call, class Done>
  static void members(const Call* calls, Index n, int threads, void* workspaces, Index workspace,
                      const Done& done) {
    const CellFunctions<T>& functions = cell_of<T>(calls->kind);
    // Where the calling thread still polls once its own members are done.
    Barrier end[kMostBarrierPlaces];
    const auto work = [&](CancelToken& token, int thread, int count) {
      const Range mine = share(n, thread, count);
      for (Index i = mine.first; i < mine.last; ++i) {
        Arena arena{static_cast<char*>(workspaces) + thread * workspace};
        const Stack stack(functions, calls[i], arena);
        stack.begin();
        stack.work(token, 0, 1);
        done(stack, i);
      }
      wait(end, thread, count, token);
    };
    record_sharing({"members", threads, parallel(threads, calls->interrupt, work)});
  }
  // Packed weights begin with the record of where they are.
  static Index packed_bytes(Kind kind, const CellConstants& constants, Index I, Index H, Index P) {
    return with_format<T>(constants, [&](auto w) {
      using Weights = ForwardWeights<T, decltype(w)>;
      Arena arena{nullptr};
      arena.allocate<Weights>(1);
      Weights{}.allocate(arena, cell_of<T>(kind).layout, constants, I, H, P);
      return arena.used;
    });
  }
  static void pack(Kind kind, const CellConstants& constants, const Direction<T>& direction,
                   Index I, Index H, Index P, int threads, const Interrupt& interrupt, void* out) {
    constexpr double elements_of_a_thread = 1 << 18;  // that take longer than a thread's start
    with_format<T>(constants, [&](auto w) {
      using Weights = ForwardWeights<T, decltype(w)>;
      Arena arena{static_cast<char*>(out)};
      Weights& weights = *arena.allocate<Weights>(1);
      weights.allocate(arena, cell_of<T>(kind).layout, constants, I, H, P);
      const double elements = as_double(arena.used) / sizeof(T);
      parallel(capped(threads, elements / elements_of_a_thread), interrupt,
               [&](CancelToken& token, int thread, int count) {
                 weights.pack(cell_of<T>(kind), direction, I, {thread, count, nullptr, &token});
               });
    });
  }

  // Computes the products of n rows of x with the input's weights, which `packed` then looks up.
  static void fold(const CellConstants& constants, void* packed, const T* x, Index n, Index I,
                   int threads, const Interrupt& interrupt, T* products) {
    with_format<T>(constants, [&](auto w) {
      auto& weights = *static_cast<ForwardWeights<T, decltype(w)>*>(packed);
      const double flops = 2 * as_double(n) * as_double(I) * as_double(weights.product_size());
      parallel(capped(threads, flops / kFlopsOfAThread), interrupt,
               [&](CancelToken& token, int thread, int count) {
                 weights.multiply(token, x, I, share(n, thread, count), products);
               });
      weights.products = products;
    });
  }

  static void round([[maybe_unused]] const T* values, [[maybe_unused]] Index n,
                    [[maybe_unused]] T* to) {
    if constexpr (sizeof(T) == sizeof(float))
      map(values, to, n, [](Vec<T> v) { return rounded_to_bf16(v); });
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
};

#define RNNKERN_TEXT_OF(name) #name
#define RNNKERN_TEXT(name) RNNKERN_TEXT_OF(name)

}  // namespace

template <class T>
constexpr TypedKernels<T> typed_table(const ModuleKernels<T>& modules) {
  using F = Functions<T>;
  return {F::plan,
          F::forward_workspace,
          F::forward,
          F::prepare_forward,
          F::run_forward,
          F::backward_workspace,
          F::backward,
          F::template threads_of<ForwardCall<T>>,
          F::template threads_of<BackwardCall<T>>,
          F::forward_members,
          F::backward_members,
          F::packed_bytes,
          F::pack,
          F::fold,
          sum_of_squares<T>,
          optimizer_steps<T>,
          F::round,
          &modules,
          F::sigmoid,
          F::tanh,
          probe_fma<T>,
          probe_read<T>};
}

extern const Kernels table;
constexpr Kernels table = {RNNKERN_TEXT(RNNKERN_ISA), runs_here, typed_table<float>(modules_f32),
                           typed_table<double>(modules_f64)};

}  // namespace rnnkern::RNNKERN_ISA

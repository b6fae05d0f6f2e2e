// What does not depend on a cell, compiled once for each instruction set, with its flags and
// RNNKERN_ISA naming it, and the set's table; cell_kernels.cpp has the rest. No C++ standard
// library in here: a function of it that the linker merges with another file's copy could carry
// instructions that the machine lacks.
#include "dispatch.h"
#include "threads/probe.h"
#include "training/modules.h"
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

template <class T>
struct Functions {
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

#define RNNKERN_EXTERN(kind, Cell, ...)       \
  extern const CellKernels<float> kind##_f32; \
  extern const CellKernels<double> kind##_f64;
RNNKERN_KINDS(RNNKERN_EXTERN)
#undef RNNKERN_EXTERN

#define RNNKERN_F32(kind, Cell, ...) &kind##_f32,
#define RNNKERN_F64(kind, Cell, ...) &kind##_f64,
#define RNNKERN_TYPED(T, ROW)                                                                    \
  {{RNNKERN_KINDS(ROW)},  sum_of_squares<T>,  optimizer_steps<T>, cross_entropy<T>, add_rows<T>, \
   Functions<T>::sigmoid, Functions<T>::tanh, probe_fma<T>,       probe_read<T>}

extern const Kernels table;
constexpr Kernels table = {RNNKERN_TEXT(RNNKERN_ISA), runs_here, RNNKERN_TYPED(float, RNNKERN_F32),
                           RNNKERN_TYPED(double, RNNKERN_F64)};

}  // namespace rnnkern::RNNKERN_ISA

// One table of functions an instruction set; which one is in use is decided once a process.
#pragma once

#include "modules/calls.h"
#include "problem.h"
#include "training/optim_step.h"

namespace rnnkern {

// What a probe of the machine (probe.h) has done: operations or bytes, and the sum of what came
// out.
struct Probe {
  double work, sum;
};

// How a call is divided, for tests: among threads, and into chunks of steps.
struct CallPlan {
  int threads;
  const char* shared;  // see Sharing
  Index forward_chunk, backward_chunk;
};

// What one instruction set offers for the modules around a layer. A workspace is memory of the
// caller's, aligned to a cache line, of as many bytes as the function next to it says.
template <class T>
struct ModuleKernels {
  Index (*attention_workspace)(const AttentionCall<T>&);
  void (*attention)(const AttentionCall<T>&, void* workspace);
  Index (*attention_gradient_workspace)(const AttentionGradientCall<T>&);
  void (*attention_gradient)(const AttentionGradientCall<T>&, void* workspace);
  Index (*crf_workspace)(const CrfCall<T>&);
  void (*crf)(const CrfCall<T>&, void* workspace);
  Index (*crf_decode_workspace)(const CrfDecodeCall<T>&);
  void (*crf_decode)(const CrfDecodeCall<T>&, void* workspace);
  Index (*linear_workspace)(const LinearCall<T>&);
  void (*linear)(const LinearCall<T>&, void* workspace);
  Index (*linear_gradient_workspace)(const LinearGradientCall<T>&);
  void (*linear_gradient)(const LinearGradientCall<T>&, void* workspace);
  double (*cross_entropy)(const CrossEntropyCall<T>&);  // the loss
  void (*take_rows)(const TakeRowsCall<T>&);
  void (*sum_rows)(const SumRowsCall<T>&);
  void (*dropout)(const DropoutCall<T>&);
  void (*layer_norm)(const LayerNormCall<T>&);
  void (*layer_norm_gradient)(const LayerNormGradientCall<T>&);
  double (*pointwise_loss)(const PointwiseLossCall<T>&);  // the loss
  void (*pool)(const PoolingCall<T>&);
  void (*pool_gradient)(const PoolingGradientCall<T>&);
};

// What one instruction set offers for one element type, with workspaces likewise.
template <class T>
struct TypedKernels {
  CallPlan (*plan)(const ForwardCall<T>&);
  Index (*forward_workspace)(const ForwardCall<T>&);
  void (*forward)(const ForwardCall<T>&, void* workspace);
  // The same in two parts: the second may come any number of times. Each time it reads the call's
  // record again, whose sizes and threads stay what they were.
  void (*prepare_forward)(const ForwardCall<T>&, void* workspace);
  void (*run_forward)(const void* workspace);
  Index (*backward_workspace)(const BackwardCall<T>&);
  GradientNorm (*backward)(const BackwardCall<T>&, void* workspace);
  // On how many threads n members of an ensemble run side by side, each on one. 0: in turn, each on
  // all threads of its call.
  int (*threads_of_forwards)(const ForwardCall<T>&, Index n);
  int (*threads_of_backwards)(const BackwardCall<T>&, Index n);
  // `n` calls of the same cell, sizes and interrupt side by side, each on one of at most `threads`
  // threads. Workspaces: one for each of these threads, one behind the other, for a call on one
  // thread.
  void (*forward_members)(const ForwardCall<T>* calls, Index n, int threads, void* workspaces);
  void (*backward_members)(const BackwardCall<T>* calls, Index n, int threads, void* workspaces,
                           GradientNorm* norms);
  // A direction's weights in panels, for Direction::packed.
  Index (*packed_bytes)(Kind, const CellConstants&, Index I, Index H, Index P);
  void (*pack)(Kind, const CellConstants&, const Direction<T>&, Index I, Index H, Index P,
               int threads, const Interrupt&, void* out);
  // Computes what x [n, I] makes of packed weights, [n, gates, padded H]: x of calls with these
  // weights is (T, B, 1) then, numbers of its rows. x has been rounded where products round it.
  void (*fold)(const CellConstants&, void* packed, const T* x, Index n, Index I, int threads,
               const Interrupt&, T* products);
  double (*sum_of_squares)(const T* values, Index n);
  void (*optimizer_steps)(const OptimizerStep<T>* steps, Index count);
  void (*round_to_bf16)(const T* values, Index n, T* to);  // of floats; of doubles it does nothing
  const ModuleKernels<T>* modules;
  void (*sigmoid)(const T* x, T* y, Index n);
  void (*tanh)(const T* x, T* y, Index n);
  Probe (*probe_fma)(Index rounds, int threads, const Interrupt&);
  Probe (*probe_read)(const T* values, Index n, Index passes, int threads, const Interrupt&);
};

struct Kernels {
  const char* name;
  bool (*runs_here)();  // asked before anything else of the set runs
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  template <class T>
  const TypedKernels<T>& of() const;
};
template <>
inline const TypedKernels<float>& Kernels::of() const {
  return f32;
}
template <>
inline const TypedKernels<double>& Kernels::of() const {
  return f64;
}

// The sets built into this library, best last, and how many there are.
extern const Kernels* const kKernels[];
extern const int kKernelsCount;

const Kernels& kernels();  // in use
void use_kernels(const Kernels& wanted);
const Kernels* find_kernels(const char* name);  // null: not built in

}  // namespace rnnkern

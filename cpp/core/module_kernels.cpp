// The modules around a layer for one instruction set: the build compiles this file once for each
// set (RNNKERN_ISA). As in kernels.cpp, no C++ standard library in here.
#include "dispatch.h"
#include "modules/attention.h"
#include "modules/crf.h"
#include "modules/cross_entropy.h"
#include "modules/dropout.h"
#include "modules/embedding.h"
#include "modules/layer_norm.h"
#include "modules/linear.h"
#include "modules/pointwise_loss.h"
#include "modules/pooling.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
constexpr ModuleKernels<T> modules_table() {
  return {attention_workspace<T>,
          attention<T>,
          attention_gradient_workspace<T>,
          attention_gradient<T>,
          crf_workspace<T>,
          crf<T>,
          crf_decode_workspace<T>,
          crf_decode<T>,
          linear_workspace<T>,
          linear<T>,
          linear_gradient_workspace<T>,
          linear_gradient<T>,
          cross_entropy<T>,
          take_rows<T>,
          sum_rows<T>,
          dropout<T>,
          layer_norm<T>,
          layer_norm_gradient<T>,
          pointwise_loss<T>,
          pool<T>,
          pool_gradient<T>};
}

extern const ModuleKernels<float> modules_f32;
extern const ModuleKernels<double> modules_f64;
constexpr ModuleKernels<float> modules_f32 = modules_table<float>();
constexpr ModuleKernels<double> modules_f64 = modules_table<double>();

}  // namespace rnnkern::RNNKERN_ISA

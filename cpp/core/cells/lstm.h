// LSTM. Hochreiter & Schmidhuber 1997, Neural Computation 9(8), with the forget gate of
// Gers, Schmidhuber & Cummins 2000, Neural Computation 12(10).
//
//   i, f, o = sigmoid(a_i, a_f, a_o)   g = tanh(a_g)   c = f c' + i g   h = o tanh(c)
#pragma once

#include "unit.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
struct Lstm {
  static constexpr int gates = 4, saved = 4, slots = 4;
  static constexpr bool has_c = true, reads_h_before = false, reads_h = false;
  static constexpr int phases = 1;
  static constexpr Phase phase[] = {{0, 4, 0, 0b1111, 0, 0b1111}};
  static constexpr int input_slot[] = {0, 1, 2, 3}, recurrent_slot[] = {0, 1, 2, 3};

  template <int, class V>
  RNNKERN_INLINE void forward(ForwardUnit<V>& u) {
    const V i = sigmoid<T>(u.a[0]);
    const V f = sigmoid<T>(u.a[1]);
    const V g = hyperbolic_tangent<T>(u.a[2]);
    const V o = sigmoid<T>(u.a[3]);
    u.c = fma(f, u.c_before, i * g);
    u.h = o * hyperbolic_tangent<T>(u.c);
    u.saved[0] = i, u.saved[1] = f, u.saved[2] = g, u.saved[3] = o;
  }

  template <int, class V>
  RNNKERN_INLINE void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) {
    const V i = u.saved[0], f = u.saved[1], g = u.saved[2], o = u.saved[3];
    const V tanh_c = hyperbolic_tangent<T>(u.c);
    const V dc = fma(u.dh * o, T(1) - tanh_c * tanh_c, u.dc);
    u.da[0] = clip(dc * g * (i * (T(1) - i)));
    u.da[1] = clip(dc * u.c_before * (f * (T(1) - f)));
    u.da[2] = clip(dc * i * (T(1) - g * g));
    u.da[3] = clip(u.dh * tanh_c * (o * (T(1) - o)));
    u.dc = dc * f;
    u.direct = V{};
  }
};

}  // namespace rnnkern::RNNKERN_ISA

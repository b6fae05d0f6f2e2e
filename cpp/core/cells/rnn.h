// Vanilla RNN. Elman 1990, Cognitive Science 14(2): h = act(W_ih x + b_ih + W_hh h' + b_hh).
#pragma once

#include "unit.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
struct Tanh {
  template <class V>
  RNNKERN_INLINE V value(V a) {
    return hyperbolic_tangent<T>(a);
  }
  template <class V>
  RNNKERN_INLINE V slope(V h) {
    return T(1) - h * h;
  }
};

template <class T>
struct Relu {
  template <class V>
  RNNKERN_INLINE V value(V a) {
    return each(a, [](Vec<T> v) { return v < T(0) ? Vec<T>{} : v; });
  }
  template <class V>
  RNNKERN_INLINE V slope(V h) {
    return each(h, [](Vec<T> v) { return v > T(0) ? splat(T(1)) : Vec<T>{}; });
  }
};

template <class T, template <class> class Act>
struct Rnn {
  static constexpr int gates = 1, saved = 0, slots = 1;
  static constexpr bool has_c = false, reads_h_before = false, reads_h = true;
  static constexpr int phases = 1;
  static constexpr Phase phase[] = {{0, 1, 0, 0, 0, 0b1}};
  static constexpr int input_slot[] = {0}, recurrent_slot[] = {0};

  template <int, class V>
  RNNKERN_INLINE void forward(ForwardUnit<V>& u) {
    u.h = Act<T>::value(u.a[0]);
  }

  template <int, class V>
  RNNKERN_INLINE void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) {
    u.da[0] = clip(u.dh * Act<T>::slope(u.h));
    u.direct = V{};
  }
};

template <class T>
using RnnTanh = Rnn<T, Tanh>;
template <class T>
using RnnRelu = Rnn<T, Relu>;

}  // namespace rnnkern::RNNKERN_ISA

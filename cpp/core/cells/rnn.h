// Vanilla RNN. Elman 1990, Cognitive Science 14(2): h = act(W_ih x + b_ih + W_hh h' + b_hh).
#pragma once

#include "contract.h"

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

template <class T, Kind kind, template <class> class Act>
struct Rnn : CellOf<kind> {
  static constexpr int slots = 1, phases = 1;
  static constexpr bool reads_h_before = false, reads_h = true;
  static constexpr Phase phase[] = {{0, 1, 0, 0, 0, 0b1}};
  static constexpr int input_slot[] = {0}, recurrent_slot[] = {0};
  explicit Rnn(const CellConstants&) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    u.h = Act<T>::value(u.a[0]);
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    u.da[0] = clip(u.dh * Act<T>::slope(u.h));
    u.direct = V{};
  }
};

template <class T>
using RnnTanh = Rnn<T, Kind::rnn_tanh, Tanh>;
template <class T>
using RnnRelu = Rnn<T, Kind::rnn_relu, Relu>;

}  // namespace rnnkern::RNNKERN_ISA

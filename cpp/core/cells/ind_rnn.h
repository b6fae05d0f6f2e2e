// IndRNN. Li, Li, Cook, Zhu & Gao 2018, arXiv 1803.04831: each unit sees its own state alone, by
// its factor u: h = act(W_ih x + b_ih + u h').
#pragma once

#include "rnn.h"

namespace rnnkern::RNNKERN_ISA {

template <class T, Kind kind, template <class> class Act>
struct IndRnn : CellOf<kind> {
  static constexpr int slots = 1, phases = 1;
  static constexpr bool reads_h_before = true, reads_h = true;
  static constexpr Phase phase[] = {{0, 1, 0, 0, 0, 0b1}};
  static constexpr int input_slot[] = {0}, recurrent_slot[] = {0};
  explicit IndRnn(const CellConstants&) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    u.h = Act<T>::value(fma(u.vectors[0], u.h_before, u.a[0]));
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    u.da[0] = clip(u.dh * Act<T>::slope(u.h));
    u.d_vectors[0] = u.da[0] * u.h_before;
    u.direct = u.da[0] * u.vectors[0];
  }
};

template <class T>
using IndRnnTanh = IndRnn<T, Kind::ind_rnn_tanh, Tanh>;
template <class T>
using IndRnnRelu = IndRnn<T, Kind::ind_rnn_relu, Relu>;

}  // namespace rnnkern::RNNKERN_ISA

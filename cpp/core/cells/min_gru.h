// minGRU. Feng, Tung, Ahmed, Bengio & Hajimirsadeghi 2024, arXiv 2410.01201: the gate and the
// candidate see x alone, so the recurrence is elementwise.
//
//   z = sigmoid(a_z)   v = g(a_v)   h = (1 - z) h' + z v
//
// g is the paper's positive function of its log-space form, the identity or tanh.
#pragma once

#include "rnn.h"

namespace rnnkern::RNNKERN_ISA {

// a + 1/2 where a >= 0, sigmoid(a) elsewhere.
template <class T>
struct Positive {
  // Below 1/2 where a is negative, even where the sigmoid rounds to 1/2: the slope tells the two
  // branches apart by the value.
  template <class V>
  RNNKERN_INLINE V value(V a) {
    return each(a, [](Vec<T> v) {
      const Vec<T> s = sigmoid<T>(v), most = splat(below_half);
      return v >= T(0) ? v + T(0.5) : s > most ? most : s;
    });
  }
  template <class V>
  RNNKERN_INLINE V slope(V g) {
    return each(g, [](Vec<T> v) { return v >= T(0.5) ? splat(T(1)) : v * (T(1) - v); });
  }
  static constexpr T below_half = sizeof(T) == 4 ? T(0x1.fffffep-2f) : T(0x1.fffffffffffffp-2);
};

template <class T>
struct Identity {
  template <class V>
  RNNKERN_INLINE V value(V a) {
    return a;
  }
  template <class V>
  RNNKERN_INLINE V slope(V g) {
    return each(g, [](Vec<T>) { return splat(T(1)); });
  }
};

template <class T, Kind kind, template <class> class Candidate>
struct MinGruOf : CellOf<kind> {
  static constexpr int slots = 2, phases = 1;
  static constexpr bool reads_h_before = true, reads_h = false;
  static constexpr Phase phase[] = {{0, 2, 0, 0b11, 0, 0b11}};
  static constexpr int input_slot[] = {0, 1}, recurrent_slot[] = {0, 1};
  explicit MinGruOf(const CellConstants&) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    const V z = sigmoid<T>(u.a[0]), v = Candidate<T>::value(u.a[1]);
    u.h = fma(z, v, (T(1) - z) * u.h_before);
    u.saved[0] = z, u.saved[1] = v;
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V z = u.saved[0], v = u.saved[1];
    u.da[0] = clip(u.dh * (v - u.h_before) * (z * (T(1) - z)));
    u.da[1] = clip(u.dh * z * Candidate<T>::slope(v));
    u.direct = u.dh * (T(1) - z);
  }
};

template <class T>
using MinGru = MinGruOf<T, Kind::min_gru, Positive>;
template <class T>
using MinGruIdentity = MinGruOf<T, Kind::min_gru_identity, Identity>;
template <class T>
using MinGruTanh = MinGruOf<T, Kind::min_gru_tanh, Tanh>;

}  // namespace rnnkern::RNNKERN_ISA

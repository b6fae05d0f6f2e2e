// minGRU. Feng, Tung, Ahmed, Bengio & Hajimirsadeghi 2024, arXiv 2410.01201, in its log-space form:
// the gate and the candidate see x alone, so the recurrence is elementwise.
//
//   z = sigmoid(a_z)   g = a_v + 1/2 where a_v >= 0, sigmoid(a_v) elsewhere   h = (1 - z) h' + z g
#pragma once

#include "contract.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
struct MinGru : CellOf<Kind::min_gru> {
  static constexpr int slots = 2, phases = 1;
  static constexpr bool reads_h_before = true, reads_h = false;
  static constexpr Phase phase[] = {{0, 2, 0, 0b11, 0, 0b11}};
  static constexpr int input_slot[] = {0, 1}, recurrent_slot[] = {0, 1};
  explicit MinGru(const CellConstants&) {}

  // g is below 1/2 where a is negative, even where the sigmoid rounds to 1/2: backward tells the
  // two branches apart by g.
  RNNKERN_INLINE Vec<T> candidate(Vec<T> a) {
    const Vec<T> s = sigmoid<T>(a), most = splat(below_half);
    return a >= T(0) ? a + T(0.5) : s > most ? most : s;
  }
  RNNKERN_INLINE Vec<T> slope(Vec<T> g) { return g >= T(0.5) ? splat(T(1)) : g * (T(1) - g); }

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    const V z = sigmoid<T>(u.a[0]);
    const V g = each(u.a[1], [](Vec<T> a) { return candidate(a); });
    u.h = fma(z, g, (T(1) - z) * u.h_before);
    u.saved[0] = z, u.saved[1] = g;
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V z = u.saved[0], g = u.saved[1];
    u.da[0] = clip(u.dh * (g - u.h_before) * (z * (T(1) - z)));
    u.da[1] = clip(u.dh * z * each(g, [](Vec<T> v) { return slope(v); }));
    u.direct = u.dh * (T(1) - z);
  }

  static constexpr T below_half = sizeof(T) == 4 ? T(0x1.fffffep-2f) : T(0x1.fffffffffffffp-2);
};

}  // namespace rnnkern::RNNKERN_ISA

// minLSTM. Feng, Tung, Ahmed, Bengio & Hajimirsadeghi 2024, arXiv 2410.01201: minGRU with two
// gates, normalized so that they add up to one.
//
//   s_f, s_i = sigmoid(a_f, a_i)   f = s_f / (s_f + s_i)   i = s_i / (s_f + s_i)   h = f h' + i v
//
// v = g(a_v) as in minGRU. With e = exp(-a), f = (1 + e_i) / (2 + e_f + e_i). Both sides are
// multiplied by e^m with m = min(a_f, a_i, 0): no exponent is positive, so nothing overflows, and
// one term is 1.
#pragma once

#include "min_gru.h"

namespace rnnkern::RNNKERN_ISA {

template <class T, Kind kind, template <class> class Candidate>
struct MinLstmOf : CellOf<kind> {
  static constexpr int slots = 3, phases = 1;
  static constexpr bool reads_h_before = true, reads_h = false;
  static constexpr Phase phase[] = {{0, 3, 0, 0b1111, 0, 0b111}};
  static constexpr int input_slot[] = {0, 1, 2}, recurrent_slot[] = {0, 1, 2};
  explicit MinLstmOf(const CellConstants&) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    const V a_f = each(u.a[0], finite), a_i = each(u.a[1], finite);
    const V m = least(least(a_f, a_i), V{});
    const V one = each(m, power), e_f = each(m - a_f, power), e_i = each(m - a_i, power);
    const V of_f = one + e_i, of_i = one + e_f, sum = of_f + of_i;
    const V f = of_f / sum, i = of_i / sum;
    const V v = Candidate<T>::value(u.a[2]);
    u.h = fma(f, u.h_before, i * v);
    u.saved[0] = f, u.saved[1] = i, u.saved[2] = v, u.saved[3] = e_f / of_i;  // sigmoid(-a_f)
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V f = u.saved[0], i = u.saved[1], v = u.saved[2], not_f = u.saved[3];
    const V d = u.dh * (u.h_before - v);
    // df/da_f = f i (1 - s_f), df/da_i = -f i (1 - s_i), where f s_i = i s_f.
    u.da[0] = clip(d * f * (i * not_f));
    u.da[1] = clip(d * i * (i * (T(1) - not_f) - f));
    u.da[2] = clip(u.dh * i * Candidate<T>::slope(v));
    u.direct = u.dh * f;
  }

 private:
  // Differences of these are no nan.
  RNNKERN_INLINE Vec<T> finite(Vec<T> a) { return limit(a, splat(-largest), splat(largest)); }
  // e^x for x up to 0, and above zero, so that no quotient is 0 / 0.
  RNNKERN_INLINE Vec<T> power(Vec<T> x) {
    return exponential<T>(larger(splat(Exponential<T>::lowest), x));
  }
  RNNKERN_INLINE Vec<T> least(Vec<T> a, Vec<T> b) { return smaller(a, b); }
  RNNKERN_INLINE Pair<Vec<T>> least(Pair<Vec<T>> a, Pair<Vec<T>> b) {
    return {smaller(a.first, b.first), smaller(a.second, b.second)};
  }
  static constexpr T largest = sizeof(T) == 4 ? T(0x1p100f) : T(0x1p1000);
};

template <class T>
using MinLstm = MinLstmOf<T, Kind::min_lstm, Positive>;
template <class T>
using MinLstmIdentity = MinLstmOf<T, Kind::min_lstm_identity, Identity>;
template <class T>
using MinLstmTanh = MinLstmOf<T, Kind::min_lstm_tanh, Tanh>;

}  // namespace rnnkern::RNNKERN_ISA

// RG-LRU. De et al. 2024, arXiv 2402.19427, section 2.4: the gates see x alone, and x itself enters
// by a factor that keeps the state's size.
//
//   r, i = sigmoid(a_r, a_i)   log a = -8 softplus(lambda) r   h = a h' + s (i x)
//
// with s = sqrt(1 - a^2). Where a new sequence begins by `resets`, a = 0 and s = 1.
#pragma once

#include "activations.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
struct RgLru : CellOf<Kind::rg_lru> {
  static constexpr int slots = 2, phases = 1, prepared = 2;
  static constexpr bool reads_h_before = true, reads_h = false, reads_kept = true;
  static constexpr Phase phase[] = {{0, 2, 0, 0b1111, 0, 0b11}};
  static constexpr int input_slot[] = {0, 1}, recurrent_slot[] = {0, 1};
  explicit RgLru(const CellConstants&) {}

  // From lambda: log a / r, and its derivative.
  RNNKERN_INLINE void prepare(Vec<T> (&v)[kMostVectors]) {
    const Vec<T> lambda = v[0];
    v[0] = T(-8) * softplus<T>(lambda), v[1] = T(-8) * sigmoid<T>(lambda);
  }

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    const V r = sigmoid<T>(u.a[0]), i = sigmoid<T>(u.a[1]);
    const V log_a = where_kept(u.kept, u.vectors[0] * r);
    const V a = each(log_a, decay), s = each(log_a, entrance);
    u.h = fma(a, u.h_before, s * (i * u.x));
    u.saved[0] = r, u.saved[1] = i, u.saved[2] = a, u.saved[3] = s;
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V r = u.saved[0], i = u.saved[1], a = u.saved[2], s = u.saved[3];
    // ds / d log a = -a^2 / s, where 1 / (2 s) is at most 1000, as in the authors' code.
    const V slope = a * a / each(s, [](Vec<T> v) { return larger(splat(T(0.0005)), v); });
    const V d_log_a = u.dh * (a * u.h_before - i * u.x * slope);
    u.da[0] = clip(d_log_a * u.vectors[0] * (r * (T(1) - r)));
    u.da[1] = clip(u.dh * s * u.x * (i * (T(1) - i)));
    u.d_vectors[0] = d_log_a * r * u.vectors[1];
    u.dx = u.dh * s * i;
    u.direct = u.dh * a;
  }

 private:
  RNNKERN_INLINE Vec<T> where_kept(Vec<T> kept, Vec<T> log_a) {
    return kept > T(0) ? log_a : splat(T(-__builtin_inf()));
  }
  RNNKERN_INLINE Pair<Vec<T>> where_kept(Pair<Vec<T>> kept, Pair<Vec<T>> log_a) {
    return {where_kept(kept.first, log_a.first), where_kept(kept.second, log_a.second)};
  }
  // a and s, which share one power of e.
  RNNKERN_INLINE Vec<T> decay(Vec<T> log_a) {
    const Power<T> e = power<T, 1>(larger(splat(Exponential<T>::lowest), log_a));
    return log_a < Exponential<T>::lowest ? Vec<T>{} : fma(e.scale, e.rest, e.scale);
  }
  RNNKERN_INLINE Vec<T> entrance(Vec<T> log_a) {
    const Vec<T> m = exponential_less_one<T>(log_a);  // a - 1
    return square_root(-m * (m + T(2)));
  }
};

}  // namespace rnnkern::RNNKERN_ISA

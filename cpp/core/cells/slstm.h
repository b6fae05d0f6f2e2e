// sLSTM. Beck et al. 2024, arXiv 2405.04517, section 2.2 and appendix A: exponential gates, held
// relative to exp(m), and a recurrent matrix of blocks, one a head.
//
//   log f = log sigmoid(a_f), or a_f   m = max(a_i, log f + m')
//   i = exp(a_i - m)   f = exp(log f + m' - m)   z = tanh(a_z)   o = sigmoid(a_o)
//   c = f c' + i z     n = f n' + i              h = o c / n
//
// No exponent is positive, and i or f is 1: so n is at least 1 from the first step on. There m' is
// -inf, which makes f zero. h does not depend on m, given c and n: no gradient flows through it.
#pragma once

#include "activations.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
struct Slstm : CellOf<Kind::slstm> {
  static constexpr int slots = 4, phases = 1;
  static constexpr bool reads_h_before = false, reads_h = false;
  static constexpr Phase phase[] = {{0, 4, 0, 0b11111, 0, 0b1111}};
  static constexpr int input_slot[] = {0, 1, 2, 3}, recurrent_slot[] = {0, 1, 2, 3};
  explicit Slstm(const CellConstants& constants) : exp_forget(constants.exp_forget) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    V log_f = u.a[1], slope = T(1) - V{};  // d log f / d a_f: 1, or sigmoid(-a_f)
    if (!exp_forget) {
      const V e = each(log_f, [](Vec<T> a) { return exponential<T>(-magnitude<T>(a)); });
      slope = each(log_f, e,
                   [](Vec<T> a, Vec<T> of) { return (a > T(0) ? of : splat(T(1))) / (of + T(1)); });
      log_f = each(log_f, e,
                   [](Vec<T> a, Vec<T> of) { return smaller(Vec<T>{}, a) - log_one_plus<T>(of); });
    }
    const V kept = log_f + u.c_before[2];
    const V m = each(u.a[0], kept, [](Vec<T> a, Vec<T> b) { return larger(a, b); });
    const V i = each(u.a[0] - m, [](Vec<T> x) { return exponential<T>(x); });
    const V f = each(kept - m, [](Vec<T> x) { return exponential<T>(x); });
    const V z = hyperbolic_tangent<T>(u.a[2]);
    const V o = sigmoid<T>(u.a[3]);
    u.c[0] = fma(f, u.c_before[0], i * z);
    u.c[1] = fma(f, u.c_before[1], i);
    u.c[2] = m;
    u.h = o * (u.c[0] / u.c[1]);
    u.saved[0] = i, u.saved[1] = f, u.saved[2] = z, u.saved[3] = o, u.saved[4] = slope;
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V i = u.saved[0], f = u.saved[1], z = u.saved[2], o = u.saved[3], slope = u.saved[4];
    const V mean = u.c[0] / u.c[1], d = u.dh * o / u.c[1];
    const V dc = u.dc[0] + d, dn = u.dc[1] - d * mean;
    u.da[0] = clip(fma(dc, z, dn) * i);
    u.da[1] = clip(fma(dc, u.c_before[0], dn * u.c_before[1]) * (f * slope));
    u.da[2] = clip(dc * i * (T(1) - z * z));
    u.da[3] = clip(u.dh * mean * (o * (T(1) - o)));
    u.dc[0] = dc * f, u.dc[1] = dn * f;
    u.direct = V{};
  }

  bool exp_forget;
};

}  // namespace rnnkern::RNNKERN_ISA

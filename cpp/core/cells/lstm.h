// LSTM. Hochreiter & Schmidhuber 1997, Neural Computation 9(8), with the forget gate of
// Gers, Schmidhuber & Cummins 2000, Neural Computation 12(10).
//
//   i, f, o = sigmoid(a_i, a_f, a_o)   g = tanh(a_g)   c = f c' + i g   h = o tanh(c)
//
// With a projection (Sak, Senior & Beaufays 2014, arXiv 1402.1128) h = W_hr (o tanh(c)). With clips
// c is limited before its tanh and as carried, and h after the projection; the gradient passes
// where the value was within the bound.
#pragma once

#include "contract.h"

namespace rnnkern::RNNKERN_ISA {

// No bound on c: the compiler removes it.
template <class T>
struct Unbounded {
  explicit Unbounded(const CellConstants&) {}
  template <class V>
  RNNKERN_MEMBER V value(V c) const {
    return c;
  }
  template <class V>
  RNNKERN_MEMBER V gradient(V dc, V) const {
    return dc;
  }
};

// c within [-bound, bound].
template <class T>
struct Bounded {
  explicit Bounded(const CellConstants& constants)
      : bound(splat(static_cast<T>(constants.cell_clip))) {}
  template <class V>
  RNNKERN_MEMBER V value(V c) const {
    return each(c, [this](Vec<T> v) { return limit(v, -bound, bound); });
  }
  // dc where the value before the bound was within it.
  template <class V>
  RNNKERN_MEMBER V gradient(V dc, V before) const {
    return where_within<T>(before, bound, dc);
  }
  Vec<T> bound;
};

template <class T, Kind kind, template <class> class CellClip>
struct LstmWith : CellOf<kind> {
  static constexpr int slots = 4, phases = 1;
  static constexpr bool reads_h_before = false, reads_h = false;
  static constexpr Phase phase[] = {{0, 4, 0, 0b1111, 0, 0b1111}};
  static constexpr int input_slot[] = {0, 1, 2, 3}, recurrent_slot[] = {0, 1, 2, 3};
  explicit LstmWith(const CellConstants& constants) : clip_c(constants) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    const V i = sigmoid<T>(u.a[0]);
    const V f = sigmoid<T>(u.a[1]);
    const V g = hyperbolic_tangent<T>(u.a[2]);
    const V o = sigmoid<T>(u.a[3]);
    u.c[0] = clip_c.value(fma(f, u.c_before[0], i * g));
    const V h = o * hyperbolic_tangent<T>(u.c[0]);
    (LstmWith::projects ? u.operand : u.h) = h;
    u.saved[0] = i, u.saved[1] = f, u.saved[2] = g, u.saved[3] = o;
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V i = u.saved[0], f = u.saved[1], g = u.saved[2], o = u.saved[3];
    const V tanh_c = hyperbolic_tangent<T>(u.c[0]);
    V dc = fma(u.dh * o, T(1) - tanh_c * tanh_c, u.dc[0]);
    dc = clip_c.gradient(dc, fma(f, u.c_before[0], i * g));
    u.da[0] = clip(dc * g * (i * (T(1) - i)));
    u.da[1] = clip(dc * u.c_before[0] * (f * (T(1) - f)));
    u.da[2] = clip(dc * i * (T(1) - g * g));
    u.da[3] = clip(u.dh * tanh_c * (o * (T(1) - o)));
    u.dc[0] = dc * f;
    u.direct = V{};
    if constexpr (LstmWith::projects) u.operand = o * tanh_c;
  }

  CellClip<T> clip_c;
};

// With peepholes (Gers & Schmidhuber 2000, IJCNN) the gates see c by one weight for each unit: i
// and f see c', o sees c.
template <class T>
struct LstmPeephole : CellOf<Kind::lstm_peephole> {
  static constexpr int slots = 4, phases = 1;
  static constexpr bool reads_h_before = false, reads_h = false;
  static constexpr Phase phase[] = {{0, 4, 0, 0b1111, 0, 0b1111}};
  static constexpr int input_slot[] = {0, 1, 2, 3}, recurrent_slot[] = {0, 1, 2, 3};
  explicit LstmPeephole(const CellConstants& constants) : clip_c(constants) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    const V i = sigmoid<T>(fma(u.vectors[0], u.c_before[0], u.a[0]));
    const V f = sigmoid<T>(fma(u.vectors[1], u.c_before[0], u.a[1]));
    const V g = hyperbolic_tangent<T>(u.a[2]);
    u.c[0] = clip_c.value(fma(f, u.c_before[0], i * g));
    const V o = sigmoid<T>(fma(u.vectors[2], u.c[0], u.a[3]));
    u.h = o * hyperbolic_tangent<T>(u.c[0]);
    u.saved[0] = i, u.saved[1] = f, u.saved[2] = g, u.saved[3] = o;
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V i = u.saved[0], f = u.saved[1], g = u.saved[2], o = u.saved[3];
    const V tanh_c = hyperbolic_tangent<T>(u.c[0]);
    u.da[3] = clip(u.dh * tanh_c * (o * (T(1) - o)));
    V dc = fma(u.dh * o, T(1) - tanh_c * tanh_c, fma(u.da[3], u.vectors[2], u.dc[0]));
    dc = clip_c.gradient(dc, fma(f, u.c_before[0], i * g));
    u.da[0] = clip(dc * g * (i * (T(1) - i)));
    u.da[1] = clip(dc * u.c_before[0] * (f * (T(1) - f)));
    u.da[2] = clip(dc * i * (T(1) - g * g));
    u.dc[0] = fma(u.da[0], u.vectors[0], fma(u.da[1], u.vectors[1], dc * f));
    u.d_vectors[0] = u.da[0] * u.c_before[0];
    u.d_vectors[1] = u.da[1] * u.c_before[0];
    u.d_vectors[2] = u.da[3] * u.c[0];
    u.direct = V{};
  }

  Bounded<T> clip_c;
};

template <class T>
using Lstm = LstmWith<T, Kind::lstm, Unbounded>;
template <class T>
using LstmClipped = LstmWith<T, Kind::lstm_clipped, Bounded>;
template <class T>
using LstmProjected = LstmWith<T, Kind::lstm_projected, Bounded>;

}  // namespace rnnkern::RNNKERN_ISA

// LSTM and GRU with layer norm. Ba, Kiros & Hinton 2016, arXiv 1607.06450, equations 20 to 22 and
// 25 to 27, in the conventions of two libraries. LN(v) = gain (v - mean) / std + bias, with the
// moments of the whole row.
//
// haste: the gates' arguments are LN(W x) + LN(W_hh h') + b; the LSTM carries c itself,
//   h = o tanh(LN(c)); the reset-after GRU has n = tanh(LN(W x)_n + b_n + r (LN(W_hh h')_n +
//   b_rn)).
// fastrnns (PyTorch's benchmarks): a bias for each product; c = LN(f c' + i g), h = o tanh(c).
#pragma once

#include "contract.h"

namespace rnnkern::RNNKERN_ISA {

template <class T, Kind kind, bool carries_normed>
struct LstmLayerNorm : CellOf<kind> {
  static constexpr int slots = 4, phases = 1, parts = 2;
  static constexpr bool reads_h_before = false, reads_h = false;
  static constexpr Phase phase[] = {{0, 4, 0, 0, 0, 0}};
  static constexpr int input_slot[] = {0, 1, 2, 3}, recurrent_slot[] = {0, 1, 2, 3};
  // Of each part of backward: the gates whose da it writes; how many values part 0 gets from
  // part 1.
  static constexpr unsigned part_slots[] = {0b0111, 0b1000};
  static constexpr int kept = 3;
  explicit LstmLayerNorm(const CellConstants&) {}

  template <int part, class V>
  RNNKERN_MEMBER void forward(NormForward<V>& u) const {
    if constexpr (part == 0) {
      const V i = sigmoid<T>(u.a[0]);
      const V f = sigmoid<T>(u.a[1]);
      const V g = hyperbolic_tangent<T>(u.a[2]);
      u.kept = sigmoid<T>(u.a[3]);
      u.c = fma(f, u.c_before, i * g);
    } else {
      const V o = u.kept, normed = u.norm.value(u.norm.standardized(u.c));
      u.output = o * hyperbolic_tangent<T>(normed);
      if constexpr (carries_normed) u.c = normed;
    }
  }

  template <int part, class V>
  RNNKERN_MEMBER void backward(NormBackward<V>& u, const StepClip<Vec<T>>& clip) const {
    if constexpr (part == 1) {
      const V i = sigmoid<T>(u.a[0]), f = sigmoid<T>(u.a[1]);
      const V g = hyperbolic_tangent<T>(u.a[2]), o = sigmoid<T>(u.a[3]);
      const V n = u.norm.standardized(fma(f, u.c_before, i * g));
      const V tanh_c = hyperbolic_tangent<T>(u.norm.value(n));
      u.d_normed = u.dh * o * (T(1) - tanh_c * tanh_c);
      if constexpr (carries_normed) u.d_normed = u.d_normed + u.dc;
      u.d_normed_n = u.d_normed * n;
      u.da[3] = clip(u.dh * tanh_c * (o * (T(1) - o)));
      u.output = o * tanh_c;
      u.kept[0] = i, u.kept[1] = f, u.kept[2] = g;
    } else {
      const V i = u.kept[0], f = u.kept[1], g = u.kept[2];
      V dc = u.norm.gradient(u.d_normed, u.norm.standardized(fma(f, u.c_before, i * g)));
      if constexpr (!carries_normed) dc = dc + u.dc;
      u.da[0] = clip(dc * g * (i * (T(1) - i)));
      u.da[1] = clip(dc * u.c_before * (f * (T(1) - f)));
      u.da[2] = clip(dc * i * (T(1) - g * g));
      u.dc = dc * f;
      u.direct = V{};
    }
  }
};

template <class T>
using LstmHaste = LstmLayerNorm<T, Kind::lstm_haste, false>;
template <class T>
using LstmHasteProjected = LstmLayerNorm<T, Kind::lstm_haste_projected, false>;
template <class T>
using LstmFastrnns = LstmLayerNorm<T, Kind::lstm_fastrnns, true>;
template <class T>
using LstmFastrnnsProjected = LstmLayerNorm<T, Kind::lstm_fastrnns_projected, true>;

// Slots as in Gru (gru.h); q = LN(W_hh h')_n + b_rn.
template <class T>
struct GruHaste : CellOf<Kind::gru_haste> {
  static constexpr int slots = 4, phases = 1, parts = 1;
  static constexpr bool reads_h_before = true, reads_h = false;
  static constexpr Phase phase[] = {{0, 3, 0, 0, 0, 0}};
  static constexpr int input_slot[] = {0, 1, 2}, recurrent_slot[] = {0, 1, 3};
  static constexpr unsigned part_slots[] = {0b1111};
  static constexpr int kept = 0;
  explicit GruHaste(const CellConstants&) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(NormForward<V>& u) const {
    const V r = sigmoid<T>(u.a[0]), z = sigmoid<T>(u.a[1]), q = u.a[2];
    const V n = hyperbolic_tangent<T>(fma(r, q, u.x[2]));
    u.output = fma(z, u.h_before, (T(1) - z) * n);
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(NormBackward<V>& u, const StepClip<Vec<T>>& clip) const {
    const V r = sigmoid<T>(u.a[0]), z = sigmoid<T>(u.a[1]), q = u.a[2];
    const V n = hyperbolic_tangent<T>(fma(r, q, u.x[2]));
    u.da[2] = clip(u.dh * (T(1) - z) * (T(1) - n * n));
    u.da[3] = u.da[2] * r;
    u.da[0] = clip(u.da[2] * q * (r * (T(1) - r)));
    u.da[1] = clip(u.dh * (u.h_before - n) * (z * (T(1) - z)));
    u.direct = u.dh * z;
  }
};

}  // namespace rnnkern::RNNKERN_ISA

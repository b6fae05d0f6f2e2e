// GRU. Cho et al. 2014, arXiv 1406.1078: r, z = sigmoid(a_r, a_z), h = (1 - z) n + z h'.
// The two variants of that paper differ in where the reset gate acts.
#pragma once

#include "contract.h"

namespace rnnkern::RNNKERN_ISA {

// v1 of the paper (cuDNN, PyTorch): n = tanh(W_in x + b_in + r q) with q = W_hn h' + b_hn.
template <class T>
struct Gru : CellOf<Kind::gru> {
  static constexpr int slots = 4, phases = 1;
  static constexpr bool reads_h_before = true, reads_h = false;
  static constexpr Phase phase[] = {{0, 3, 0b100, 0b1111, 0, 0b1111}};
  // Forward: slot 2 is the input's part of n's argument, slot 3 is q. Backward: slot 2 is dL/da_n,
  // what the input's product sees; slot 3 is r times it, what W_hn h' sees.
  static constexpr int input_slot[] = {0, 1, 2}, recurrent_slot[] = {0, 1, 3};
  explicit Gru(const CellConstants&) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    const V r = sigmoid<T>(u.a[0]);
    const V z = sigmoid<T>(u.a[1]);
    const V q = u.a[2];
    const V n = hyperbolic_tangent<T>(fma(r, q, u.saved[2]));
    u.h = fma(z, u.h_before, (T(1) - z) * n);
    u.saved[0] = r, u.saved[1] = z, u.saved[2] = n, u.saved[3] = q;
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V r = u.saved[0], z = u.saved[1], n = u.saved[2], q = u.saved[3];
    u.da[2] = clip(u.dh * (T(1) - z) * (T(1) - n * n));
    u.da[3] = u.da[2] * r;
    u.da[0] = clip(u.da[2] * q * (r * (T(1) - r)));
    u.da[1] = clip(u.dh * (u.h_before - n) * (z * (T(1) - z)));
    u.direct = u.dh * z;
  }
};

// v3 of the paper (ONNX's default): n = tanh(W_in x + b_in + W_hn (r h') + b_hn), in two phases.
template <class T>
struct GruResetBefore : CellOf<Kind::gru_reset_before> {
  static constexpr int slots = 3, phases = 2;
  static constexpr bool reads_h_before = true, reads_h = false;
  static constexpr Phase phase[] = {{0, 2, 0, 0b011, 0b010, 0b001}, {2, 1, 0b010, 0b100, 0, 0b110}};
  static constexpr int input_slot[] = {0, 1, 2}, recurrent_slot[] = {0, 1, 2};
  explicit GruResetBefore(const CellConstants&) {}

  template <int phase_index, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    if constexpr (phase_index == 0) {
      u.saved[0] = sigmoid<T>(u.a[0]);
      u.saved[1] = sigmoid<T>(u.a[1]);
      u.operand = u.saved[0] * u.h_before;
    } else {
      const V z = u.saved[1];
      const V n = hyperbolic_tangent<T>(u.a[2]);
      u.h = fma(z, u.h_before, (T(1) - z) * n);
      u.saved[2] = n;
    }
  }

  template <int phase_index, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V r = u.saved[0], z = u.saved[1], n = u.saved[2];
    if constexpr (phase_index == 1) {
      u.da[2] = clip(u.dh * (T(1) - z) * (T(1) - n * n));
      u.da[1] = clip(u.dh * (u.h_before - n) * (z * (T(1) - z)));
      u.direct = u.dh * z;
    } else {
      const V d_operand = u.dh;  // dL/d(r h')
      u.da[0] = clip(d_operand * u.h_before * (r * (T(1) - r)));
      u.direct = fma(d_operand, r, u.direct);
    }
  }

  // The operand of phase 1's recurrent product, made again from what was saved.
  RNNKERN_INLINE Vec<T> operand(Vec<T> r, Vec<T> h_before) { return r * h_before; }
};

}  // namespace rnnkern::RNNKERN_ISA

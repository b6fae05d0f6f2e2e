// RNN, GRU and LSTM with what ONNX lets a model choose (operators RNN, GRU and LSTM): the
// activations, a clip of the gates' arguments, and of an LSTM peepholes and coupled gates, f = 1 -
// i (Greff et al. 2017, arXiv 1503.04069). Without these options the cells of the other files are
// faster.
//
// Forward saves the gates' arguments, from which backward computes values and slopes.
#pragma once

#include "activations.h"
#include "lstm.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
struct RnnGeneral : CellOf<Kind::rnn_general> {
  static constexpr int slots = 1, phases = 1;
  static constexpr bool reads_h_before = false, reads_h = false;
  static constexpr Phase phase[] = {{0, 1, 0, 0b1, 0, 0b1}};
  static constexpr int input_slot[] = {0}, recurrent_slot[] = {0};
  explicit RnnGeneral(const CellConstants& c) : act(c.activations[0], c.forward_clip) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    u.h = act.value(u.a[0]);
    u.saved[0] = u.a[0];
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    u.da[0] = clip(u.dh * act.slope(u.saved[0]));
    u.direct = V{};
  }

  Activated<T> act;
};

// The activations of an LSTM: of its gates, of g, and of c, which no clip of arguments concerns.
template <class T>
struct LstmActivations {
  explicit LstmActivations(const CellConstants& c)
      : gate(c.activations[0], c.forward_clip),
        candidate(c.activations[1], c.forward_clip),
        output(c.activations[2], __builtin_inf()),
        clip_c(c) {}
  Activated<T> gate, candidate, output;
  Bounded<T> clip_c;
};

template <class T, Kind kind>
struct LstmOf : CellOf<kind>, LstmActivations<T> {
  static constexpr int slots = 4, phases = 1;
  static constexpr bool reads_h_before = false, reads_h = false;
  static constexpr Phase phase[] = {{0, 4, 0, 0b1111, 0, 0b1111}};
  static constexpr int input_slot[] = {0, 1, 2, 3}, recurrent_slot[] = {0, 1, 2, 3};
  explicit LstmOf(const CellConstants& constants) : LstmActivations<T>(constants) {}
  using LstmActivations<T>::gate, LstmActivations<T>::candidate, LstmActivations<T>::output,
      LstmActivations<T>::clip_c;

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    u.saved[0] = fma(u.vectors[0], u.c_before[0], u.a[0]);
    u.saved[1] = fma(u.vectors[1], u.c_before[0], u.a[1]);
    u.saved[2] = u.a[2];
    const V i = gate.value(u.saved[0]), f = gate.value(u.saved[1]);
    const V g = candidate.value(u.saved[2]);
    u.c[0] = clip_c.value(fma(f, u.c_before[0], i * g));
    u.saved[3] = fma(u.vectors[2], u.c[0], u.a[3]);
    (LstmOf::projects ? u.operand : u.h) = gate.value(u.saved[3]) * output.value(u.c[0]);
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V i = gate.value(u.saved[0]), f = gate.value(u.saved[1]);
    const V g = candidate.value(u.saved[2]), o = gate.value(u.saved[3]);
    const V m = output.value(u.c[0]);
    u.da[3] = clip(u.dh * m * gate.slope(u.saved[3]));
    V dc = fma(u.dh * o, output.slope(u.c[0]), fma(u.da[3], u.vectors[2], u.dc[0]));
    dc = clip_c.gradient(dc, fma(f, u.c_before[0], i * g));
    u.da[0] = clip(dc * g * gate.slope(u.saved[0]));
    u.da[1] = clip(dc * u.c_before[0] * gate.slope(u.saved[1]));
    u.da[2] = clip(dc * i * candidate.slope(u.saved[2]));
    u.dc[0] = fma(u.da[0], u.vectors[0], fma(u.da[1], u.vectors[1], dc * f));
    u.d_vectors[0] = u.da[0] * u.c_before[0];
    u.d_vectors[1] = u.da[1] * u.c_before[0];
    u.d_vectors[2] = u.da[3] * u.c[0];
    u.direct = V{};
    if constexpr (LstmOf::projects) u.operand = o * m;
  }
};

// f = 1 - i: rows i, g, o.
template <class T, Kind kind>
struct CifgOf : CellOf<kind>, LstmActivations<T> {
  static constexpr int slots = 3, phases = 1;
  static constexpr bool reads_h_before = false, reads_h = false;
  static constexpr Phase phase[] = {{0, 3, 0, 0b111, 0, 0b111}};
  static constexpr int input_slot[] = {0, 1, 2}, recurrent_slot[] = {0, 1, 2};
  explicit CifgOf(const CellConstants& constants) : LstmActivations<T>(constants) {}
  using LstmActivations<T>::gate, LstmActivations<T>::candidate, LstmActivations<T>::output,
      LstmActivations<T>::clip_c;

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    u.saved[0] = fma(u.vectors[0], u.c_before[0], u.a[0]);
    u.saved[1] = u.a[1];
    const V i = gate.value(u.saved[0]), g = candidate.value(u.saved[1]);
    u.c[0] = clip_c.value(fma(T(1) - i, u.c_before[0], i * g));
    u.saved[2] = fma(u.vectors[1], u.c[0], u.a[2]);
    (CifgOf::projects ? u.operand : u.h) = gate.value(u.saved[2]) * output.value(u.c[0]);
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V i = gate.value(u.saved[0]), g = candidate.value(u.saved[1]);
    const V o = gate.value(u.saved[2]), m = output.value(u.c[0]);
    u.da[2] = clip(u.dh * m * gate.slope(u.saved[2]));
    V dc = fma(u.dh * o, output.slope(u.c[0]), fma(u.da[2], u.vectors[1], u.dc[0]));
    dc = clip_c.gradient(dc, fma(T(1) - i, u.c_before[0], i * g));
    u.da[0] = clip(dc * (g - u.c_before[0]) * gate.slope(u.saved[0]));
    u.da[1] = clip(dc * i * candidate.slope(u.saved[1]));
    u.dc[0] = fma(u.da[0], u.vectors[0], dc * (T(1) - i));
    u.d_vectors[0] = u.da[0] * u.c_before[0];
    u.d_vectors[1] = u.da[2] * u.c[0];
    u.direct = V{};
    if constexpr (CifgOf::projects) u.operand = o * m;
  }
};

template <class T>
using LstmGeneral = LstmOf<T, Kind::lstm_general>;
template <class T>
using LstmGeneralProjected = LstmOf<T, Kind::lstm_general_projected>;
template <class T>
using CifgGeneral = CifgOf<T, Kind::cifg_general>;
template <class T>
using CifgGeneralProjected = CifgOf<T, Kind::cifg_general_projected>;

// The activations of a GRU: of r and z, and of n.
template <class T>
struct GruActivations {
  explicit GruActivations(const CellConstants& c)
      : gate(c.activations[0], c.forward_clip), candidate(c.activations[1], c.forward_clip) {}
  Activated<T> gate, candidate;
};

// Slots as in Gru (gru.h). Saved: the arguments of r, z and n, and q = W_hn h' + b_hn.
template <class T>
struct GruGeneral : CellOf<Kind::gru_general>, GruActivations<T> {
  static constexpr int slots = 4, phases = 1;
  static constexpr bool reads_h_before = true, reads_h = false;
  static constexpr Phase phase[] = {{0, 3, 0b100, 0b1111, 0, 0b1111}};
  static constexpr int input_slot[] = {0, 1, 2}, recurrent_slot[] = {0, 1, 3};
  explicit GruGeneral(const CellConstants& constants) : GruActivations<T>(constants) {}
  using GruActivations<T>::gate, GruActivations<T>::candidate;

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    const V r = gate.value(u.a[0]), z = gate.value(u.a[1]), q = u.a[2];
    u.saved[0] = u.a[0], u.saved[1] = u.a[1], u.saved[3] = q;
    u.saved[2] = fma(r, q, u.saved[2]);
    u.h = fma(z, u.h_before, (T(1) - z) * candidate.value(u.saved[2]));
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V r = gate.value(u.saved[0]), z = gate.value(u.saved[1]);
    const V n = candidate.value(u.saved[2]), q = u.saved[3];
    u.da[2] = clip(u.dh * (T(1) - z) * candidate.slope(u.saved[2]));
    u.da[3] = u.da[2] * r;
    u.da[0] = clip(u.da[2] * q * gate.slope(u.saved[0]));
    u.da[1] = clip(u.dh * (u.h_before - n) * gate.slope(u.saved[1]));
    u.direct = u.dh * z;
  }
};

// Two phases as in GruResetBefore (gru.h). Saved: r, the arguments of z and n, and that of r.
template <class T>
struct GruResetBeforeGeneral : CellOf<Kind::gru_reset_before_general>, GruActivations<T> {
  static constexpr int slots = 3, phases = 2;
  static constexpr bool reads_h_before = true, reads_h = false;
  static constexpr Phase phase[] = {{0, 2, 0, 0b1011, 0b0010, 0b001},
                                    {2, 1, 0b0010, 0b0100, 0, 0b110}};
  static constexpr int input_slot[] = {0, 1, 2}, recurrent_slot[] = {0, 1, 2};
  explicit GruResetBeforeGeneral(const CellConstants& constants) : GruActivations<T>(constants) {}
  using GruActivations<T>::gate, GruActivations<T>::candidate;

  template <int phase_index, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    if constexpr (phase_index == 0) {
      u.saved[0] = gate.value(u.a[0]);
      u.saved[1] = u.a[1];
      u.saved[3] = u.a[0];
      u.operand = u.saved[0] * u.h_before;
    } else {
      const V z = gate.value(u.saved[1]);
      u.h = fma(z, u.h_before, (T(1) - z) * candidate.value(u.a[2]));
      u.saved[2] = u.a[2];
    }
  }

  template <int phase_index, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    if constexpr (phase_index == 1) {
      const V z = gate.value(u.saved[1]), n = candidate.value(u.saved[2]);
      u.da[2] = clip(u.dh * (T(1) - z) * candidate.slope(u.saved[2]));
      u.da[1] = clip(u.dh * (u.h_before - n) * gate.slope(u.saved[1]));
      u.direct = u.dh * z;
    } else {
      const V d_operand = u.dh;  // dL/d(r h')
      u.da[0] = clip(d_operand * u.h_before * gate.slope(u.saved[3]));
      u.direct = fma(d_operand, u.saved[0], u.direct);
    }
  }

  // The operand of phase 1's recurrent product, made again from what was saved.
  RNNKERN_INLINE Vec<T> operand(Vec<T> r, Vec<T> h_before) { return r * h_before; }
};

}  // namespace rnnkern::RNNKERN_ISA

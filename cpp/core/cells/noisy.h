// Cells with zoneout (Krueger et al. 2016, arXiv 1606.01305) and recurrent dropout (Semeniuta,
// Severyn & Barth 2016, arXiv 1603.05118).
//
// Zoneout: a unit's state keeps its value with probability p. With h^ as the cell's new h and m its
// noise, 1 or 0,
//
//   h = m h^ + (1 - m) h'
//
// and the same for c, whose h^ = o tanh(c^) sees c^ before its zoneout. With the mean m = 1 - p
// this is the evaluation's p h' + (1 - p) h^. Recurrent dropout multiplies the candidate by its
// noise s:
//
//   LSTM: c^ = f c' + i (s g)      GRU: h^ = (1 - z) (s n) + z h'
#pragma once

#include "contract.h"
#include "rnn.h"

namespace rnnkern::RNNKERN_ISA {

// A state after its zoneout: exactly one of the two where m is 1 or 0 and both are finite.
template <class T, class V>
RNNKERN_INLINE V zoned_out(V m, V now, V before) {
  return fma(m, now, (T(1) - m) * before);
}

// Saved: h^.
template <class T, Kind kind, template <class> class Act>
struct RnnNoisy : CellOf<kind> {
  static constexpr int slots = 1, phases = 1;
  static constexpr bool reads_h_before = true, reads_h = false;
  static constexpr unsigned noise = 1u << zoneout_h;
  static constexpr Phase phase[] = {{0, 1, 0, 0b1, 0, 0b1}};
  static constexpr int input_slot[] = {0}, recurrent_slot[] = {0};
  explicit RnnNoisy(const CellConstants&) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    u.saved[0] = Act<T>::value(u.a[0]);
    u.h = zoned_out<T>(u.noise[zoneout_h], u.saved[0], u.h_before);
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V m = u.noise[zoneout_h];
    u.da[0] = clip(u.dh * m * Act<T>::slope(u.saved[0]));
    u.direct = u.dh * (T(1) - m);
  }
};

template <class T>
struct LstmNoisy : CellOf<Kind::lstm_noisy> {
  static constexpr int slots = 4, phases = 1;
  static constexpr bool reads_h_before = true, reads_h = false;
  static constexpr unsigned noise = 1u << zoneout_h | 1u << zoneout_c | 1u << recurrent_dropout;
  static constexpr Phase phase[] = {{0, 4, 0, 0b1111, 0, 0b1111}};
  static constexpr int input_slot[] = {0, 1, 2, 3}, recurrent_slot[] = {0, 1, 2, 3};
  explicit LstmNoisy(const CellConstants&) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    const V i = sigmoid<T>(u.a[0]);
    const V f = sigmoid<T>(u.a[1]);
    const V g = hyperbolic_tangent<T>(u.a[2]);
    const V o = sigmoid<T>(u.a[3]);
    const V c = fma(f, u.c_before[0], i * (g * u.noise[recurrent_dropout]));
    u.h = zoned_out<T>(u.noise[zoneout_h], o * hyperbolic_tangent<T>(c), u.h_before);
    u.c[0] = zoned_out<T>(u.noise[zoneout_c], c, u.c_before[0]);
    u.saved[0] = i, u.saved[1] = f, u.saved[2] = g, u.saved[3] = o;
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V i = u.saved[0], f = u.saved[1], g = u.saved[2], o = u.saved[3];
    const V s = u.noise[recurrent_dropout], m_h = u.noise[zoneout_h], m_c = u.noise[zoneout_c];
    const V tanh_c = hyperbolic_tangent<T>(fma(f, u.c_before[0], i * (g * s)));
    const V dh = u.dh * m_h;
    const V dc = fma(dh * o, T(1) - tanh_c * tanh_c, u.dc[0] * m_c);
    u.da[0] = clip(dc * (g * s) * (i * (T(1) - i)));
    u.da[1] = clip(dc * u.c_before[0] * (f * (T(1) - f)));
    u.da[2] = clip(dc * i * s * (T(1) - g * g));
    u.da[3] = clip(dh * tanh_c * (o * (T(1) - o)));
    u.dc[0] = fma(dc, f, u.dc[0] * (T(1) - m_c));
    u.direct = u.dh * (T(1) - m_h);
  }
};

// Slots and what is saved as in Gru (gru.h).
template <class T>
struct GruNoisy : CellOf<Kind::gru_noisy> {
  static constexpr int slots = 4, phases = 1;
  static constexpr bool reads_h_before = true, reads_h = false;
  static constexpr unsigned noise = 1u << zoneout_h | 1u << recurrent_dropout;
  static constexpr Phase phase[] = {{0, 3, 0b100, 0b1111, 0, 0b1111}};
  static constexpr int input_slot[] = {0, 1, 2}, recurrent_slot[] = {0, 1, 3};
  explicit GruNoisy(const CellConstants&) {}

  template <int, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    const V r = sigmoid<T>(u.a[0]);
    const V z = sigmoid<T>(u.a[1]);
    const V q = u.a[2];
    const V n = hyperbolic_tangent<T>(fma(r, q, u.saved[2]));
    const V h = fma(z, u.h_before, (T(1) - z) * (n * u.noise[recurrent_dropout]));
    u.h = zoned_out<T>(u.noise[zoneout_h], h, u.h_before);
    u.saved[0] = r, u.saved[1] = z, u.saved[2] = n, u.saved[3] = q;
  }

  template <int, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V r = u.saved[0], z = u.saved[1], n = u.saved[2], q = u.saved[3];
    const V s = u.noise[recurrent_dropout], m = u.noise[zoneout_h], dh = u.dh * m;
    u.da[2] = clip(dh * (T(1) - z) * s * (T(1) - n * n));
    u.da[3] = u.da[2] * r;
    u.da[0] = clip(u.da[2] * q * (r * (T(1) - r)));
    u.da[1] = clip(dh * (u.h_before - n * s) * (z * (T(1) - z)));
    u.direct = fma(dh, z, u.dh * (T(1) - m));
  }
};

// Two phases as in GruResetBefore (gru.h), of which the last one reads the noise.
template <class T>
struct GruResetBeforeNoisy : CellOf<Kind::gru_reset_before_noisy> {
  static constexpr int slots = 3, phases = 2;
  static constexpr bool reads_h_before = true, reads_h = false;
  static constexpr unsigned noise = 1u << zoneout_h | 1u << recurrent_dropout;
  static constexpr Phase phase[] = {{0, 2, 0, 0b011, 0b010, 0b001}, {2, 1, 0b010, 0b100, 0, 0b110}};
  static constexpr int input_slot[] = {0, 1, 2}, recurrent_slot[] = {0, 1, 2};
  explicit GruResetBeforeNoisy(const CellConstants&) {}

  template <int phase_index, class V>
  RNNKERN_MEMBER void forward(ForwardUnit<V>& u) const {
    if constexpr (phase_index == 0) {
      u.saved[0] = sigmoid<T>(u.a[0]);
      u.saved[1] = sigmoid<T>(u.a[1]);
      u.operand = u.saved[0] * u.h_before;
    } else {
      const V z = u.saved[1];
      const V n = hyperbolic_tangent<T>(u.a[2]);
      const V h = fma(z, u.h_before, (T(1) - z) * (n * u.noise[recurrent_dropout]));
      u.h = zoned_out<T>(u.noise[zoneout_h], h, u.h_before);
      u.saved[2] = n;
    }
  }

  template <int phase_index, class V>
  RNNKERN_MEMBER void backward(BackwardUnit<V>& u, const StepClip<Vec<T>>& clip) const {
    const V r = u.saved[0], z = u.saved[1], n = u.saved[2];
    if constexpr (phase_index == 1) {
      const V s = u.noise[recurrent_dropout], m = u.noise[zoneout_h], dh = u.dh * m;
      u.da[2] = clip(dh * (T(1) - z) * s * (T(1) - n * n));
      u.da[1] = clip(dh * (u.h_before - n * s) * (z * (T(1) - z)));
      u.direct = fma(dh, z, u.dh * (T(1) - m));
    } else {
      const V d_operand = u.dh;  // dL/d(r h')
      u.da[0] = clip(d_operand * u.h_before * (r * (T(1) - r)));
      u.direct = fma(d_operand, r, u.direct);
    }
  }

  // The operand of phase 1's recurrent product, made again from what was saved.
  RNNKERN_INLINE Vec<T> operand(Vec<T> r, Vec<T> h_before) { return r * h_before; }
};

template <class T>
using RnnTanhNoisy = RnnNoisy<T, Kind::rnn_tanh_noisy, Tanh>;
template <class T>
using RnnReluNoisy = RnnNoisy<T, Kind::rnn_relu_noisy, Relu>;

}  // namespace rnnkern::RNNKERN_ISA

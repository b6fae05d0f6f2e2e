// What layer norm sums over whole rows: the moments of products and of c, and in backward what
// their gradients need. Compiled once for all cells.
#pragma once

#include "product/panels.h"
#include "recurrence/pointwise.h"
#include "simd/row_sums.h"

namespace rnnkern::RNNKERN_ISA {

inline constexpr double kNormEpsilon = 1e-5;  // beside the variance, as in haste and PyTorch

// What a cell reads besides its products, [.., padded H]: unit vectors; or, with layer norm, the
// gains of both products, the biases of the input's and of the recurrent one (as in
// ForwardWeights), and gain and bias of c.
inline Index packed_vectors(const CellLayout& cell) {
  return cell.normalizes ? 4 * cell.gates + cell.vectors : cell.prepared;
}
template <class T>
void pack_vectors(const CellLayout& cell, const T* const* parameters, Index H, T* out) {
  const auto pack = [&](const T* b, const T* b_too, int count) {
    pack_bias(b, b_too, count, H, out);
    out += count * padded<T>(H);
  };
  if (!cell.normalizes) return pack(parameters[unit_vectors], nullptr, cell.vectors);
  const T *const b_ih = parameters[input_bias], *const b_hh = parameters[recurrent_bias];
  pack(parameters[input_gain], nullptr, cell.gates);
  pack(parameters[recurrent_gain], nullptr, cell.gates);
  for (int g = 0; g < cell.gates; ++g)
    pack(b_ih ? b_ih + g * H : nullptr, b_hh && !cell.stands_alone(g) ? b_hh + g * H : nullptr, 1);
  pack(b_hh, nullptr, cell.gates);
  if (!cell.normalizes_state) return;
  pack(parameters[state_gain], nullptr, 1);
  pack(parameters[state_bias], nullptr, 1);
}

// One product of a row, or one side of layer norm's backward.
template <class T>
struct NormSide {
  int gates;
  const int* own_slot;  // [G] of da
  Index place;          // of the product among the slots of a row, and of its gradient
  Index H, Hp;
  const T* gain;     // [G, padded H]
  const T* own_da;   // the row's
  const T* product;  // the row's, from its first gate on
  const T* moments;  // mean, 1 / std
  T* sums;

  const T* da(int g) const { return own_da + own_slot[g] * Hp; }

  // Minus the means of gain da, and of gain da n, over all G*H values; n is the product normalized.
  void sum() const {
    using V = Vec<double>;
    const double n = static_cast<double>(gates * H), mean = static_cast<double>(moments[0]);
    double totals[2];
    row_sums<T>(gates, H, totals,
                [&](V(&s)[2], int g, Index j, Index left) __attribute__((always_inline)) {
                  const V d = doubles(da(g) + j, left) * doubles(gain + g * Hp + j, left);
                  s[0] += d;
                  s[1] = fma(d, centered(product + g * Hp + j, mean, left), s[1]);
                });
    sums[0] = static_cast<T>(-totals[0] / n);
    sums[1] = static_cast<T>(-totals[1] * static_cast<double>(moments[1]) / n);
  }

  // The gradient of the product, of some units.
  void gradient(T* dz, Range blocks) const {
    const Vec<T> mean = splat(moments[0]), rstd = splat(moments[1]);
    const Vec<T> along_gain = splat(sums[0]), along_n = splat(sums[1]);
    for (int g = 0; g < gates; ++g)
      for (Index j = blocks.first * kLanes<T>; j < blocks.last * kLanes<T>; j += kLanes<T>) {
        const Vec<T> n = (load(product + g * Hp + j) - mean) * rstd;
        const Vec<T> d = fma(load(da(g) + j), load(gain + g * Hp + j), along_gain);
        store(dz + g * Hp + j, rstd * fma(n, along_n, d));
      }
  }

  // Adds what this row adds to the gradients of a gate's gain and bias; null: there is no bias.
  void add_gradients(int g, T* d_gain, T* d_bias) const {
    const Vec<T> mean = splat(moments[0]), rstd = splat(moments[1]);
    const auto add = [&](Index j, Index left) __attribute__((always_inline)) {
      const Vec<T> d = load_n(da(g) + j, left);
      const Vec<T> n = (load_n(product + g * Hp + j, left) - mean) * rstd;
      store_n(d_gain + j, fma(d, n, load_n(d_gain + j, left)), left);
      if (d_bias) store_n(d_bias + j, load_n(d_bias + j, left) + d, left);
    };
    Index j = 0;
    for (; j + kLanes<T> <= H; j += kLanes<T>) add(j, kLanes<T>);
    if (j < H) add(j, H - j);
  }
};

// The sums for c's gradient: of gain d and gain d n, which part 1 has left in d_vectors.
template <class T>
void sum_state(const T* d_vectors, const T* gain, Index H, Index Hp, T* sums) {
  using V = Vec<double>;
  double totals[2];
  row_sums<T>(1, H, totals, [&](V(&s)[2], int, Index j, Index left) __attribute__((always_inline)) {
    const V of = doubles(gain + j, left);
    s[0] = fma(doubles(d_vectors + Hp + j, left), of, s[0]);
    s[1] = fma(doubles(d_vectors + j, left), of, s[1]);
  });
  sums[0] = static_cast<T>(-totals[0] / static_cast<double>(H));
  sums[1] = static_cast<T>(-totals[1] / static_cast<double>(H));
}

// Takes n rows through stages [first, last]: even ones sum up whole rows, which a team shares; odd
// ones do each thread's own units, of all rows. A thread that works alone goes row by row, which
// stays in cache. False: leave.
template <class Stage>
bool normalize_rows(const Team& team, Index n, int first, int last, Index work,
                    const Stage& stage) {
  if (team.size == 1) {
    for (Index i = 0; i < n && team.worked(work); ++i)
      for (int k = first; k <= last; ++k) stage(k, i);
    return true;
  }
  for (int k = first; k <= last; ++k) {
    const bool sums = k % 2 == 0;
    if ((sums || k > first) && !team.wait()) return false;
    const Range rows = sums ? team.share_of(n) : Range{0, n};
    for (Index i = rows.first; i < rows.last && team.worked(work); ++i) stage(k, i);
  }
  return true;
}

}  // namespace rnnkern::RNNKERN_ISA

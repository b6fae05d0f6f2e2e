// The maths of a cell with layer norm on the values of a time step, as cell_functions.h has it of
// other cells: compiled for each such cell.
#pragma once

#include "recurrence/pointwise.h"

namespace rnnkern::RNNKERN_ISA {

template <class Cell, class T>
struct NormMaths {
  static constexpr int G = Cell::gates;
  static_assert(Cell::noise == 0);

  template <class U>
  RNNKERN_INLINE U all(T x) {
    if constexpr (kIsPair<U>)
      return {splat(x), splat(x)};
    else
      return splat(x);
  }
  // Vectors of units side by side, from `from` on.
  template <class P>
  RNNKERN_INLINE auto at(P* from) {
    return [from](int i) { return from + i * kLanes<T>; };
  }

  // The gates' arguments of some units, which z and vectors point to.
  template <class U>
  RNNKERN_INLINE void arguments(const T* z, const T* vectors, const T* moments, Index Hp,
                                U (&a)[kMostGates], U (&x)[kMostGates]) {
    const U mean_x = all<U>(moments[kInputMoments]), rstd_x = all<U>(moments[kInputMoments + 1]);
    const U mean_h = all<U>(moments[kRecurrentMoments]),
            rstd_h = all<U>(moments[kRecurrentMoments + 1]);
    const auto vector = [&](int k) __attribute__((always_inline)) {
      return load_each<T, U>(at(vectors + k * Hp));
    };
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const U n_x = (load_each<T, U>(at(z + g * Hp)) - mean_x) * rstd_x;
      const U n_h = (load_each<T, U>(at(z + (G + g) * Hp)) - mean_h) * rstd_h;
      const U gain_x = vector(g), gain_h = vector(G + g), bias = vector(2 * G + g);
      if (Cell::input_slot[g] == Cell::recurrent_slot[g]) {
        a[g] = fma(n_x, gain_x, fma(n_h, gain_h, bias));
      } else {
        x[g] = fma(n_x, gain_x, bias);
        a[g] = fma(n_h, gain_h, vector(3 * G + g));
      }
    }
  }
  template <class U>
  RNNKERN_INLINE StateNorm<U> norm_of(const T* vectors, const T* moments, const T* sums, Index Hp) {
    StateNorm<U> norm;
    norm.mean = all<U>(moments[kStateMoments]), norm.rstd = all<U>(moments[kStateMoments + 1]);
    norm.gain = load_each<T, U>(at(vectors + 4 * G * Hp));
    norm.bias = load_each<T, U>(at(vectors + (4 * G + 1) * Hp));
    if (sums) norm.along_gain = all<U>(sums[kStateMoments]);
    if (sums) norm.along_n = all<U>(sums[kStateMoments + 1]);
    return norm;
  }

  // ---- forward -------------------------------------------------------------------------------

  template <int part>
  static void forward(const ForwardStep<T>& step, Index row, Range blocks) {
    const ForwardStep<T> s = step;  // in locals: the cell's stores might change what is elsewhere
    const Cell cell(*s.constants);
    Index block = blocks.first;
    for (; block + 1 < blocks.last; block += 2) units<part, 2>(cell, s, row, block);
    if (block < blocks.last) units<part, 1>(cell, s, row, block);
  }

  // N vectors of units of a row.
  template <int part, int N>
  RNNKERN_INLINE void units(const Cell& cell, const ForwardStep<T>& s, Index row, Index block) {
    using U = Units<T, N>;
    constexpr bool last = part + 1 == Cell::parts;
    const Index j = block * kLanes<T>, here = row * s.Hp + j;
    const T* const moments = s.moments + row * kMoments;
    T* const output = (Cell::projects ? s.operand : s.h) + here;  // part 0's `kept` until part 1
    NormForward<U> u;
    if constexpr (part == 0) {
      arguments(s.z[row] + j, s.vectors + j, moments, s.Hp, u.a, u.x);
      if constexpr (Cell::reads_h_before) u.h_before = load_each<T, U>(at(s.h_before + here));
      if constexpr (Cell::carried > 0) u.c_before = load_each<T, U>(at(s.c + here));
    } else {
      u.norm = norm_of<U>(s.vectors + j, moments, nullptr, s.Hp);
      u.c = load_each<T, U>(at(s.c + here));
      u.kept = load_each<T, U>(at(output));
    }
    cell.template forward<part>(u);
    if constexpr (Cell::carried > 0) store_each<T>(at(s.c + here), u.c);
    if constexpr (!last) {
      store_each<T>(at(output), u.kept);
    } else {
      store_each<T>(at(output), u.output);
      if constexpr (!Cell::projects) {
        T* const y = s.y + (s.order ? s.order[row] : row) * s.y_row + j;
        store_each<T>(at(y), u.output, [&](int i) { return s.H - j - i * kLanes<T>; });
      }
      if constexpr (Cell::carried > 0)
        if (s.carried) store_each<T>(at(s.carried + here), u.c);
    }
  }

  // ---- backward ------------------------------------------------------------------------------

  template <int part>
  static void backward(const BackwardRow<T>& from, const BackwardStep<T>& step) {
    const BackwardRow<T> row = from;
    const BackwardStep<T> s = step;
    const Cell cell(*s.constants);
    const Vec<T> bound = splat(s.step_value);
    const StepClip<Vec<T>> limits{-bound, bound};
    Index block = s.blocks.first;
    for (; block + 1 < s.blocks.last; block += 2) {
      fetch<part>(row, s, block);
      fetch<part>(row, s, block + 1);
      units<part, 2>(cell, row, s, block, limits);
    }
    if (block < s.blocks.last) {
      fetch<part>(row, s, block);
      units<part, 1>(cell, row, s, block, limits);
    }
  }

  // As CellMaths::fetch, in the part that comes first.
  template <int part>
  RNNKERN_INLINE void fetch(const BackwardRow<T>& row, const BackwardStep<T>& s, Index block) {
    if (part + 1 < Cell::parts) return;
    const Index j = block * kLanes<T>, Hp = padded<T>(s.H);
    for (int k = 0; k < Cell::saved; ++k)
      __builtin_prefetch(row.saved + (s.ahead * Cell::saved + k) * Hp + j);
    if (Cell::carried > 0) __builtin_prefetch(row.c_before[0] + s.ahead * Hp + j);
    if (row.dy) __builtin_prefetch(row.dy + s.ahead * s.dy_row + j);
  }

  template <int part, int N>
  RNNKERN_INLINE void units(const Cell& cell, const BackwardRow<T>& row, const BackwardStep<T>& s,
                            Index block, const StepClip<Vec<T>>& limits) {
    using U = Units<T, N>;
    constexpr bool last = part + 1 == Cell::parts;
    const Index j = block * kLanes<T>, Hp = padded<T>(s.H);
    const auto left = [&](int i) { return s.H - j - i * kLanes<T>; };
    NormBackward<U> u;
    if constexpr (Cell::reads_h_before) u.h_before = load_each<T, U>(at(row.h_before + j), left);
    if constexpr (Cell::carried > 0) {
      u.c_before = load_each<T, U>(at(row.c_before[0] + j), left);
      u.dc = load_each<T, U>(at(row.dc[0] + j));
    }
    if constexpr (Cell::normalizes_state)
      u.norm = norm_of<U>(s.vectors + j, row.moments, row.sums, Hp);
    if constexpr (last) {
      arguments(row.saved + j, s.vectors + j, row.moments, Hp, u.a, u.x);
      if constexpr (Cell::projects) {
        u.dh = load_each<T, U>(at(row.d_operand + j));
      } else {
        U from_y{};
        if (row.dy) from_y = load_each<T, U>(at(row.dy + j), left);
        u.dh = fma(load_each<T, U>(at(row.dh + j)), all<U>(*row.scale), from_y);
        if (row.dh_full) store_each<T>(at(row.dh_full + j), u.dh);
      }
    } else {
      for (int k = 0; k < Cell::kept; ++k) u.kept[k] = load_each<T, U>(at(row.own_da + k * Hp + j));
      u.d_normed = load_each<T, U>(at(row.d_vectors + Hp + j));
    }
    cell.template backward<part>(u, limits);
    for (int slot = 0; slot < Cell::slots; ++slot)
      if (Cell::part_slots[part] >> slot & 1u)
        store_each<T>(at(row.own_da + slot * Hp + j), u.da[slot]);
    if constexpr (part == 1) {  // in the places of what part 0 writes later
      for (int k = 0; k < Cell::kept; ++k) store_each<T>(at(row.own_da + k * Hp + j), u.kept[k]);
      store_each<T>(at(row.d_vectors + j), u.d_normed_n);
      store_each<T>(at(row.d_vectors + Hp + j), u.d_normed);
    }
    if constexpr (last && Cell::projects) store_each<T>(at(row.projected + j), u.output);
    if constexpr (part == 0) {
      if constexpr (!Cell::projects) store_each<T>(at(row.dh + j), u.direct);
      if constexpr (Cell::carried > 0) store_each<T>(at(row.dc[0] + j), u.dc);
    }
  }
};

template <class Cell, class T>
constexpr CellFunctions<T> norm_functions() {
  using Maths = NormMaths<Cell, T>;
  CellFunctions<T> f{layout_of<Cell>(), {}, nullptr, nullptr};
  f.part[0] = {Maths::template forward<0>, Maths::template backward<0>};
  if constexpr (Cell::parts > 1)
    f.part[1] = {Maths::template forward<1>, Maths::template backward<1>};
  return f;
}

}  // namespace rnnkern::RNNKERN_ISA

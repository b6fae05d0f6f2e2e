// A cell's maths on the values of a time step: what is compiled for each cell (pointwise.h has the
// table through which the time loops call it).
#pragma once

#include "recurrence/norm_functions.h"

namespace rnnkern::RNNKERN_ISA {

template <class Cell, class T>
struct CellMaths {
  using V = Vec<T>;

  // ---- forward -------------------------------------------------------------------------------

  template <int phase_index>
  static void forward(const ForwardStep<T>& step, Index n, Index block, int count) {
    const ForwardStep<T> s = step;  // in locals: the cell's stores might change what is elsewhere
    const Cell cell(*s.constants);
    Index i = 0;
    if (count == 1)
      for (; i + 1 < n; i += 2) stored<phase_index, 2>(cell, s, {i, i + 1}, {block, block});
    for (; i < n; ++i) {
      int p = 0;
      for (; p + 1 < count; p += 2)
        stored<phase_index, 2>(cell, s, {i, i}, {block + p, block + p + 1});
      if (p < count) stored<phase_index, 1>(cell, s, {i}, {block + p});
    }
  }
  template <int phase_index, int N>
  RNNKERN_INLINE void stored(const Cell& cell, const ForwardStep<T>& s, const Index (&row)[N],
                             const Index (&block)[N]) {
    units<phase_index, N>(cell, s, row, block, [&](int g) {
      return load_each<T, Units<T, N>>([&](int i) {
        return s.z[row[i]] + Cell::recurrent_slot[g] * s.Hp + block[i] * kLanes<T>;
      });
    });
  }

  template <int phase_index, int NP>
  static void tile(const ForwardStep<T>& s, const TileCall<T>& call, Index block) {
    constexpr int first = Cell::phase[phase_index].first, G = Cell::phase[phase_index].count,
                  NV = kPanel<G>;
    V sum[1][NP][NV];
    multiply(call, Places<T, G, NP>(call), sum);
    const auto argument = [&](int b, int g) {
      return sum[0][b * (G / NV) + (g - first) / NV][(g - first) % NV];
    };
    const Cell cell(*s.constants);
    constexpr int blocks = NP * NV / G;
    if constexpr (blocks == 1)
      units<phase_index, 1>(cell, s, {0}, {block}, [&](int g) { return argument(0, g); });
    else
#pragma GCC unroll 4
      for (int b = 0; b < blocks; b += 2)
        units<phase_index, 2>(cell, s, {0, 0}, {block + b, block + b + 1}, [&](int g) {
          return Units<T, 2>{argument(b, g), argument(b + 1, g)};
        });
  }

  // N vectors of units, each of one row (of this part) at a step. argument(g): of gate g.
  template <int phase_index, int N, class Argument>
  RNNKERN_INLINE void units(const Cell& cell, const ForwardStep<T>& s, const Index (&row)[N],
                            const Index (&block)[N], const Argument& argument) {
    using U = Units<T, N>;
    constexpr Phase ph = Cell::phase[phase_index];
    T* z[N];
    Index at_h[N];  // in an array of [B, padded H]
    for (int i = 0; i < N; ++i) {
      z[i] = s.z[row[i]] + block[i] * kLanes<T>;
      at_h[i] = row[i] * s.Hp + block[i] * kLanes<T>;
    }
    const auto slot = [&](int k) { return [&z, k, &s](int i) { return z[i] + k * s.Hp; }; };
    const auto of = [&](auto* rows) { return [&at_h, rows](int i) { return rows + at_h[i]; }; };
    ForwardUnit<U> u;
#pragma GCC unroll 4
    for (int g = ph.first; g < ph.first + ph.count; ++g) u.a[g] = argument(g);
    for (int k = 0; k < Cell::saved; ++k)
      if (ph.reads >> k & 1u) u.saved[k] = load_each<T, U>(slot(k));
    if constexpr (Cell::reads_h_before) u.h_before = load_each<T, U>(of(s.h_before));
    for (int v = 0; v < Cell::prepared; ++v)
      u.vectors[v] =
          load_each<T, U>([&](int i) { return s.vectors + v * s.Hp + block[i] * kLanes<T>; });
    for (int k = 0; k < kNoises; ++k)
      if (Cell::noise >> k & 1u)
        u.noise[k] = s.noise[k] ? load_each<T, U>(of(s.noise[k]))
                                : splat_each<T, U>([&](int) { return s.mean[k]; });
    for (int k = 0; k < Cell::carried; ++k) u.c_before[k] = load_each<T, U>(of(s.c + k * s.state));
    const auto left = [&](int i) { return s.H - block[i] * kLanes<T>; };
    if constexpr (Cell::reads_x)
      u.x = load_each<T, U>(
          [&](int i) {
            return s.x + (s.order ? s.order[row[i]] : row[i]) * s.x_row + block[i] * kLanes<T>;
          },
          left);
    if constexpr (Cell::reads_kept)
      u.kept = splat_each<T, U>([&](int i) { return s.kept ? s.kept[row[i]] : T(1); });
    cell.template forward<phase_index>(u);
    for (int k = 0; k < Cell::saved; ++k)
      if (ph.keeps >> k & 1u || (s.keeps && ph.writes >> k & 1u))
        store_each<T>(slot(k), u.saved[k]);
    constexpr bool last = phase_index + 1 == Cell::phases;
    if constexpr (!last || Cell::projects) {
      store_each<T>(of(s.operand), u.operand);
    } else {
      store_each<T>(of(s.h), u.h);
      const auto out = [&](int i) {
        return s.y + (s.order ? s.order[row[i]] : row[i]) * s.y_row + block[i] * kLanes<T>;
      };
      store_each<T>(out, u.h, left);
    }
    for (int k = 0; last && k < Cell::carried; ++k) {
      store_each<T>(of(s.c + k * s.state), u.c[k]);
      if (!s.carried) continue;
      const auto kept = [&](int i) {
        return s.carried + (row[i] * Cell::carried + k) * s.Hp + block[i] * kLanes<T>;
      };
      store_each<T>(kept, u.c[k]);
    }
  }

  // ---- backward ------------------------------------------------------------------------------

  template <int phase_index>
  static void backward(const BackwardRow<T>& first, const BackwardRow<T>& second, Index n,
                       const BackwardStep<T>& step) {
    BackwardRow<T> row = first;
    const BackwardRow<T> from = first, to = second;
    const BackwardStep<T> s = step;
    const Cell cell(*s.constants);
    const V bound = splat(s.step_value);
    const StepClip<V> limits{-bound, bound};
    for (; n > 0; --n, advance(row, from, to)) {
      Index block = s.blocks.first;
      for (; block + 1 < s.blocks.last; block += 2) {
        fetch(row, s, block);
        fetch(row, s, block + 1);
        units<phase_index, 2>(cell, row, s, block, limits);
      }
      if (block < s.blocks.last) {
        fetch(row, s, block);
        units<phase_index, 1>(cell, row, s, block, limits);
      }
    }
  }

  // The next row: what the cell does not read, the compiler leaves out.
  RNNKERN_INLINE void advance(BackwardRow<T>& row, const BackwardRow<T>& from,
                              const BackwardRow<T>& to) {
    const auto move = [](auto*& p, auto* a, auto* b) { p += b - a; };
    move(row.saved, from.saved, to.saved), move(row.h_before, from.h_before, to.h_before);
    move(row.h, from.h, to.h), move(row.dy, from.dy, to.dy), move(row.x, from.x, to.x);
    move(row.d_operand, from.d_operand, to.d_operand);
    for (int k = 0; k < kNoises; ++k) move(row.noise[k], from.noise[k], to.noise[k]);
    for (int k = 0; k < Cell::carried; ++k) {
      move(row.c_before[k], from.c_before[k], to.c_before[k]);
      move(row.c[k], from.c[k], to.c[k]), move(row.dc[k], from.dc[k], to.dc[k]);
    }
    move(row.dh, from.dh, to.dh), move(row.dh_full, from.dh_full, to.dh_full);
    move(row.da, from.da, to.da), move(row.projected, from.projected, to.projected);
    move(row.dx, from.dx, to.dx), move(row.scale, from.scale, to.scale);
  }

  // Asks memory for a vector of the row that comes `ahead` rows later: what forward has kept is out
  // of the caches. Behind the last row this asks for what is not needed, and does no harm.
  RNNKERN_INLINE void fetch(const BackwardRow<T>& row, const BackwardStep<T>& s, Index block) {
    const Index j = block * kLanes<T>, Hp = padded<T>(s.H);
    for (int k = 0; k < Cell::saved; ++k)
      __builtin_prefetch(row.saved + (s.ahead * Cell::saved + k) * Hp + j);
    for (int k = 0; k < Cell::carried; ++k)
      if (Cell::flows >> k & 1u)
        __builtin_prefetch(row.c_before[k] + s.ahead * Cell::carried * Hp + j);
    if (row.dy) __builtin_prefetch(row.dy + s.ahead * s.dy_row + j);
  }

  // N vectors of units of a row.
  template <int phase_index, int N>
  RNNKERN_INLINE void units(const Cell& cell, const BackwardRow<T>& row,
                            const BackwardStep<T>& step, Index block, const StepClip<V>& limits) {
    using U = Units<T, N>;
    constexpr Phase ph = Cell::phase[phase_index];
    // Whether the cell's derivative is that of its own outputs, dL/dh completed by dL/dy.
    constexpr bool completes_dh = phase_index + 1 == Cell::phases && !Cell::projects;
    const Index H = step.H, Hp = padded<T>(H), j = block * kLanes<T>;
    const auto at = [j](auto* from) {
      return [from, j](int i) { return from + j + i * kLanes<T>; };
    };
    const auto left = [H, j](int i) { return H - j - i * kLanes<T>; };
    BackwardUnit<U> u;
    for (int s = 0; s < Cell::saved; ++s) u.saved[s] = load_each<T, U>(at(row.saved + s * Hp));
    if constexpr (Cell::reads_h_before) u.h_before = load_each<T, U>(at(row.h_before), left);
    if constexpr (Cell::reads_h) u.h = load_each<T, U>(at(row.h), left);
    for (int v = 0; v < Cell::prepared; ++v)
      u.vectors[v] = load_each<T, U>(at(step.vectors + v * Hp));
    for (int k = 0; k < kNoises; ++k)
      if (Cell::noise >> k & 1u)
        u.noise[k] = row.noise[k] ? load_each<T, U>(at(row.noise[k]))
                                  : splat_each<T, U>([&](int) { return step.mean[k]; });
    if constexpr (Cell::reads_x) u.x = load_each<T, U>(at(row.x), left);
    for (int k = 0; k < Cell::carried; ++k) {
      u.c[k] = load_each<T, U>(at(row.c[k]));
      u.c_before[k] = load_each<T, U>(at(row.c_before[k]), left);
      if (Cell::flows >> k & 1u) u.dc[k] = load_each<T, U>(at(row.dc[k]));
    }
    if constexpr (completes_dh) {
      U from_y{};
      if (row.dy) from_y = load_each<T, U>(at(row.dy), left);
      u.dh = scaled_sum(load_each<T, U>(at(row.dh)), splat(*row.scale), from_y);
      if (row.dh_full) store_each<T>(at(row.dh_full), u.dh);
    } else {
      u.dh = load_each<T, U>(at(row.d_operand));
      if constexpr (!Cell::projects) u.direct = load_each<T, U>(at(row.dh));
    }
    cell.template backward<phase_index>(u, limits);
    for (int s = 0; s < Cell::slots; ++s)
      if (ph.slots >> s & 1u) store_each<T>(at(row.da + s * Hp), u.da[s]);
    for (int v = 0; v < Cell::vectors; ++v)
      store_each<T>(at(row.da + (Cell::slots + v) * Hp), u.d_vectors[v]);
    if constexpr (Cell::reads_x) store_each<T>(at(row.dx), u.dx);
    if constexpr (Cell::projects)
      store_each<T>(at(row.projected), u.operand);
    else
      store_each<T>(at(row.dh), u.direct);
    for (int k = 0; k < Cell::carried; ++k)
      if (Cell::flows >> k & 1u) store_each<T>(at(row.dc[k]), u.dc[k]);
  }
  static V scaled_sum(V dh, V scale, V from_y) { return fma(dh, scale, from_y); }
  static Pair<V> scaled_sum(Pair<V> dh, V scale, Pair<V> from_y) {
    return fma(dh, Pair<V>{scale, scale}, from_y);
  }

  static void operand(const T* saved, const T* h, T* to, Range blocks, Index stride) {
    for (Index b = blocks.first; b < blocks.last; ++b)
      store(to + b * stride, Cell::operand(load(saved + b * kLanes<T>), load(h + b * stride)));
  }

  static void prepare(T* vectors, Index width) {
    for (Index j = 0; j < width; j += kLanes<T>) {
      V v[kMostVectors]{};
      for (int k = 0; k < Cell::vectors; ++k) v[k] = load(vectors + k * width + j);
      Cell::prepare(v);
      for (int k = 0; k < Cell::prepared; ++k) store(vectors + k * width + j, v[k]);
    }
  }
};

// A cell's row of the table.
template <class Cell, class T>
struct CellRow {
  using Maths = CellMaths<Cell, T>;

  template <int phase, int panels>
  static constexpr auto tile() {
    using Tile = void (*)(const ForwardStep<T>&, const TileCall<T>&, Index);
    constexpr int G = Cell::phase[phase].count;
    if constexpr (!Cell::elementwise && panels >= G / kPanel<G> &&
                  panels <= panels_at_once<G>(1, 0))
      return Tile{Maths::template tile<phase, panels>};
    else
      return Tile{nullptr};
  }
  template <int phase>
  static constexpr typename CellFunctions<T>::OfPhase of_phase() {
    return {Maths::template forward<phase>,
            {tile<phase, 1>(), tile<phase, 2>(), tile<phase, 4>(), tile<phase, 8>()},
            Maths::template backward<phase>};
  }
  static constexpr CellFunctions<T> functions() {
    if constexpr (Cell::normalizes) {
      return norm_functions<Cell, T>();
    } else {
      CellFunctions<T> f{layout_of<Cell>(), {of_phase<0>()}, nullptr, nullptr};
      if constexpr (Cell::phases > 1) {
        f.phase[1] = of_phase<1>();
        f.operand = Maths::operand;
      }
      if constexpr (Cell::prepared != Cell::vectors) f.prepare = Maths::prepare;
      return f;
    }
  }
};

}  // namespace rnnkern::RNNKERN_ISA

// Backward through time for one direction of one layer: the only backward time loop there is, and
// the products over its steps.
//
// Steps are taken in chunks. In a chunk, the time loop writes dL/da of every step; then one product
// each adds to dW_ih and dW_hh and gives dx. An element of dW is one chain over steps in backward's
// order and rows in the schedule's, carried on from chunk to chunk, so chunks leave no trace in the
// bits.
#pragma once

#include "cells/unit.h"
#include "gemm.h"
#include "pack.h"
#include "work.h"

namespace rnnkern::RNNKERN_ISA {

// Squares and finiteness of parameter gradients, gathered where they are stored. Per row of a
// matrix, squares are kept by column modulo one cache line, in doubles: a sum in the same order on
// every instruction set and number of threads.
template <class T>
inline constexpr Index kSquareLanes = kLine<T>;

// Adds the squares of one vector of values, which stand from `column` on; zeros behind a row's end.
template <class T>
RNNKERN_INLINE void add_squares(double* lanes, Index column, Vec<T> v) {
  constexpr Index step = kLanes<double>;
  lanes += column % kSquareLanes<T>;
  alignas(RNNKERN_VECTOR_BYTES) T values[kLanes<T>];
  store<T>(values, v);
  for (Index i = 0; i < kLanes<T>; i += step) {
    const Vec<double> d = as_doubles(values + i);
    store<double>(lanes + i, load<double>(lanes + i) + d * d);
  }
}

template <class Cell, class T>
struct BackwardRoom {
  // Of a chunk: enough for the gradients that each chunk brings to the cache and back, and few
  // enough for what they are summed from to stay in cache.
  static constexpr Index rows_at_once = 512;
  Index chunk = 0;      // steps
  Index most_rows = 0;  // of a chunk
  T* recurrent;         // W_hh in columns, phase by phase: [blocks of H, gates * H, lanes]
  T* input;             // W_ih in columns: [blocks of I, G * H, lanes]
  T* dh;                // [B, padded H] dL/dh': what takes no product, then all of it
  T* dc;                // [B, padded H]
  T* d_operand;         // [B, padded H] phase 1's
  T* scale;             // [B] step_norm's factor of dh
  T* whole;             // [B, padded H] dL/dh of the step, for the trace
  T* zeros;             // [padded H]
  T* da;                // [chunk rows, slots, padded H]
  T* da_lines;          // the same by lines: [slots * padded H / line, chunk rows, line]
  T* x;                 // [blocks of I, chunk rows, lanes]
  T* h;                 // [blocks of H, chunk rows, lanes] h' of each row
  T* operand;           // [blocks of H, chunk rows, lanes] phase 1's
  T* flow;              // [chunk rows, padded H] what flow_penalty adds to h' in dW_hh
  double* squares;      // [square_rows, square lanes]
  int* finite;          // 0 once a parameter gradient was not
  // Squares: a row each for [dW_ih, dW_hh, db_ih, db_hh], G * H rows of the first two, G of the
  // others.
  Index square_rows(Index H) const { return 2 * Cell::gates * (H + 1); }

  // most_steps: of a chunk.
  void take(Arena& arena, const Schedule& s, Index I, Index H, bool traced, bool penalized,
            Index most_steps) {
    constexpr Index G = Cell::gates;
    const Index Hp = padded<T>(H), row = Hp * Cell::slots;
    const Index hidden_blocks = blocks_of<T>(H), input_blocks = blocks_of<T>(I);
    chunk = most(1, least(least(s.T, most_steps), rows_at_once / most(1, s.B)));
    most_rows = chunk * s.B;
    recurrent = arena.take<T>(hidden_blocks * kLanes<T> * G * H);
    input = arena.take<T>(input_blocks * kLanes<T> * G * H);
    dh = arena.take<T>(s.B * Hp);
    dc = arena.take<T>(Cell::has_c ? s.B * Hp : 0);
    d_operand = arena.take<T>(Cell::phases > 1 ? s.B * Hp : 0);
    scale = arena.take<T>(s.B);
    whole = arena.take<T>(traced ? s.B * Hp : 0);
    zeros = arena.take<T>(Hp);
    da = arena.take<T>(most_rows * row);
    da_lines = arena.take<T>(most_rows * row);
    x = arena.take<T>(input_blocks * kLanes<T> * most_rows);
    h = arena.take<T>(hidden_blocks * kLanes<T> * most_rows);
    operand = arena.take<T>(Cell::phases > 1 ? hidden_blocks * kLanes<T> * most_rows : 0);
    flow = arena.take<T>(penalized ? most_rows * Hp : 0);
    squares = arena.take<double>(square_rows(H) * kSquareLanes<T>);
    finite = arena.take<int>(1);
  }
  // Gates before the phase's own, in columns of `recurrent`.
  T* columns(int phase, Index H) const {
    return recurrent + blocks_of<T>(H) * kLanes<T> * Cell::phase[phase].first * H;
  }
};

template <class T>
struct BackwardPointers {
  const T** a;  // [max(B, chunk rows, G * H)]
  T** to;       // the same
  void take(Arena& arena, Index n) {
    a = arena.take<const T*>(n);
    to = arena.take<T*>(n);
  }
};

// Where the values of one row at one step lie: as Step in forward.h. Null: there are none, or they
// are not wanted.
template <class T>
struct BackwardRow {
  const T *saved, *h_before, *h, *c_before, *c, *dy, *d_operand;
  T *dc, *dh, *whole, *da;
  T scale;
};

template <class Cell, class T>
struct Backward {
  using V = Vec<T>;
  static constexpr Index G = Cell::gates, slots = Cell::slots;
  const Schedule& rows;
  Index H, I;
  Sequence<const T> x;   // the layer's input, after dropout
  Sequence<const T> y;   // this direction's own columns
  Sequence<const T> dy;  // this direction's own columns; null data for zeros
  Sequence<T> dx;
  bool adds_dx;  // dx already holds something: add to it
  const Direction<T>& d;
  const DirectionGradient<T>& gradient;
  const Clip& clip;
  double flow_penalty;
  bool reverse;
  const BackwardRoom<Cell, T>& room;
  const BackwardPointers<T>& at;    // this thread's
  Index first_step = 0, steps = 0;  // of the chunk at hand

  // ---- what is where -------------------------------------------------------------------------

  bool last_chunk(Index done) const { return done + steps == rows.T; }
  void open_chunk(Index done) {
    steps = least(room.chunk, rows.T - done);
    first_step = reverse ? done : rows.T - done - steps;
  }
  Index step_at(Index i) const { return reverse ? first_step + i : first_step + steps - 1 - i; }
  Index chunk_rows() const {
    return rows_before(rows, first_step + steps) - rows_before(rows, first_step);
  }
  Index chunk_row(Index t, Index r) const {
    return rows_before(rows, t) - rows_before(rows, first_step) + r;
  }
  T* da_row(Index t, Index r) const { return room.da + chunk_row(t, r) * slots * padded<T>(H); }
  // The step before t in forward's order, or -1 where the initial state came before.
  Index step_before(Index t, Index r) const {
    if (!reverse) return t - 1;
    return t + 1 < rows.T && r < alive_at(rows, t + 1) ? t + 1 : -1;
  }
  const T* h_before(Index t, Index r) const {
    const Index before = step_before(t, r), caller = row_of(rows, r);
    if (is_reset(rows, t, r, reverse)) return room.zeros;
    if (before >= 0) return y.data + before * y.step + caller * y.row;
    return d.h0 ? d.h0 + caller * H : room.zeros;
  }
  const T* c_before(Index t, Index r) const {
    const Index before = step_before(t, r);
    if (is_reset(rows, t, r, reverse)) return room.zeros;
    if (before >= 0) return d.cells + (rows_before(rows, before) + r) * padded<T>(H);
    return d.c0 ? d.c0 + row_of(rows, r) * H : room.zeros;
  }

  // ---- before and after time -----------------------------------------------------------------

  void pack(const Team& all) const {
    const Range hidden = all.share_of(blocks_of<T>(H)), inputs = all.share_of(blocks_of<T>(I));
    for (int p = 0; p < Cell::phases; ++p) {
      const Phase ph = Cell::phase[p];
      pack_columns(
          *all.watch, [&](Index k) { return d.w_hh + (ph.first * H + k) * H; }, ph.count * H, H,
          hidden, room.columns(p, H));
    }
    pack_columns(*all.watch, [&](Index k) { return d.w_ih + k * I; }, G * H, I, inputs, room.input);
  }

  void begin(const Part& part, bool goes_on) const {
    const Index from = part.blocks.first * kLanes<T>;
    const Index to = least(H, part.blocks.last * kLanes<T>);
    if (part.rows.first == 0)
      for (Index j = from; j < to; ++j) room.zeros[j] = T(0);
    for (Index r = part.rows.first; r < part.rows.last; ++r) {
      const Index caller = row_of(rows, r) * H;
      if (part.blocks.first == 0) room.scale[r] = goes_on ? gradient.scale[r] : T(1);
      for (Index j = from; j < to; ++j) {
        room.dh[r * padded<T>(H) + j] = gradient.h ? gradient.h[caller + j] : T(0);
        if constexpr (Cell::has_c)
          room.dc[r * padded<T>(H) + j] = gradient.c ? gradient.c[caller + j] : T(0);
      }
    }
  }

  void finish(const Part& part, bool to_be_continued) const {
    const Index from = part.blocks.first * kLanes<T>;
    const Index to = least(H, part.blocks.last * kLanes<T>);
    for (Index r = part.rows.first; r < part.rows.last; ++r) {
      const Index caller = row_of(rows, r) * H;
      if (to_be_continued && part.blocks.first == 0) gradient.scale[r] = room.scale[r];
      for (Index j = from; j < to; ++j) {
        const T dh = room.dh[r * padded<T>(H) + j];
        gradient.h0[caller + j] = to_be_continued ? dh : dh * room.scale[r];
        if constexpr (Cell::has_c) gradient.c0[caller + j] = room.dc[r * padded<T>(H) + j];
      }
    }
  }

  // ---- through time --------------------------------------------------------------------------

  // Whoever is to leave early goes on to where all threads meet.
  void through_time(const Part& part) const {
    for (Index i = 0; i < steps; ++i) {
      const Index t = step_at(i);
      const Index n = most(0, least(alive_at(rows, t), part.rows.last) - part.rows.first);
      if (n == 0) continue;
      if constexpr (Cell::phases > 1) {
        pointwise<1>(part, t, n);
        if (!part.team.wait()) return;
        recurrent<1>(part, t, n, i % 2 == 1);
      }
      pointwise<0>(part, t, n);
      if (!part.team.wait()) return;
      recurrent<0>(part, t, n, i % 2 == 1);
      reset(part, t, n);
      const bool rows_matter = clip.step_norm < __builtin_inf() || gradient.trace.dh;
      if (rows_matter && !whole_rows(part, t, n)) return;
    }
  }

  // Units that memory is asked for before they are needed.
  static constexpr Index units_ahead = 256;

  // The cell's derivative of phase P on the registers, the step clip included.
  template <int P>
  void pointwise(const Part& part, Index t, Index n) const {
    const Index first = part.rows.first, last = first + n;
    const Range blocks = part.blocks;
    const Index H = this->H;
    const V bound = splat(static_cast<T>(clip.step_value));
    const StepClip<V> limits{-bound, bound};
    const Index ahead = ceil_div(units_ahead, H);
    for (Index r = first; r < last; ++r) {
      const BackwardRow<T> row = row_at<P>(t, r);
      Index block = blocks.first;
      for (; block + 1 < blocks.last; block += 2) {
        fetch(row, ahead, block);
        fetch(row, ahead, block + 1);
        units<P, 2>(row, H, block, limits);
      }
      if (block < blocks.last) {
        fetch(row, ahead, block);
        units<P, 1>(row, H, block, limits);
      }
      constexpr Index vector_operations = 32;  // of a cell's derivative, about
      if (!part.team.worked(blocks.size() * vector_operations)) return;
    }
  }

  template <int P>
  BackwardRow<T> row_at(Index t, Index r) const {
    const Index Hp = padded<T>(H), caller = row_of(rows, r), row = rows_before(rows, t) + r;
    BackwardRow<T> at{};
    at.saved = d.saved + row * Cell::saved * Hp;
    if constexpr (Cell::reads_h_before) at.h_before = h_before(t, r);
    if constexpr (Cell::reads_h) at.h = y.data + t * y.step + caller * y.row;
    if constexpr (Cell::has_c) {
      at.c = d.cells + row * Hp;
      at.c_before = c_before(t, r);
      at.dc = room.dc + r * Hp;
    }
    at.dh = room.dh + r * Hp;
    if constexpr (P + 1 == Cell::phases) {
      if (dy.data) at.dy = dy.data + t * dy.step + caller * dy.row;
      if (gradient.trace.dh) at.whole = room.whole + r * Hp;
      at.scale = room.scale[r];
    } else {
      at.d_operand = room.d_operand + r * Hp;
    }
    at.da = da_row(t, r);
    return at;
  }

  // Asks memory for a vector of the row that comes `ahead` rows later: what forward has kept is out
  // of the caches. Behind the last row this asks for what is not needed, and does no harm.
  __attribute__((always_inline)) void fetch(const BackwardRow<T>& row, Index ahead,
                                            Index block) const {
    const Index j = block * kLanes<T>, Hp = padded<T>(H);
    for (int s = 0; s < Cell::saved; ++s)
      __builtin_prefetch(row.saved + (ahead * Cell::saved + s) * Hp + j);
    if constexpr (Cell::has_c) __builtin_prefetch(row.c_before + ahead * Hp + j);
    if (row.dy) __builtin_prefetch(row.dy + ahead * dy.row + j);
  }

  // N vectors of units of a row.
  template <int P, int N>
  __attribute__((always_inline)) static inline void units(const BackwardRow<T>& row, Index H,
                                                          Index block, const StepClip<V>& limits) {
    using U = Units<T, N>;
    constexpr Phase ph = Cell::phase[P];
    constexpr bool last = P + 1 == Cell::phases;
    const Index Hp = padded<T>(H), j = block * kLanes<T>;
    const auto at = [j](auto* from) {
      return [from, j](int i) { return from + j + i * kLanes<T>; };
    };
    const auto left = [H, j](int i) { return H - j - i * kLanes<T>; };
    BackwardUnit<U> u;
    for (int s = 0; s < Cell::saved; ++s) u.saved[s] = load_each<T, U>(at(row.saved + s * Hp));
    if constexpr (Cell::reads_h_before) u.h_before = load_each<T, U>(at(row.h_before), left);
    if constexpr (Cell::reads_h) u.h = load_each<T, U>(at(row.h), left);
    if constexpr (Cell::has_c) {
      u.c = load_each<T, U>(at(row.c));
      u.c_before = load_each<T, U>(at(row.c_before), left);
      u.dc = load_each<T, U>(at(row.dc));
    }
    if constexpr (last) {
      U from_y{};
      if (row.dy) from_y = load_each<T, U>(at(row.dy), left);
      u.dh = scaled_sum(load_each<T, U>(at(row.dh)), splat(row.scale), from_y);
      if (row.whole) store_each<T>(at(row.whole), u.dh);
    } else {
      u.dh = load_each<T, U>(at(row.d_operand));
      u.direct = load_each<T, U>(at(row.dh));
    }
    Cell::template backward<P>(u, limits);
    for (int s = 0; s < slots; ++s)
      if (ph.slots >> s & 1u) store_each<T>(at(row.da + s * Hp), u.da[s]);
    store_each<T>(at(row.dh), u.direct);
    if constexpr (Cell::has_c) store_each<T>(at(row.dc), u.dc);
  }
  static V scaled_sum(V dh, V scale, V from_y) { return fma(dh, scale, from_y); }
  static Pair<V> scaled_sum(Pair<V> dh, V scale, Pair<V> from_y) {
    return fma(dh, Pair<V>{scale, scale}, from_y);
  }

  // The recurrent product of phase P back in time: to dL/dh', or to dL/d operand.
  template <int P>
  void recurrent(const Part& part, Index t, Index n, bool backwards) const {
    constexpr Phase ph = Cell::phase[P];
    const Index Hp = padded<T>(H);
    Depth depth{ph.count, H, 1, {}};
    for (int g = 0; g < ph.count; ++g) depth.start[g] = Cell::recurrent_slot[ph.first + g] * Hp;
    T* const to = P == 0 ? room.dh : room.d_operand;
    for (Index i = 0; i < n; ++i) {
      at.a[i] = da_row(t, part.rows.first + i);
      at.to[i] = to + (part.rows.first + i) * Hp;
    }
    product<1>(*part.team.watch, n, at.a, depth, static_cast<const T*>(room.columns(P, H)),
               part.blocks, backwards, Target<T>{at.to, nullptr, P > 0, false, Hp},
               [](Index, int) {});
  }

  // Nothing goes back over a reset.
  void reset(const Part& part, Index t, Index n) const {
    for (Index r = part.rows.first; rows.resets && r < part.rows.first + n; ++r) {
      if (!is_reset(rows, t, r, reverse)) continue;
      for (Index j = part.blocks.first * kLanes<T>; j < part.blocks.last * kLanes<T>; ++j) {
        room.dh[r * padded<T>(H) + j] = T(0);
        if constexpr (Cell::has_c) room.dc[r * padded<T>(H) + j] = T(0);
      }
    }
  }

  // After a step, what needs whole rows, which the product has just left in cache: step_norm's
  // factor, and the trace. False: leave.
  bool whole_rows(const Part& part, Index t, Index n) const {
    if (!part.team.wait()) return false;
    const Range mine = part.team.share_of(n);
    for (Index r = part.rows.first + mine.first; r < part.rows.first + mine.last; ++r) {
      const double norm = norm_of(room.dh + r * padded<T>(H));
      room.scale[r] = norm > clip.step_norm ? static_cast<T>(clip.step_norm / norm) : T(1);
      if (gradient.trace.dh) trace(t, r, norm);
      if (!part.team.worked(H)) break;
    }
    return part.team.wait();
  }
  double norm_of(const T* row) const {
    alignas(kLineBytes) double lanes[kSquareLanes<T>] = {};
    double squares = 0;
    for (Index j = 0; j < H; j += kLanes<T>) add_squares<T>(lanes, j, load_n(row + j, H - j));
    for (const double lane : lanes) squares += lane;
    return __builtin_sqrt(squares);
  }

  void trace(Index t, Index r, double norm_before) const {
    const Trace& to = gradient.trace;
    const Index Hp = padded<T>(H), place = t * rows.B + row_of(rows, r);
    const double norm = norm_of(room.whole + r * Hp);
    to.dh[place] = norm;
    to.dh_before[place] = norm_before;
    if constexpr (Cell::has_c) to.dc_before[place] = norm_of(room.dc + r * Hp);
    to.scale[place] = static_cast<double>(room.scale[r]);
    Index clipped = 0;
    const T bound = static_cast<T>(clip.step_value);
    for (Index g = 0; g < G && bound < T(__builtin_inf()); ++g) {
      const T* da = da_row(t, r) + Cell::input_slot[g] * Hp;
      for (Index j = 0; j < H; ++j) clipped += da[j] <= -bound || da[j] >= bound;
    }
    to.clipped[place] = static_cast<double>(clipped) / static_cast<double>(G * H);
    if (flow_penalty != 0.0) penalize(t, r, norm, norm_before);
  }

  // The flow's penalty of a step and row is w (|u| / |v| - 1)^2, with v = dL/dh, u = direct +
  // W_hh^T da handed back, w = flow_penalty / B. Its immediate derivative by W_hh, da and v held
  // fixed, is da (2 w (|u| / |v| - 1) u / (|u| |v|))^T: in dW_hh's sum of da h'^T, an addition to
  // h'. Where nothing flows there is none.
  void penalize(Index t, Index r, double v, double u) const {
    const double weight = 2 * flow_penalty / static_cast<double>(rows.B);
    const double factor = u > 0 && v > 0 ? weight * (u / v - 1) / u / v : 0;
    T* const flow = room.flow + chunk_row(t, r) * padded<T>(H);
    const T* dh = room.dh + r * padded<T>(H);
    for (Index j = 0; j < H; ++j) flow[j] = static_cast<T>(factor * static_cast<double>(dh[j]));
  }

  // ---- over the chunk's steps ----------------------------------------------------------------

  // Brings the chunk's operands into panels, its rows in the order in which they are summed.
  void gather(const Team& all) const {
    const Range hidden = all.share_of(blocks_of<T>(H)), inputs = all.share_of(blocks_of<T>(I));
    const Index da_columns = slots * padded<T>(H);
    into_panels(all, all.share_of(da_columns / kLine<T>), kLine<T>, da_columns, room.da_lines,
                [&](Index t, Index r) { return da_row(t, r); });
    into_panels(all, inputs, kLanes<T>, I, room.x,
                [&](Index t, Index r) { return x.data + t * x.step + row_of(rows, r) * x.row; });
    into_panels(all, hidden, kLanes<T>, H, room.h,
                [&](Index t, Index r) { return h_before(t, r); });
    if (Cell::phases > 1 || flow_penalty != 0.0) change_h(all, hidden);
  }

  // Some panels of a matrix whose rows are row(t, r): out is [panels, chunk rows, width]. Panel by
  // panel, a few rows at a time: what is written one behind the other is not far apart.
  template <class Row>
  void into_panels(const Team& all, Range panels, Index width, Index columns, T* out,
                   const Row& row) const {
    constexpr Index together = 32;
    const Index n = chunk_rows();
    Index k = 0;
    for (Index i = 0; i < steps; ++i)
      for (Index t = step_at(i), r = 0; r < alive_at(rows, t); ++r) at.a[k++] = row(t, r);
    for (Index first = 0; first < n; first += together) {
      const Index last = least(n, first + together);
      for (Index j = panels.first * width; j < panels.last * width; j += kLanes<T>) {
        T* const to = out + j / width * n * width + j % width;
        if (columns - j >= kLanes<T>)
          for (k = first; k < last; ++k) store(to + k * width, load(at.a[k] + j));
        else
          for (k = first; k < last; ++k) store(to + k * width, load_some(at.a[k] + j, columns - j));
      }
      if (!all.worked(panels.size() * (last - first))) return;
    }
  }

  // What flow_penalty adds to h', and phase 1's operand, which is made of it.
  void change_h(const Team& all, Range blocks) const {
    const Index n = chunk_rows(), Hp = padded<T>(H);
    Index k = 0;
    for (Index i = 0; i < steps; ++i)
      for (Index t = step_at(i), r = 0; r < alive_at(rows, t); ++r, ++k) {
        const T* saved = d.saved + (rows_before(rows, t) + r) * Cell::saved * Hp;
        for (Index b = blocks.first; b < blocks.last; ++b) {
          const Index j = b * kLanes<T>, at_k = (b * n + k) * kLanes<T>;
          V h = load(room.h + at_k);
          if constexpr (Cell::phases > 1) {
            store(room.operand + at_k, Cell::operand(load(saved + j), h));
          } else {
            h += load_n(room.flow + chunk_row(t, r) * Hp + j, H - j);
            store(room.h + at_k, h);
          }
        }
        if (!all.worked(blocks.size())) return;
      }
  }

  // Adds the chunk's part to all of this direction's parameter gradients.
  void parameters(const Team& all, bool first, bool last) const {
    const Range units = all.share_of(G * H);
    double* squares = room.squares;
    matrix(all, units, Cell::input_slot, 0, G, room.x, I, gradient.w_ih, squares, first, last);
    squares += G * H * kSquareLanes<T>;
    for (int p = 0; p < Cell::phases; ++p)
      matrix(all, units, Cell::recurrent_slot, Cell::phase[p].first, Cell::phase[p].count,
             p == 0 ? room.h : room.operand, H, gradient.w_hh, squares, first, last);
    squares += G * H * kSquareLanes<T>;
    const Range gates = all.share_of(G);
    bias(all, gates, Cell::input_slot, gradient.b_ih, squares, first, last);
    bias(all, gates, Cell::recurrent_slot, gradient.b_hh, squares + G * kSquareLanes<T>, first,
         last);
  }

  // dL/da of all the chunk's rows in one slot, from `unit` on: a cache line of units a row.
  const T* da_column(Index slot, Index unit) const {
    const Index column = slot * padded<T>(H) + unit, line = kLine<T>;
    return room.da_lines + column / line * chunk_rows() * line + column % line;
  }

  // Units whose dL/da of a chunk stay in the second-level cache while columns pass by.
  static constexpr Index units_at_once = 128;

  // dW[unit, column] += sum over the chunk's rows of da[row, unit] operand[row, column], for the
  // rows of dW in `units` that belong to gates [gate, gate + count).
  void matrix(const Team& all, Range units, const int* slot, Index gate, Index count,
              const T* operand, Index columns, T* out, double* squares, bool first,
              bool last) const {
    const Index n = chunk_rows();
    const Index end = least(units.last, (gate + count) * H);
    Index size;
    for (Index from = most(units.first, gate * H); from < end; from += size) {
      size = least(units_at_once, end - from);
      for (Index i = 0; i < size; ++i) {
        at.a[i] = da_column(slot[(from + i) / H], (from + i) % H);
        at.to[i] = out + (from + i) * columns;
      }
      product<1>(*all.watch, size, at.a, Depth{1, n, kLine<T>, {0}}, operand,
                 Range{0, blocks_of<T>(columns)}, false,
                 Target<T>{at.to, nullptr, first, false, columns}, [&](Index block, int np) {
                   if (!last) return;
                   settle(at.to, size, squares + from * kSquareLanes<T>,
                          {block * kLanes<T>, least(columns, (block + np) * kLanes<T>)});
                 });
    }
  }

  // db[unit] += sum over the chunk's rows of da[row, unit].
  void bias(const Team& all, Range gates, const int* slot, T* out, double* squares, bool first,
            bool last) const {
    if (!out) return;
    // Several sums side by side: one alone waits for each addition.
    constexpr Index together = 4, width = together * kLanes<T>;
    const Index n = chunk_rows();
    for (Index g = gates.first; g < gates.last; ++g)
      for (Index j = 0; j < H; j += width) {
        const Index end = least(H, j + width);
        T* const row = out + g * H;
        const T* da[together];
        V sum[together];
        for (Index v = 0; v < together; ++v) {
          const Index at_v = least(j + v * kLanes<T>, end - 1) / kLanes<T> * kLanes<T>;
          da[v] = da_column(slot[g], at_v);
          sum[v] = first ? V{} : load_n(row + at_v, H - at_v);
        }
        for (Index k = 0; k < n; ++k)
#pragma GCC unroll 4
          for (Index v = 0; v < together; ++v) sum[v] += load(da[v] + k * kLine<T>);
        for (Index v = 0; j + v * kLanes<T> < end; ++v)
          store_n(row + j + v * kLanes<T>, sum[v], end - j - v * kLanes<T>);
        if (last) settle(&row, 1, squares + g * kSquareLanes<T>, {j, end});
        if (!all.worked(together * n)) return;
      }
  }

  // The end of some columns of n rows of parameter gradients: finiteness, value clip, squares.
  void settle(T* const* rows_of_dw, Index n, double* lanes, Range columns) const {
    const V bound = splat(static_cast<T>(clip.value));
    const bool clips = clip.value < __builtin_inf();
    V zero_or_nan{};
    for (Index i = 0; i < n; ++i, lanes += kSquareLanes<T>) {
      T* const row = rows_of_dw[i];
      const auto vector = [&](Index j, Index left) __attribute__((always_inline)) {
        V v = load_n(row + j, left);
        zero_or_nan += v - v;
        if (clips) store_n(row + j, v = limit(v, -bound, bound), left);
        add_squares<T>(lanes, j, v);
      };
      Index j = columns.first;
      for (; j + kLanes<T> <= columns.last; j += kLanes<T>) vector(j, kLanes<T>);
      if (j < columns.last) vector(j, columns.last - j);
    }
    if (!all_zero<T>(zero_or_nan)) __atomic_store_n(room.finite, 0, __ATOMIC_RELAXED);
  }

  // dL/dx of the chunk's rows.
  void inputs(const Team& all) const {
    const Range mine = all.share_of(chunk_rows());
    Index k = 0, n = 0;
    for (Index t = first_step; t < first_step + steps; ++t)
      for (Index r = 0; r < alive_at(rows, t); ++r, ++k) {
        if (k < mine.first || k >= mine.last) continue;
        at.a[n] = da_row(t, r);
        at.to[n++] = dx.data + t * dx.step + row_of(rows, r) * dx.row;
      }
    Depth depth{static_cast<int>(G), H, 1, {}};
    for (Index g = 0; g < G; ++g) depth.start[g] = Cell::input_slot[g] * padded<T>(H);
    product<1>(*all.watch, n, at.a, depth, static_cast<const T*>(room.input),
               Range{0, blocks_of<T>(I)}, false, Target<T>{at.to, nullptr, true, adds_dx, I},
               [](Index, int) {});
  }
};

}  // namespace rnnkern::RNNKERN_ISA

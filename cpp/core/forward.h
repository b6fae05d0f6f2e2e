// Forward through time for one direction of one layer: the only forward time loop there is.
#pragma once

#include "cells/unit.h"
#include "gemm.h"
#include "pack.h"
#include "work.h"

namespace rnnkern::RNNKERN_ISA {

// Weights of one direction in panels.
template <class Cell, class T>
struct ForwardWeights {
  T* input;      // [blocks, I, G, lanes]
  T* recurrent;  // phases one behind the other: [blocks, H, gates of the phase, lanes]
  T* bias;       // [G, padded H] what the input's product starts from
  T* bias_hh;    // [G, padded H] what a gate whose recurrent part stands alone starts from

  void take(Arena& arena, Index I, Index H) {
    const Index width = blocks_of<T>(H) * kLanes<T> * Cell::gates;
    input = arena.take<T>(width * I);
    recurrent = arena.take<T>(width * H);
    bias = arena.take<T>(Cell::gates * padded<T>(H));
    bias_hh = arena.take<T>(Cell::gates * padded<T>(H));
  }
  T* panels(int phase, Index H) const {
    return recurrent + blocks_of<T>(H) * kLanes<T> * Cell::phase[phase].first * H;
  }
  void pack(const Direction<T>& d, Index I, Index H, const Team& team) const {
    const Range blocks = team.share_of(blocks_of<T>(H));
    pack_gates(*team.watch, d.w_ih, 0, Cell::gates, H, I, blocks, input);
    for (int p = 0; p < Cell::phases; ++p)
      pack_gates(*team.watch, d.w_hh, Cell::phase[p].first, Cell::phase[p].count, H, H, blocks,
                 panels(p, H));
    if (team.index != 0) return;
    pack_bias(d.b_hh, static_cast<const T*>(nullptr), Cell::gates, H, bias_hh);
    for (int g = 0; g < Cell::gates; ++g) {
      const bool alone = Cell::phase[0].from_bias >> g & 1u;
      const T* b_ih = d.b_ih ? d.b_ih + g * H : nullptr;
      const T* b_hh = d.b_hh && !alone ? d.b_hh + g * H : nullptr;
      pack_bias(b_ih, b_hh, 1, H, bias + g * padded<T>(H));
    }
  }
};

// Values of one row at one step that a gate's product writes and the cell reads again.
template <class Cell>
inline constexpr Index kRowSlots = Cell::saved > Cell::gates ? Cell::saved : Cell::gates;

// What one direction needs while it runs.
template <class Cell, class T>
struct ForwardRoom {
  static constexpr Index z_bytes = 256 * 1024;  // the input's products of a chunk stay in cache
  ForwardWeights<Cell, T> weights;
  T* h[2];          // [B, padded H] the state, before and after, in turns
  T* c;             // [B, padded H]
  T* operand;       // [B, padded H] phase 1's operand
  T* z;             // [chunk, B, slots, padded H], unless kept on the tape
  Index chunk = 0;  // steps

  void take(Arena& arena, const Schedule& s, Index I, Index H, bool packed) {
    const Index row = padded<T>(H) * kRowSlots<Cell>;
    chunk = most(1, least(s.T, z_bytes / (row * static_cast<Index>(sizeof(T)) * most(1, s.B))));
    if (!packed) weights.take(arena, I, H);
    for (T*& half : h) half = arena.take<T>(s.B * padded<T>(H));
    c = arena.take<T>(Cell::has_c ? s.B * padded<T>(H) : 0);
    operand = arena.take<T>(Cell::phases > 1 ? s.B * padded<T>(H) : 0);
    z = arena.take<T>(chunk * s.B * row);
  }
};

// Row pointers, one set a thread.
template <class T>
struct ForwardPointers {
  const T** x;        // [chunk * B]
  T** z;              // [chunk * B]
  const T** h[2];     // [B]
  const T** operand;  // [B]
  void take(Arena& arena, Index chunk, Index B) {
    x = arena.take<const T*>(chunk * B);
    z = arena.take<T*>(chunk * B);
    for (const T**& half : h) half = arena.take<const T*>(B);
    operand = arena.take<const T*>(B);
  }
};

template <class Cell, class T>
struct Forward {
  using V = Vec<T>;
  const Schedule& rows;
  Index H, I;
  Sequence<const T> x;
  Sequence<T> y;
  const Direction<T>& d;
  bool reverse;
  const ForwardRoom<Cell, T>& room;
  const ForwardPointers<T>& at;
  Part part;
  Index first_step = 0;  // of the chunk at hand
  int now = 0;           // which half of room.h holds h'

  bool keeps() const { return d.saved != nullptr && Cell::saved > 0; }
  Index alive(Index t) const {
    return most(0, least(alive_at(rows, t), part.rows.last) - part.rows.first);
  }
  T* z_row(Index t, Index r) const {
    if (keeps()) return d.saved + (rows_before(rows, t) + r) * Cell::saved * padded<T>(H);
    return room.z + ((t - first_step) * rows.B + r) * kRowSlots<Cell> * padded<T>(H);
  }

  // Whoever is to leave early goes on to where all threads meet.
  void run() {
    begin();
    if (!part.team.wait()) return;
    for (Index done = 0; done < rows.T; done += room.chunk) {
      const Index steps = least(room.chunk, rows.T - done);
      first_step = reverse ? rows.T - done - steps : done;
      input_product(steps);
      for (Index i = 0; i < steps; ++i)
        if (!step(reverse ? first_step + steps - 1 - i : first_step + i)) return;
    }
  }

  // Copies the initial state to where the loop wants it, for this thread's units.
  void begin() {
    const Index from = part.blocks.first * kLanes<T>;
    const Index to = least(H, part.blocks.last * kLanes<T>);
    for (Index r = part.rows.first; r < part.rows.last; ++r) {
      const Index caller = row_of(rows, r);
      for (Index j = from; j < to; ++j) {
        const T h = d.h0 ? d.h0[caller * H + j] : T(0);
        room.h[0][r * padded<T>(H) + j] = h;
        room.h[1][r * padded<T>(H) + j] = h;
        d.h_last[caller * H + j] = h;
        if constexpr (Cell::has_c) {
          const T c = d.c0 ? d.c0[caller * H + j] : T(0);
          room.c[r * padded<T>(H) + j] = c;
          d.c_last[caller * H + j] = c;
        }
      }
      for (int half = 0; half < 2; ++half) at.h[half][r] = room.h[half] + r * padded<T>(H);
      if constexpr (Cell::phases > 1) at.operand[r] = room.operand + r * padded<T>(H);
    }
    if (!rows.count) return;
    for (Index t = 0; t < rows.T; ++t)  // outputs behind a row's end
      for (Index r = part.rows.first + alive(t); r < part.rows.last; ++r) {
        for (Index j = from; j < to; ++j) y.data[t * y.step + row_of(rows, r) * y.row + j] = T(0);
        if (!part.team.worked(part.blocks.size())) return;
      }
  }

  // The input's part of the gates' arguments for all rows of the chunk.
  void input_product(Index steps) const {
    Index n = 0;
    for (Index t = first_step; t < first_step + steps; ++t)
      for (Index i = 0; i < alive(t); ++i, ++n) {
        const Index r = part.rows.first + i;
        at.x[n] = x.data + t * x.step + row_of(rows, r) * x.row;
        at.z[n] = z_row(t, r);
      }
    const T* bias = room.weights.bias;
    constexpr int G = Cell::gates;
    product<G>(
        *part.team.watch, n, at.x, Depth{1, I, 1, {0}}, static_cast<const T*>(room.weights.input),
        I * G * kLanes<T>, part.blocks.first, part.blocks.last,
        [&](Index, int mr, Index block, int np, T* acc) {
          for (int m = 0; m < mr; ++m)
            for (int p = 0; p < np; ++p)
              for (int g = 0; g < G; ++g, acc += kLanes<T>)
                store(acc, load(bias + g * padded<T>(H) + (block + p) * kLanes<T>));
        },
        [&](Index row, int mr, Index block, int np, const T* acc) {
          for (int m = 0; m < mr; ++m)
            for (int p = 0; p < np; ++p)
              for (int g = 0; g < G; ++g, acc += kLanes<T>)
                store(at.z[row + m] + g * padded<T>(H) + (block + p) * kLanes<T>, load(acc));
        });
  }

  // False: leave.
  bool step(Index t) {
    const Index n = alive(t);
    if (n == 0) return true;
    phase<0>(t, n);
    if (!part.team.wait()) return false;
    if constexpr (Cell::phases > 1) {
      phase<1>(t, n);
      if (!part.team.wait()) return false;
    }
    now ^= 1;
    const Index after = reverse ? (t == 0 ? 0 : n) : (t + 1 == rows.T ? 0 : alive(t + 1));
    for (Index r = part.rows.first + after; r < part.rows.first + n; ++r) finish(r);
    return true;
  }

  // Hands out the state of a row at its own last step.
  void finish(Index r) const {
    const Index to = least(H, part.blocks.last * kLanes<T>);
    for (Index j = part.blocks.first * kLanes<T>; j < to; ++j) {
      d.h_last[row_of(rows, r) * H + j] = room.h[now][r * padded<T>(H) + j];
      if constexpr (Cell::has_c) d.c_last[row_of(rows, r) * H + j] = room.c[r * padded<T>(H) + j];
    }
  }

  // The recurrent product of one phase's gates, and the cell on its accumulators.
  template <int P>
  void phase(Index t, Index n) const {
    constexpr Phase ph = Cell::phase[P];
    constexpr int count = ph.count;
    const Index Hp = padded<T>(H);
    const T* const* operand = (P == 0 ? at.h[now] : at.operand) + part.rows.first;
    product<count>(
        *part.team.watch, n, operand, Depth{1, H, 1, {0}},
        static_cast<const T*>(room.weights.panels(P, H)), H * count * kLanes<T>, part.blocks.first,
        part.blocks.last,
        [&](Index row, int mr, Index block, int np, T* acc) {
          for (int m = 0; m < mr; ++m) {
            const T* z = z_row(t, part.rows.first + row + m);
            for (int p = 0; p < np; ++p)
              for (int g = ph.first; g < ph.first + count; ++g, acc += kLanes<T>) {
                const T* start = (ph.from_bias >> g & 1u ? room.weights.bias_hh : z) + g * Hp;
                store(acc, load(start + (block + p) * kLanes<T>));
              }
          }
        },
        [&](Index row, int mr, Index block, int np, const T* acc) {
          for (int m = 0; m < mr; ++m) {
            const Index r = part.rows.first + row + m;
            T* z = z_row(t, r);
            for (int p = 0; p < np; ++p, acc += count * kLanes<T>)
              cell<P>(t, r, (block + p) * kLanes<T>, z, acc);
          }
        });
  }

  // One vector of units, from column j, of row r at step t.
  template <int P>
  __attribute__((always_inline)) inline void cell(Index t, Index r, Index j, T* z,
                                                  const T* acc) const {
    constexpr Phase ph = Cell::phase[P];
    const Index Hp = padded<T>(H);
    ForwardUnit<V> u;
    for (int g = 0; g < ph.count; ++g) u.a[ph.first + g] = load(acc + g * kLanes<T>);
    for (int s = 0; s < Cell::saved; ++s)
      if (ph.reads >> s & 1u) u.saved[s] = load(z + s * Hp + j);
    if constexpr (Cell::reads_h_before) u.h_before = load(room.h[now] + r * Hp + j);
    if constexpr (Cell::has_c) u.c_before = load(room.c + r * Hp + j);
    Cell::template forward<P>(u);
    for (int s = 0; s < Cell::saved; ++s)
      if (ph.keeps >> s & 1u || (keeps() && ph.writes >> s & 1u)) store(z + s * Hp + j, u.saved[s]);
    if constexpr (P + 1 < Cell::phases) {
      store(room.operand + r * Hp + j, u.operand);
    } else {
      store(room.h[now ^ 1] + r * Hp + j, u.h);
      store_n(y.data + t * y.step + row_of(rows, r) * y.row + j, u.h, H - j);
      if constexpr (Cell::has_c) {
        store(room.c + r * Hp + j, u.c);
        if (d.cells) store(d.cells + (rows_before(rows, t) + r) * Hp + j, u.c);
      }
    }
  }
};

}  // namespace rnnkern::RNNKERN_ISA

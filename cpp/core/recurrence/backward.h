// Backward through time for one direction of one layer: the only backward time loop there is, and
// the products over its steps.
//
// Steps are taken in chunks. In a chunk, the time loop writes dL/da of every step; then one product
// each adds to dW_ih and dW_hh and gives dx. An element of dW is one chain over steps in backward's
// order and rows in the schedule's, carried on from chunk to chunk, so chunks leave no trace in the
// bits.
#pragma once

#include "recurrence/noise.h"
#include "recurrence/row_norm.h"

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

template <class T, class W = T>
struct BackwardWorkspace {
  // Of a chunk: enough for the gradients that each chunk brings to the cache and back, and few
  // enough for what they are summed from to stay in cache.
  static constexpr Index rows_at_once = 512;
  const CellLayout* cell;
  Index H, P;
  Heads<T> heads;
  Index chunk = 0;      // steps
  Index most_rows = 0;  // of a chunk
  W* recurrent;         // W_hh in columns, phase by phase: [blocks of P, gates, range of H, lanes]
  W* input;             // W_ih in columns: [blocks of I, G, H, lanes]
  W* projection;        // W_hr in columns: [blocks of H, P, lanes]
  T* vectors;           // [packed_vectors, padded H]
  T* dh;                // [B, padded P] dL/dh': what takes no product, then all of it
  T* dc;                // [states but h, B, padded H]
  T* d_operand;         // [B, padded H] of phase 1, or of the projection
  T* noise;             // [noises, B, padded H] of the step at hand
  T* scale;             // [B] step_norm's factor of dh
  T* dh_full;           // [B, padded P] dL/dh of the step, for the trace
  T* fresh;             // [states, padded H], of rows without a state before
  T* da;                // [chunk rows, da_row_size]
  T* da_lines;          // of it what is summed, by lines: [summed_size / line, chunk rows, line]
  T* sums;              // [B, kMoments] of layer norm: what stands beside the moments
  T* own_da;            // [B, own slots, padded H] of the step, where one thread works alone
  T* x;                 // [blocks of I, chunk rows, lanes]
  T* h;                 // [heads, blocks of a head's h, chunk rows, lanes] h' of each row
  T* projected;         // [chunk rows, padded H] the projection's operand of each row
  T* operand;           // [blocks of H, chunk rows, lanes] of phase 1, or of the projection
  T* flow;              // [chunk rows, padded H] what flow_penalty adds to h' in dW_hh
  // Of a layer whose products round both operands, these again in bf16: da as rows; da_lines; x, h
  // and operand.
  RoundedRows<T> rounded_da;
  T* rounded_lines;
  W *rounded_x, *rounded_h, *rounded_operand;
  double* squares;  // [square_rows, square lanes], parameter by parameter
  int* finite;      // 0 once a parameter gradient was not

  // dL/da of a row at a step, slot by slot; behind them what the gradients of unit vectors are sums
  // of, then dL/d(W_hr operand); behind these what a cell that reads x adds to dL/dx. With layer
  // norm, the slots are those of dL/d(products), and dL/da comes last: no product takes it.
  Index slots() const { return cell->slots + cell->vectors; }
  Index summed_size() const { return padded<T>(H) * slots() + (cell->projects ? padded<T>(P) : 0); }
  Index da_row_size() const {
    return summed_size() + padded<T>(H) * ((cell->reads_x ? 1 : 0) + cell->own_slots);
  }
  // Rows of squares of one parameter: one a row of a matrix, one a gate of a bias or gain, one a
  // unit vector.
  Index square_rows(Role role) const {
    if (!cell->has(role)) return 0;
    if (role == unit_vectors) return cell->vectors;
    if (role == state_gain || role == state_bias) return 1;
    if (role == input_gain || role == recurrent_gain) return cell->gates;
    return kIsBias[role] ? cell->gates : role == projection_matrix ? P : cell->gates * H;
  }
  Index square_rows_before(int role) const {
    Index before = 0;
    for (int r = 0; r < role; ++r) before += square_rows(static_cast<Role>(r));
    return before;
  }
  Index all_square_rows() const { return square_rows_before(kRoles); }
  double* squares_of(Role role) const {
    return squares + square_rows_before(role) * kSquareLanes<T>;
  }

  // What a unit's row of W_hh has columns for: h, or its head's part.
  Index head_width() const { return heads.is_one() ? P : heads.size; }

  // most_steps: of a chunk.
  void allocate(Arena& arena, const CellLayout& of, const CellConstants& constants,
                const Schedule& s, Index I, Index hidden, Index outputs, bool traced,
                bool penalized, Index most_steps) {
    cell = &of, H = hidden, P = outputs, heads = Heads<T>::of(H, constants.heads);
    constexpr Index lanes = kLanes<T>;
    const Index G = of.gates, Hp = padded<T>(H), Pp = padded<T>(P), row = da_row_size();
    const Index hidden_lanes = blocks_of<T>(H) * lanes, input_lanes = blocks_of<T>(I) * lanes;
    const Index output_lanes = blocks_of<T>(P) * lanes;
    const Index head_lanes = heads.count() * blocks_of<T>(head_width()) * lanes;
    chunk = most(1, least(least(s.T, most_steps), rows_at_once / most(1, s.B)));
    most_rows = chunk * s.B;
    recurrent =
        arena.allocate<W>(of.elementwise ? 0 : output_lanes * G * elements_of<W>(heads.length));
    input = arena.allocate<W>(input_lanes * G * elements_of<W>(H));
    projection = arena.allocate<W>(of.projects ? hidden_lanes * elements_of<W>(P) : 0);
    vectors = arena.allocate<T>(packed_vectors(of) * Hp);
    dh = arena.allocate<T>(s.B * Pp);
    dc = arena.allocate<T>(of.carried * s.B * Hp);
    d_operand = arena.allocate<T>(of.has_operand() ? s.B * Hp : 0);
    noise = arena.allocate<T>(of.noise ? kNoises * s.B * Hp : 0);
    scale = arena.allocate<T>(s.B);
    dh_full = arena.allocate<T>(traced ? s.B * Pp : 0);
    fresh = arena.allocate<T>((1 + of.carried) * Hp);
    da = arena.allocate<T>(most_rows * row);
    da_lines = arena.allocate<T>(most_rows * summed_size());
    sums = arena.allocate<T>(of.normalizes ? s.B * kMoments : 0);
    own_da = arena.allocate<T>(s.B * of.own_slots * Hp);
    x = arena.allocate<T>(input_lanes * most_rows);
    h = arena.allocate<T>(of.elementwise ? 0 : head_lanes * most_rows);
    projected = arena.allocate<T>(of.projects ? most_rows * Hp : 0);
    operand = arena.allocate<T>(of.has_operand() ? hidden_lanes * most_rows : 0);
    flow = arena.allocate<T>(penalized ? most_rows * Hp : 0);
    squares = arena.allocate<double>(all_square_rows() * kSquareLanes<T>);
    finite = arena.allocate<int>(1);
    if constexpr (kTerms<W> > 1) {
      const Index pairs = elements_of<W>(most_rows);
      rounded_da.allocate(arena, most_rows, G * Hp);
      rounded_lines = arena.allocate<T>(most_rows * summed_size());
      rounded_x = arena.allocate<W>(input_lanes * pairs);
      rounded_h = arena.allocate<W>(of.elementwise ? 0 : head_lanes * pairs);
      rounded_operand = arena.allocate<W>(of.has_operand() ? hidden_lanes * pairs : 0);
    }
  }
  // Gates before the phase's own, in columns of `recurrent`.
  W* columns(int phase) const {
    return recurrent +
           blocks_of<T>(P) * kLanes<T> * cell->phase[phase].first * elements_of<W>(heads.length);
  }
};

template <class T>
struct BackwardRowPointers {
  const T** a;             // [max(B, chunk rows, G * H)]
  T** to;                  // the same
  T** own_dx;              // the same, of which the chunk rows are used
  RoundedRows<T> rounded;  // [B] where operands are rounded, those of the step
  void allocate(Arena& arena, Index n) {
    a = arena.allocate<const T*>(n);
    to = arena.allocate<T*>(n);
    own_dx = arena.allocate<T*>(n);
  }
};

// T: of the arithmetic; W: of weights in panels.
template <class T, class W = T>
struct Backward {
  using V = Vec<T>;
  const CellFunctions<T>& functions;
  const CellLayout& cell;
  const CellConstants& constants;
  const Schedule& rows;
  Index H, P, I;
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
  NoiseSource<T> noise;
  const BackwardWorkspace<T, W>& workspace;
  const BackwardRowPointers<T>& row_ptrs;  // this thread's
  // Whether one thread takes all rows and units. The gradients of layer norm's gains then get what
  // a row adds to them while it is in cache, in the same order.
  bool alone = false;
  Index first_step = 0, steps = 0;  // of the chunk at hand

  // ---- what is where -------------------------------------------------------------------------

  bool last_chunk(Index done) const { return done + steps == rows.T; }
  void open_chunk(Index done) {
    steps = least(workspace.chunk, rows.T - done);
    first_step = reverse ? done : rows.T - done - steps;
  }
  Index step_at(Index i) const { return reverse ? first_step + i : first_step + steps - 1 - i; }
  Index chunk_rows() const {
    return rows_before(rows, first_step + steps) - rows_before(rows, first_step);
  }
  Index chunk_row(Index t, Index r) const {
    return rows_before(rows, t) - rows_before(rows, first_step) + r;
  }
  T* da_row(Index t, Index r) const {
    return workspace.da + chunk_row(t, r) * workspace.da_row_size();
  }
  // dL/da of the gates' arguments.
  T* own_da_row(Index t, Index r) const {
    if (!cell.normalizes) return da_row(t, r);
    return alone ? workspace.own_da + r * cell.own_slots * padded<T>(H)
                 : da_row(t, r) + workspace.summed_size();
  }
  T* noise_row(int of, Index r) const { return workspace.noise + (of * rows.B + r) * padded<T>(H); }
  T* projected_row(Index t, Index r) const {
    return workspace.projected + chunk_row(t, r) * padded<T>(H);
  }
  // This thread's blocks of h.
  Range outputs(const WorkShare& part) const {
    return cell.projects ? part.team.share_of(blocks_of<T>(P)) : part.blocks;
  }
  // The step before t in forward's order, or -1 where the initial state came before.
  Index step_before(Index t, Index r) const {
    if (!reverse) return t - 1;
    return t + 1 < rows.T && r < alive_at(rows, t + 1) ? t + 1 : -1;
  }
  const T* h_before(Index t, Index r) const {
    const Index before = step_before(t, r), caller = row_of(rows, r);
    if (is_reset(rows, t, r, reverse)) return workspace.fresh;
    if (before >= 0) return y.data + before * y.time_stride + caller * y.row_stride;
    return d.first[0] ? d.first[0] + caller * P : workspace.fresh;
  }
  const T* carried_row(Index k, Index t, Index r) const {
    return d.carried + ((rows_before(rows, t) + r) * cell.carried + k) * padded<T>(H);
  }
  const T* c_before(Index k, Index t, Index r) const {
    const Index before = step_before(t, r);
    const T* const fresh = workspace.fresh + (1 + k) * padded<T>(H);
    if (is_reset(rows, t, r, reverse)) return fresh;
    if (before >= 0) return carried_row(k, before, r);
    return d.first[1 + k] ? d.first[1 + k] + row_of(rows, r) * H : fresh;
  }

  // ---- before and after time -----------------------------------------------------------------

  void pack(const Team& all) const {
    const auto pack = [&](const T* w, Index gates, Index units, Index columns, W* out) {
      pack_columns(*all.token, w, gates, units, columns, all.share_of(blocks_of<T>(columns)), out);
    };
    for (int p = 0; p < cell.phases && !cell.elementwise; ++p) {
      const Phase ph = cell.phase[p];
      const T* const w = d.parameters[recurrent_matrix] + ph.first * H * workspace.head_width();
      if (workspace.heads.is_one())
        pack(w, ph.count, H, P, workspace.columns(p));
      else
        pack_columns(*all.token, w, workspace.heads, ph.count, all.share_of(blocks_of<T>(P)),
                     workspace.columns(p));
    }
    pack(d.parameters[input_matrix], cell.gates, H, I, workspace.input);
    if (cell.projects) pack(d.parameters[projection_matrix], 1, P, H, workspace.projection);
    if (all.index != 0) return;
    pack_vectors(cell, d.parameters, H, workspace.vectors);
    if (functions.prepare) functions.prepare(workspace.vectors, padded<T>(H));
  }

  void load_initial_state(const WorkShare& part, bool accumulate) const {
    const auto start = [&](int state, Index width, Range blocks, T* to, Index r) {
      const T* const given = cell.info->states[state].flows ? gradient.last[state] : nullptr;
      const Index caller = row_of(rows, r) * width, end = least(width, blocks.last * kLanes<T>);
      for (Index j = blocks.first * kLanes<T>; j < end; ++j) {
        to[r * padded<T>(width) + j] = given ? given[caller + j] : T(0);
      }
    };
    const Index end = least(H, part.blocks.last * kLanes<T>);
    const bool has_first_row = part.rows.first == 0 && part.rows.last > 0;
    for (int s = 0; has_first_row && s < 1 + cell.carried; ++s)
      for (Index j = part.blocks.first * kLanes<T>; j < end; ++j)
        workspace.fresh[s * padded<T>(H) + j] = cell.template fresh<T>(s);
    constexpr Role sums[] = {input_gain, recurrent_gain, input_bias, recurrent_bias};
    for (const Role role : sums)
      for (Index i = 0; cell.normalizes && alone && !accumulate && i < cell.gates * H; ++i)
        if (gradient.parameters[role]) gradient.parameters[role][i] = T(0);
    for (Index r = part.rows.first; r < part.rows.last; ++r) {
      if (part.blocks.first == 0) workspace.scale[r] = accumulate ? gradient.scale[r] : T(1);
      start(0, P, outputs(part), workspace.dh, r);
      for (int k = 0; k < cell.carried; ++k)
        start(1 + k, H, part.blocks, workspace.dc + k * rows.B * padded<T>(H), r);
      if (!part.team.worked(kRowOperations + part.blocks.size() * kLanes<T>)) return;
    }
  }

  void store_final_state(const WorkShare& part, bool defer_finalize) const {
    const Index Hp = padded<T>(H), Pp = padded<T>(P);
    const auto end = [](Index width, Range blocks) {
      return least(width, blocks.last * kLanes<T>);
    };
    for (Index r = part.rows.first; r < part.rows.last; ++r) {
      const Index caller = row_of(rows, r);
      if (defer_finalize && part.blocks.first == 0) gradient.scale[r] = workspace.scale[r];
      const Range own = outputs(part);
      for (Index j = own.first * kLanes<T>; j < end(P, own); ++j) {
        const T dh = workspace.dh[r * Pp + j];
        gradient.first[0][caller * P + j] = defer_finalize ? dh : dh * workspace.scale[r];
      }
      for (int k = 0; k < cell.carried; ++k)
        for (Index j = part.blocks.first * kLanes<T>; j < end(H, part.blocks); ++j)
          gradient.first[1 + k][caller * H + j] = workspace.dc[(k * rows.B + r) * Hp + j];
      if (!part.team.worked(kRowOperations + part.blocks.size() * kLanes<T>)) return;
    }
  }

  // ---- through time --------------------------------------------------------------------------

  // A thread that is to leave early continues to the barrier.
  void through_time(const WorkShare& part) const {
    for (Index i = 0; i < steps; ++i) {
      const Index t = step_at(i);
      const Index n = most(0, least(alive_at(rows, t), part.rows.last) - part.rows.first);
      if (n == 0) continue;
      noise.draw(t, part, n, [&](int of, Index r) { return noise_row(of, r); });
      if (cell.projects) {
        unclip(part, t, n);
        if (!part.team.wait()) return;
        unproject(part, t, n);
      }
      for (int p = cell.phases - 1; p >= 0; --p) {
        if (!cell.normalizes)
          pointwise(p, part, t, n);
        else if (!normalized(part, t, n))
          return;
        if (cell.elementwise ? part.team.stopped() : !part.team.wait()) return;
        if (!cell.elementwise) recurrent(p, part, t, n, i % 2 == 1);
      }
      reset(part, t, n);
      const bool rows_matter = clip.step_norm < __builtin_inf() || gradient.trace.dh;
      if (rows_matter && !finish_rows(part, t, n)) return;
    }
  }

  // dL/dh, complete, where h before its clip was within the bound: dL/d(W_hr operand).
  void unclip(const WorkShare& part, Index t, Index n) const {
    const Index Pp = padded<T>(P);
    const Range own = outputs(part);
    const V bound = splat(static_cast<T>(constants.projection_clip));
    for (Index r = part.rows.first; r < part.rows.first + n; ++r) {
      T* const to = da_row(t, r) + workspace.slots() * padded<T>(H);
      const T* from_y =
          dy.data ? dy.data + t * dy.time_stride + row_of(rows, r) * dy.row_stride : nullptr;
      for (Index j = own.first * kLanes<T>; j < own.last * kLanes<T>; j += kLanes<T>) {
        const V dy_j = from_y ? load_n(from_y + j, P - j) : V{};
        V dh = fma(load(workspace.dh + r * Pp + j), splat(workspace.scale[r]), dy_j);
        if (gradient.trace.dh) store(workspace.dh_full + r * Pp + j, dh);
        if (d.projected)
          dh = where_within<T>(load(d.projected + (rows_before(rows, t) + r) * Pp + j), bound, dh);
        store(to + j, dh);
      }
      if (!part.team.worked(own.size())) return;
    }
  }

  // The projection's product back: to dL/d operand.
  void unproject(const WorkShare& part, Index t, Index n) const {
    const Index Hp = padded<T>(H);
    for (Index i = 0; i < n; ++i) {
      row_ptrs.a[i] = da_row(t, part.rows.first + i) + workspace.slots() * Hp;
      row_ptrs.to[i] = workspace.d_operand + (part.rows.first + i) * Hp;
    }
    Depth depth{1, P, 1, {0}};
    const T* const* const a = rounded(row_ptrs.rounded, 0, n, depth);
    product<1>(*part.team.token, n, a, depth, static_cast<const W*>(workspace.projection),
               part.blocks, false, Target<T>{row_ptrs.to, nullptr, true, false, Hp},
               [](Index, int) {});
  }
  // The rows in row_ptrs.a as they are, or rounded as the layer's precision asks.
  const T* const* rounded(const RoundedRows<T>& to, Index first, Index n, Depth& depth) const {
    if constexpr (kTerms<W> > 1) return round_rows(to, first, n, row_ptrs.a, depth);
    return row_ptrs.a;
  }

  // Units that memory is asked for before they are needed.
  static constexpr Index units_ahead = 256;

  BackwardStep<T> step_of(const WorkShare& part) const {
    BackwardStep<T> step{&constants,
                         workspace.vectors,
                         H,
                         part.blocks,
                         static_cast<T>(clip.step_value),
                         ceil_div(units_ahead, H),
                         dy.row_stride,
                         {}};
    for (int of = 0; cell.noise && of < kNoises; ++of) step.mean[of] = noise.mean(of);
    return step;
  }

  // The cell's derivative of one phase, the step clip included.
  void pointwise(int phase, const WorkShare& part, Index t, Index n) const {
    const BackwardStep<T> step = step_of(part);
    const auto derivative = functions.phase[phase].backward;
    constexpr Index vector_operations = 32;  // of a cell's derivative, about
    // Rows whose values are equally far apart.
    const Index together = rows.count || rows.order || rows.resets ? 1 : n;
    for (Index i = 0; i < n; i += together) {
      const Index r = part.rows.first + i;
      const BackwardRow<T> first = row_at(phase, t, r);
      derivative(first, together > 1 ? row_at(phase, t, r + 1) : first, together, step);
      if (!part.team.worked(together * part.blocks.size() * vector_operations)) return;
    }
  }

  // The same with layer norm: the cell's derivative, in one or two parts with layer norm of c
  // between them, then that of the products. False: leave.
  bool normalized(const WorkShare& part, Index t, Index n) const {
    const BackwardStep<T> step = step_of(part);
    const Index Hp = padded<T>(H), work = 128 * part.blocks.size();
    return normalize_rows(
        part.team, n, cell.normalizes_state ? 1 : 3, 5, work, [&](int stage, Index i) {
          const Index r = part.rows.first + i;
          const BackwardRow<T> row = row_at(0, t, r);
          if (stage == 1) {
            functions.part[1].backward(row, step);
          } else if (stage == 2) {
            sum_state(row.d_vectors, workspace.vectors + 4 * cell.gates * Hp, H, Hp,
                      row.sums + kStateMoments);
          } else if (stage == 3) {
            functions.part[0].backward(row, step);
          } else {
            for (int of_h = 0; of_h < 2; ++of_h) {
              const NormSide<T> side =
                  side_of(of_h != 0, row.saved, row.own_da, row.moments, row.sums);
              if (stage == 4) {
                side.sum();
              } else {
                side.gradient(da_row(t, r) + side.place, part.blocks);
                if (alone) add_gains(side, of_h != 0, 0, cell.gates);
              }
            }
          }
        });
  }
  NormSide<T> side_of(bool of_h, const T* saved, const T* own_da, const T* moments, T* sums) const {
    const Index Hp = padded<T>(H), place = of_h ? cell.gates * Hp : 0;
    const Index pair = of_h ? kRecurrentMoments : kInputMoments;
    return {cell.gates,
            of_h ? cell.own_recurrent_slot : cell.own_input_slot,
            place,
            H,
            Hp,
            workspace.vectors + place,
            own_da,
            saved + place,
            moments + pair,
            sums ? sums + pair : nullptr};
  }

  BackwardRow<T> row_at(int phase, Index t, Index r) const {
    const Index Hp = padded<T>(H), caller = row_of(rows, r), row = rows_before(rows, t) + r;
    BackwardRow<T> at{};
    at.saved = d.saved + row * cell.saved * Hp;
    if (cell.reads_h_before) at.h_before = h_before(t, r);
    if (cell.reads_h) at.h = y.data + t * y.time_stride + caller * y.row_stride;
    for (int k = 0; k < cell.carried; ++k) {
      at.c[k] = carried_row(k, t, r);
      at.c_before[k] = c_before(k, t, r);
      at.dc[k] = workspace.dc + (k * rows.B + r) * Hp;
    }
    for (int of = 0; cell.noise && of < kNoises; ++of)
      if (noise.draws(of)) at.noise[of] = noise_row(of, r);
    if (cell.projects)
      at.projected = projected_row(t, r);
    else
      at.dh = workspace.dh + r * Hp;
    if (phase + 1 == cell.phases && !cell.projects) {  // the cell's own h: dL/dy completes dL/dh
      if (dy.data) at.dy = dy.data + t * dy.time_stride + caller * dy.row_stride;
      if (gradient.trace.dh) at.dh_full = workspace.dh_full + r * Hp;
      at.scale = workspace.scale + r;
    } else {
      at.d_operand = workspace.d_operand + r * Hp;
    }
    at.da = da_row(t, r);
    if (cell.reads_x) {
      at.x = x.data + t * x.time_stride + caller * x.row_stride;
      at.dx = at.da + workspace.summed_size();
    }
    if (!cell.normalizes) return at;
    at.moments = d.moments + row * kMoments;
    at.sums = workspace.sums + r * kMoments;
    at.own_da = own_da_row(t, r);
    at.d_vectors = at.da + cell.slots * Hp;
    return at;
  }

  // The recurrent product of one phase back in time: to dL/dh', or to dL/d operand.
  void recurrent(int phase, const WorkShare& part, Index t, Index n, bool backwards) const {
    const Phase ph = cell.phase[phase];
    const Index Hp = padded<T>(H);
    const Range blocks = outputs(part);
    const bool to_h = phase == 0;
    T* const to = to_h ? workspace.dh : workspace.d_operand;
    const Index width = padded<T>(P);  // of `to`: a cell of two phases has P = H
    const Index size = workspace.da_row_size();
    T* const da = da_row(t, part.rows.first);
    for (Index i = 0; i < n; ++i) {
      row_ptrs.a[i] = da + i * size;
      row_ptrs.to[i] = to + (part.rows.first + i) * width;
    }
    for (Index first = blocks.first, end; first < blocks.last; first = end) {
      end = workspace.heads.next_range(first, blocks.last);
      Depth depth{ph.count, workspace.heads.length, 1, {}};
      for (int g = 0; g < ph.count; ++g)
        depth.start[g] = cell.recurrent_slot[ph.first + g] * Hp + workspace.heads.range_of(first);
      const T* const* const a = rounded(row_ptrs.rounded, 0, n, depth);
      product<1>(*part.team.token, n, a, depth, static_cast<const W*>(workspace.columns(phase)),
                 Range{first, end}, backwards,
                 Target<T>{row_ptrs.to, nullptr, !to_h || cell.projects, false, width},
                 [](Index, int) {});
    }
  }

  // Nothing goes back over a reset.
  void reset(const WorkShare& part, Index t, Index n) const {
    for (Index r = part.rows.first; rows.resets && r < part.rows.first + n; ++r) {
      if (!is_reset(rows, t, r, reverse)) continue;
      const auto clear = [](T* row, Range blocks) {
        for (Index j = blocks.first * kLanes<T>; j < blocks.last * kLanes<T>; ++j) row[j] = T(0);
      };
      clear(workspace.dh + r * padded<T>(P), outputs(part));
      for (int k = 0; k < cell.carried; ++k)
        clear(workspace.dc + (k * rows.B + r) * padded<T>(H), part.blocks);
    }
  }

  // After a step, what needs whole rows, which the product has just left in cache: step_norm's
  // factor, and the trace. False: leave.
  bool finish_rows(const WorkShare& part, Index t, Index n) const {
    if (!part.team.wait()) return false;
    const Range mine = part.team.share_of(n);
    for (Index r = part.rows.first + mine.first; r < part.rows.first + mine.last; ++r) {
      const double norm = norm_of(workspace.dh + r * padded<T>(P), P);
      workspace.scale[r] = norm > clip.step_norm ? static_cast<T>(clip.step_norm / norm) : T(1);
      if (gradient.trace.dh) trace(t, r, norm);
      if (!part.team.worked(H)) break;
    }
    return part.team.wait();
  }
  double norm_of(const T* row, Index width) const {
    alignas(kLineBytes) double lanes[kSquareLanes<T>] = {};
    double squares = 0;
    for (Index j = 0; j < width; j += kLanes<T>)
      add_squares<T>(lanes, j, load_n(row + j, width - j));
    for (const double lane : lanes) squares += lane;
    return __builtin_sqrt(squares);
  }

  void trace(Index t, Index r, double norm_before) const {
    const Trace& to = gradient.trace;
    const Index Hp = padded<T>(H), place = t * rows.B + row_of(rows, r);
    const double norm = norm_of(workspace.dh_full + r * padded<T>(P), P);
    to.dh[place] = norm;
    to.dh_before[place] = norm_before;
    if (cell.carried > 0) to.dc_before[place] = norm_of(workspace.dc + r * Hp, H);
    to.scale[place] = static_cast<double>(workspace.scale[r]);
    Index clipped = 0;
    const T bound = static_cast<T>(clip.step_value);
    for (int g = 0; g < cell.gates && bound < T(__builtin_inf()); ++g) {
      const T* da = own_da_row(t, r) + cell.own_input_slot[g] * Hp;
      for (Index j = 0; j < H; ++j) clipped += da[j] <= -bound || da[j] >= bound;
    }
    to.clipped[place] = static_cast<double>(clipped) / static_cast<double>(cell.gates * H);
    if (flow_penalty != 0.0) penalize(t, r, norm, norm_before);
  }

  // The flow's penalty of a step and row is w (|u| / |v| - 1)^2, with v = dL/dh, u = direct +
  // W_hh^T da handed back, w = flow_penalty / B. Its immediate derivative by W_hh, da and v held
  // fixed, is da (2 w (|u| / |v| - 1) u / (|u| |v|))^T: in dW_hh's sum of da h'^T, an addition to
  // h'. Where nothing flows there is none.
  void penalize(Index t, Index r, double v, double u) const {
    const double weight = 2 * flow_penalty / static_cast<double>(rows.B);
    const double factor = u > 0 && v > 0 ? weight * (u / v - 1) / u / v : 0;
    T* const flow = workspace.flow + chunk_row(t, r) * padded<T>(H);
    const T* dh = workspace.dh + r * padded<T>(H);
    for (Index j = 0; j < H; ++j) flow[j] = static_cast<T>(factor * static_cast<double>(dh[j]));
  }

  // ---- over the chunk's steps ----------------------------------------------------------------

  // Brings the chunk's operands into panels, its rows in the order in which they are summed.
  void gather(const Team& all) const {
    const Range hidden = all.share_of(blocks_of<T>(H)), inputs = all.share_of(blocks_of<T>(I));
    const Index da_columns = workspace.summed_size();
    into_panels(all, all.share_of(da_columns / kLine<T>), kLine<T>, da_columns, workspace.da_lines,
                [&](Index t, Index r) { return da_row(t, r); });
    into_panels(all, inputs, kLanes<T>, I, workspace.x, [&](Index t, Index r) {
      return x.data + t * x.time_stride + row_of(rows, r) * x.row_stride;
    });
    if (!cell.elementwise) gather_h(all);
    if (cell.projects)
      into_panels(all, hidden, kLanes<T>, H, workspace.operand,
                  [&](Index t, Index r) { return projected_row(t, r); });
    if (cell.phases > 1 || flow_penalty != 0.0) change_h(all, hidden);
    if constexpr (kTerms<W> > 1) round_gathered(all);
  }

  // What has been gathered in bf16, each thread what it has gathered itself.
  void round_gathered(const Team& all) const {
    const Index n = chunk_rows(), hidden = blocks_of<T>(H), pairs = elements_of<W>(n);
    const auto panels = [&](Range mine, const T* from, W* to) {
      for (Index j = mine.first; j < mine.last; ++j) {
        const auto row = [&](Index k) { return from + (j * n + k) * kLanes<T>; };
        if (!pack_columns<T>(*all.token, row, n, kLanes<T>, {0, 1}, to + j * pairs * kLanes<T>))
          return;
      }
    };
    round_lines(all.share_of(workspace.summed_size() / kLine<T>));
    panels(all.share_of(blocks_of<T>(I)), workspace.x, workspace.rounded_x);
    if (!cell.elementwise && workspace.heads.is_one()) {
      panels(all.share_of(blocks_of<T>(P)), workspace.h, workspace.rounded_h);
    } else if (!cell.elementwise) {
      const Index of_head = blocks_of<T>(workspace.head_width());
      const Range mine = all.share_of(workspace.heads.count());
      panels({mine.first * of_head, mine.last * of_head}, workspace.h, workspace.rounded_h);
    }
    if (cell.has_operand())
      panels(all.share_of(hidden), workspace.operand, workspace.rounded_operand);
  }
  // dL/da, one row after the other in each line of units: pairs where the machine sums these. The
  // second of an odd last pair is -0, as in pair_bf16.
  void round_lines(Range lines) const {
    const Index n = chunk_rows();
    const bool pairs = sums_pairs();
    for (Index line = lines.first; line < lines.last; ++line) {
      const T* const from = workspace.da_lines + line * n * kLine<T>;
      T* to = workspace.rounded_lines + line * (pairs ? elements_of<W>(n) : n) * kLine<T>;
      if (!pairs) {
        round_to_bf16(from, n * kLine<T>, to);
        continue;
      }
      for (Index k = 0; k < n; k += 2, to += kLine<T>)
        for (Index j = 0; j < kLine<T>; j += kLanes<T>) {
          const T* const at = from + k * kLine<T> + j;
          store_pairs(reinterpret_cast<Bf16Pair*>(to + j), load(at),
                      k + 1 < n ? load(at + kLine<T>) : splat(-0.0f));
        }
    }
  }

  void gather_h(const Team& all) const {
    const Heads<T>& heads = workspace.heads;
    const Index width = workspace.head_width(), panels = blocks_of<T>(width);
    const Range mine = heads.is_one() ? Range{0, 1} : all.share_of(heads.count());
    for (Index head = mine.first; head < mine.last; ++head) {
      T* const out = workspace.h + head * panels * kLanes<T> * chunk_rows();
      into_panels(all, heads.is_one() ? all.share_of(panels) : Range{0, panels}, kLanes<T>, width,
                  out, [&](Index t, Index r) { return h_before(t, r) + head * width; });
      if (all.stopped()) return;
    }
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
      for (Index t = step_at(i), r = 0; r < alive_at(rows, t); ++r) row_ptrs.a[k++] = row(t, r);
    for (Index first = 0; first < n; first += together) {
      const Index last = least(n, first + together);
      for (Index j = panels.first * width; j < panels.last * width; j += kLanes<T>) {
        T* const to = out + j / width * n * width + j % width;
        if (columns - j >= kLanes<T>)
          for (k = first; k < last; ++k) store(to + k * width, load(row_ptrs.a[k] + j));
        else
          for (k = first; k < last; ++k)
            store(to + k * width, load_some(row_ptrs.a[k] + j, columns - j));
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
        if (cell.phases > 1) {
          const Index at_k = k * kLanes<T>;
          functions.operand(d.saved + (rows_before(rows, t) + r) * cell.saved * Hp,
                            workspace.h + at_k, workspace.operand + at_k, blocks, n * kLanes<T>);
        } else {
          const T* flow = workspace.flow + chunk_row(t, r) * Hp;
          for (Index j = blocks.first * kLanes<T>; j < blocks.last * kLanes<T>; j += kLanes<T>) {
            T* const h = workspace.h + j * n + k * kLanes<T>;
            store(h, load(h) + load_n(flow + j, H - j));
          }
        }
        if (!all.worked(blocks.size())) return;
      }
  }

  // Adds the chunk's part to all of this direction's parameter gradients.
  void parameters(const Team& all, bool first, bool last) const {
    const Index G = cell.gates;
    const Range units = all.share_of(G * H);
    const auto add = [&](Role role, Range mine, MatrixRows rows_of_dw, const W* operand,
                         Index columns) {
      matrix(all, mine, rows_of_dw, operand, columns, gradient.parameters[role],
             workspace.squares_of(role), first, last);
    };
    const W *of_x, *of_h, *operand;
    if constexpr (kTerms<W> > 1) {
      of_x = workspace.rounded_x, of_h = workspace.rounded_h;
      operand = workspace.rounded_operand;
    } else {
      of_x = workspace.x, of_h = workspace.h, operand = workspace.operand;
    }
    add(input_matrix, units, {cell.input_slot, 0, G, H, H}, of_x, I);
    for (int p = 0; p < cell.phases && !cell.elementwise; ++p)
      add(recurrent_matrix, units,
          {cell.recurrent_slot, cell.phase[p].first, cell.phase[p].count, H, workspace.heads.size},
          p == 0 ? of_h : operand, workspace.head_width());
    if (cell.projects) {
      const int behind_all = static_cast<int>(workspace.slots());
      add(projection_matrix, all.share_of(P), {&behind_all, 0, 1, P, P}, operand, H);
    }
    const auto add_column_sums = [&](Role role, int count, const int* slot) {
      column_sums(all, all.share_of(count), slot, gradient.parameters[role],
                  workspace.squares_of(role), first, last);
    };
    add_column_sums(unit_vectors, cell.vectors, cell.vector_slot);
    if (cell.normalizes) {
      add_column_sums(state_gain, 1, cell.vector_slot);
      add_column_sums(state_bias, 1, cell.vector_slot + 1);
      norm_sums(all, false, first, last);
      norm_sums(all, true, first, last);
      return;
    }
    add_column_sums(input_bias, cell.gates, cell.input_slot);
    add_column_sums(recurrent_bias, cell.gates, cell.recurrent_slot);
  }

  // dL/da of all the chunk's rows in one slot, from `unit` on: a cache line of units a row.
  const T* da_column(Index slot, Index unit) const {
    const Index column = slot * padded<T>(H) + unit, line = kLine<T>;
    return workspace.da_lines + column / line * chunk_rows() * line + column % line;
  }
  // The same as the products take them.
  const T* operand_column(Index slot, Index unit) const {
    if constexpr (kTerms<W> == 1) return da_column(slot, unit);
    const Index column = slot * padded<T>(H) + unit, line = kLine<T>;
    return workspace.rounded_lines + column / line * operand_depth().length * line + column % line;
  }
  Depth operand_depth() const {
    const Index n = chunk_rows();
    const bool pairs = kTerms<W> > 1 && sums_pairs();
    return {1, pairs ? elements_of<W>(n) : n, kLine<T>, {0}, pairs};
  }

  // Units whose dL/da of a chunk stay in the second-level cache while columns pass by.
  static constexpr Index units_at_once = 128;

  // The rows of a matrix's gradient that one product adds to: those of gates [gate, gate + count),
  // `width` each, with dL/da in the slots of these gates. Of each gate, every `head` rows have
  // another operand.
  struct MatrixRows {
    const int* slot;
    Index gate, count, width, head;
  };

  // dW[unit, column] += sum over the chunk's rows of da[row, unit] operand[row, column], for the
  // rows of dW in `units`.
  void matrix(const Team& all, Range units, const MatrixRows& of, const W* operand, Index columns,
              T* out, double* squares, bool first, bool last) const {
    const Index n = elements_of<W>(chunk_rows());
    const Depth depth = operand_depth();
    const Index end = least(units.last, (of.gate + of.count) * of.width);
    Index size;
    for (Index from = most(units.first, of.gate * of.width); from < end; from += size) {
      size = least(units_at_once, end - from);
      const W* of_head = operand;
      if (of.head != of.width) {
        const Index unit = from % of.width;
        size = least(size, of.head - unit % of.head);
        of_head += unit / of.head * blocks_of<T>(columns) * kLanes<T> * n;
      }
      for (Index i = 0; i < size; ++i) {
        row_ptrs.a[i] = operand_column(of.slot[(from + i) / of.width], (from + i) % of.width);
        row_ptrs.to[i] = out + (from + i) * columns;
      }
      product<1>(*all.token, size, row_ptrs.a, depth, of_head, Range{0, blocks_of<T>(columns)},
                 false, Target<T>{row_ptrs.to, nullptr, first, false, columns},
                 [&](Index block, int np) {
                   if (!last) return;
                   finalize_gradient(row_ptrs.to, size, squares + from * kSquareLanes<T>,
                                     {block * kLanes<T>, least(columns, (block + np) * kLanes<T>)});
                 });
      if (all.stopped()) return;  // the product was cut short
    }
  }

  // out[unit] += sum over the chunk's rows of a slot's [row, unit], for each of some slots.
  void column_sums(const Team& all, Range slots, const int* slot, T* out, double* squares,
                   bool first, bool last) const {
    if (!out) return;
    // Several sums side by side: one alone waits for each addition.
    constexpr Index together = 4, width = together * kLanes<T>;
    const Index n = chunk_rows();
    for (Index g = slots.first; g < slots.last; ++g)
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
        if (last) finalize_gradient(&row, 1, squares + g * kSquareLanes<T>, {j, end});
        if (!all.worked(together * n)) return;
      }
  }

  // The same for a gain of layer norm and the bias beside it: sums of da n, with n the product
  // normalized, and of da.
  void norm_sums(const Team& all, bool of_h, bool first, bool last) const {
    const Role roles[] = {of_h ? recurrent_gain : input_gain, of_h ? recurrent_bias : input_bias};
    const Range gates = all.share_of(cell.gates);
    const Index size = gates.size() * H;
    for (const Role role : roles)
      for (Index i = 0; first && !alone && gradient.parameters[role] && i < size; ++i)
        gradient.parameters[role][gates.first * H + i] = T(0);
    for (Index i = 0; !alone && i < steps; ++i)
      for (Index t = step_at(i), r = 0; r < alive_at(rows, t); ++r) {
        const Index row = rows_before(rows, t) + r;
        add_gains(side_of(of_h, d.saved + row * cell.saved * padded<T>(H), own_da_row(t, r),
                          d.moments + row * kMoments, nullptr),
                  of_h, gates.first, gates.last);
        if (!all.worked(4 * blocks_of<T>(size))) return;
      }
    for (const Role role : roles)
      for (Index g = gates.first; last && gradient.parameters[role] && g < gates.last; ++g) {
        T* const row = gradient.parameters[role] + g * H;
        finalize_gradient(&row, 1, workspace.squares_of(role) + g * kSquareLanes<T>, {0, H});
      }
  }
  // What one row adds to them, for some gates.
  void add_gains(const NormSide<T>& side, bool of_h, Index first, Index last) const {
    T* const gain = gradient.parameters[of_h ? recurrent_gain : input_gain];
    T* const bias = gradient.parameters[of_h ? recurrent_bias : input_bias];
    for (Index g = first; g < last; ++g)
      side.add_gradients(static_cast<int>(g), gain + g * H, bias ? bias + g * H : nullptr);
  }

  // The end of some columns of n rows of parameter gradients: finiteness, value clip, squares.
  void finalize_gradient(T* const* rows_of_dw, Index n, double* lanes, Range columns) const {
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
    if (!all_zero<T>(zero_or_nan)) __atomic_store_n(workspace.finite, 0, __ATOMIC_RELAXED);
  }

  // dL/dx of the chunk's rows.
  void inputs(const Team& all) const {
    const Range mine = all.share_of(chunk_rows());
    const Index size = workspace.da_row_size(), own = workspace.summed_size();
    Index k = 0, n = 0;  // rows of the steps before, and of those this thread's
    for (Index t = first_step; t < first_step + steps; ++t) {
      const Index count = alive_at(rows, t), last = least(count, mine.last - k);
      T* const da = da_row(t, 0);
      T* const dx_t = dx.data + t * dx.time_stride;
      for (Index r = most(0, mine.first - k); r < last; ++r) {
        row_ptrs.a[n] = da + r * size;
        if (cell.reads_x) row_ptrs.own_dx[n] = da + r * size + own;
        row_ptrs.to[n++] = dx_t + row_of(rows, r) * dx.row_stride;
      }
      k += count;
    }
    Depth depth{cell.gates, H, 1, {}};
    for (int g = 0; g < cell.gates; ++g) depth.start[g] = cell.input_slot[g] * padded<T>(H);
    // From what the cell itself adds, in its place, and then to dx: of two directions each adds its
    // whole part.
    const Target<T> target = cell.reads_x
                                 ? Target<T>{row_ptrs.own_dx, nullptr, false, false, padded<T>(H)}
                                 : Target<T>{row_ptrs.to, nullptr, true, adds_dx, I};
    const T* const* const a = rounded(workspace.rounded_da, mine.first, n, depth);
    product<1>(*all.token, n, a, depth, static_cast<const W*>(workspace.input),
               Range{0, blocks_of<T>(I)}, false, target, [&](Index block, int np) {
                 if (cell.reads_x) move_own_dx(n, block, np);
               });
  }
  void move_own_dx(Index n, Index block, int np) const {
    const Index end = least(I, (block + np) * kLanes<T>);
    for (Index i = 0; i < n; ++i)
      for (Index j = block * kLanes<T>; j < end; j += kLanes<T>) {
        T* const to = row_ptrs.to[i] + j;
        const V own = load(row_ptrs.own_dx[i] + j);
        store_n(to, adds_dx ? load_n(to, I - j) + own : own, I - j);
      }
  }
};

}  // namespace rnnkern::RNNKERN_ISA

// Forward through time for one direction of one layer: the only forward time loop there is.
#pragma once

#include "recurrence/noise.h"
#include "recurrence/row_norm.h"

namespace rnnkern::RNNKERN_ISA {

// Weights of one direction in panels of format W.
template <class T, class W = T>
struct ForwardWeights {
  const CellLayout* cell;
  Index H, P;
  Heads<T> heads;
  W* input;       // [blocks of H, I, G, lanes]
  W* recurrent;   // phases one behind the other: [blocks of H, range of P, gates of the phase,
                  // lanes]
  W* projection;  // [blocks of P, H, lanes]
  T* bias;        // [G, padded H] what the input's product starts from
  T* bias_hh;     // [G, padded H] what a gate whose recurrent part stands alone starts from
  T* vectors;     // [packed_vectors, padded H]
  // [G] where a gate's sums stand in a row of z: the input's, the recurrent ones.
  Index *input_place, *recurrent_place;
  // [any, G, padded H] inputs' products, bias and all, of which x names one by its number; null: x
  // is multiplied.
  const T* products;

  void allocate(Arena& arena, const CellLayout& of, const CellConstants& constants, Index I,
                Index hidden, Index outputs) {
    cell = &of, H = hidden, P = outputs, heads = Heads<T>::of(P, constants.heads);
    const Index width = blocks_of<T>(H) * kLanes<T> * of.gates;
    input = arena.allocate<W>(width * elements_of<W>(I));
    recurrent = arena.allocate<W>(of.elementwise ? 0 : width * elements_of<W>(heads.length));
    projection =
        arena.allocate<W>(of.projects ? blocks_of<T>(P) * kLanes<T> * elements_of<W>(H) : 0);
    bias = arena.allocate<T>(of.gates * padded<T>(H));
    bias_hh = arena.allocate<T>(of.gates * padded<T>(H));
    vectors = arena.allocate<T>(packed_vectors(of) * padded<T>(H));
    input_place = arena.allocate<Index>(kMostGates);
    recurrent_place = arena.allocate<Index>(kMostGates);
    products = nullptr;
  }
  Index product_size() const { return cell->gates * padded<T>(H); }
  // What the input's products start from; null: zeros, for layer norm comes before the bias.
  const T* start() const { return cell->normalizes ? nullptr : bias; }

  // The products of some of the rows of x [any, I]: the chains that a call computes.
  void multiply(CancelToken& token, const T* x, Index I, Range rows, T* out) const {
    with_gates(cell->gates, [&](auto gates) {
      constexpr Index at_once = 64;
      const T* from[at_once];
      T* to[at_once];
      for (Index r = rows.first; r < rows.last; r += at_once) {
        const Index n = least(at_once, rows.last - r);
        for (Index i = 0; i < n; ++i)
          from[i] = x + (r + i) * I, to[i] = out + (r + i) * product_size();
        const Target<T> target{to, start(), cell->normalizes, false, padded<T>(H), input_place};
        product<decltype(gates)::value>(token, n, from, Depth{1, I, 1, {0}},
                                        static_cast<const W*>(input), {0, blocks_of<T>(H)}, false,
                                        target, [](Index, int) {});
        if (!go_on(token, n)) return;
      }
    });
  }
  W* panels(int phase) const {
    return recurrent +
           blocks_of<T>(H) * kLanes<T> * cell->phase[phase].first * elements_of<W>(heads.length);
  }
  void pack(const CellFunctions<T>& functions, const Direction<T>& d, Index I,
            const Team& team) const {
    const Range blocks = team.share_of(blocks_of<T>(H));
    CancelToken& token = *team.token;
    const int G = cell->gates;
    const auto gates = [&](const T* w, int first, int count, const Heads<T>& of, W* out) {
      with_gates(count, [&](auto n) {
        pack_gates<decltype(n)::value>(token, w, first, H, of, blocks, out);
      });
    };
    gates(d.parameters[input_matrix], 0, G, Heads<T>::of(I, 1), input);
    for (int p = 0; p < cell->phases && !cell->elementwise; ++p)
      gates(d.parameters[recurrent_matrix], cell->phase[p].first, cell->phase[p].count, heads,
            panels(p));
    if (cell->projects)
      pack_gates<1>(token, d.parameters[projection_matrix], 0, P, Heads<T>::of(H, 1),
                    team.share_of(blocks_of<T>(P)), projection);
    if (team.index != 0) return;
    for (int g = 0; g < G; ++g) {
      input_place[g] = cell->input_slot[g] * padded<T>(H);
      recurrent_place[g] = cell->recurrent_slot[g] * padded<T>(H);
    }
    const T *const b_ih = d.parameters[input_bias], *const b_hh = d.parameters[recurrent_bias];
    pack_vectors(*cell, d.parameters, H, vectors);
    if (functions.prepare) functions.prepare(vectors, padded<T>(H));
    pack_bias(b_hh, static_cast<const T*>(nullptr), G, H, bias_hh);
    for (int g = 0; g < G; ++g)
      pack_bias(b_ih ? b_ih + g * H : nullptr,
                b_hh && !cell->stands_alone(g) ? b_hh + g * H : nullptr, 1, H,
                bias + g * padded<T>(H));
  }
};

// Values of one row at one step that a gate's product writes and the cell reads again.
inline Index row_slots(const CellLayout& cell) { return most(cell.saved, cell.gates); }

// What one direction needs while it runs.
template <class T, class W = T>
struct ForwardWorkspace {
  // The input's products of a chunk stay in cache, and yet are of rows enough for the weights that
  // they bring to the cache.
  static constexpr Index z_bytes = 256 * 1024, z_rows = 128;
  ForwardWeights<T, W> weights;
  T* h[2];          // [B, padded P] h, before and after, in turns
  T* c;             // [states but h, B, padded H]
  T* operand;       // [B, padded H] of phase 1, or of the projection
  T* z;             // [chunk, B, slots, padded H], unless kept on the tape
  T* moments;       // [B, kMoments] of layer norm, unless kept on the tape
  T* noise;         // [noises, B, padded H] of the step at hand
  Index chunk = 0;  // steps

  // most_steps: of a chunk.
  void allocate(Arena& arena, const CellLayout& cell, const CellConstants& constants,
                const Schedule& s, Index I, Index H, Index P, bool packed, Index most_steps) {
    const Index row = padded<T>(H) * row_slots(cell);
    chunk = most(1, least(s.T, most_steps));
    if (chunk > 1) {
      const Index rows = most(z_rows, z_bytes / (row * static_cast<Index>(sizeof(T))));
      chunk = most(1, least(chunk, rows / most(1, s.B)));
    }
    if (!packed) weights.allocate(arena, cell, constants, I, H, P);
    for (T*& half : h) half = arena.allocate<T>(s.B * padded<T>(P));
    c = arena.allocate<T>(cell.carried * s.B * padded<T>(H));
    operand = arena.allocate<T>(cell.has_operand() ? s.B * padded<T>(H) : 0);
    z = arena.allocate<T>(chunk * s.B * row);
    moments = arena.allocate<T>(cell.normalizes ? s.B * kMoments : 0);
    noise = arena.allocate<T>(cell.noise ? kNoises * s.B * padded<T>(H) : 0);
  }
};

// Row pointers, one set a thread.
template <class T>
struct ForwardRowPointers {
  const T** x;           // [chunk * B]
  T** z;                 // [chunk * B]
  T** z_now;             // [B] of the step at hand
  const T** h[2];        // [B]
  const T** operand;     // [B]
  T** projected;         // [B] where the projection of the step at hand goes
  T* fresh;              // [padded P] h before a step that resets the row
  T* kept;               // [B] of the step at hand: 0 where a row's state before was reset, else 1
  ForwardStep<T>* step;  // [1] the step at hand
  // Where operands are rounded: those of the input's product of the chunk, those of the step.
  RoundedRows<T> rounded_x, rounded;
  void allocate(Arena& arena, Index chunk, Index B, Index P) {
    x = arena.allocate<const T*>(chunk * B);
    z = arena.allocate<T*>(chunk * B);
    z_now = arena.allocate<T*>(B);
    for (const T**& half : h) half = arena.allocate<const T*>(B);
    operand = arena.allocate<const T*>(B);
    projected = arena.allocate<T*>(B);
    fresh = arena.allocate<T>(padded<T>(P));
    kept = arena.allocate<T>(B);
    step = arena.allocate<ForwardStep<T>>(1);
  }
  void allocate_rounded(Arena& arena, Index chunk, Index B, Index I, Index H) {
    rounded_x.allocate(arena, chunk * B, I);
    rounded.allocate(arena, B, H);
  }
};

// T: of the arithmetic; W: of the weights in panels.
template <class T, class W = T>
struct Forward {
  using V = Vec<T>;
  const CellFunctions<T>& functions;
  const CellLayout& cell;
  const CellConstants& constants;
  const Schedule& rows;
  Index H, P, I;
  Sequence<const T> x;
  Sequence<T> y;
  const Direction<T>& d;
  bool reverse, from_end, last_outputs;  // as ForwardCall's
  NoiseSource<T> noise;
  const ForwardWorkspace<T, W>& workspace;
  const ForwardWeights<T, W>& weights;
  const ForwardRowPointers<T>& row_ptrs;
  WorkShare part;
  Index first_step = 0;  // of the chunk at hand
  int now = 0;           // which half of workspace.h holds h'

  bool keeps() const { return d.saved != nullptr && cell.saved > 0; }
  Index alive(Index t) const {
    return most(0, least(alive_at(rows, t), part.rows.last) - part.rows.first);
  }
  T* z_row(Index t, Index r) const {
    if (keeps()) return d.saved + (rows_before(rows, t) + r) * z_row_size();
    return workspace.z + ((t - first_step) * rows.B + r) * z_row_size();
  }
  Index z_row_size() const { return (keeps() ? cell.saved : row_slots(cell)) * padded<T>(H); }

  T* moments_row(Index t, Index r) const {
    return keeps() ? d.moments + (rows_before(rows, t) + r) * kMoments
                   : workspace.moments + r * kMoments;
  }

  // This thread's blocks of h: of units where h is as wide as the gates.
  Range outputs() const {
    return cell.projects ? part.team.share_of(blocks_of<T>(P)) : part.blocks;
  }

  // A thread that is to leave early continues to the barrier.
  void run() {
    load_initial_state();
    if (!part.team.wait()) return;
    if (rows.T == 1 && cell.phases == 1 && !cell.projects && !cell.normalizes) {
      only_step();
      return;
    }
    for (Index done = 0; done < rows.T; done += workspace.chunk)
      if (!chunk(done)) return;
  }

  // The steps of a chunk, after `done` steps. False: leave.
  bool chunk(Index done) {
    const Index steps = least(workspace.chunk, rows.T - done);
    first_step = reverse ? rows.T - done - steps : done;
    input_product(input_rows(steps), part.blocks);
    for (Index i = 0; i < steps; ++i)
      if (!step(reverse ? first_step + steps - 1 - i : first_step + i)) return false;
    return true;
  }

  // Both products of some units, then of the next: so the second half of them all stays in cache
  // for the next call.
  void only_step() {
    with_gates(cell.gates, [&](auto gates) { only_step_of<decltype(gates)::value>(); });
  }
  template <int G>
  void only_step_of() {
    const Index n = alive(0), width = blocks_at_once<G>(n, H);
    reset(0, n);
    draw_noise(0, n);
    const Index count = ceil_div(part.blocks.size(), width);
    const Operands of_x = input_rows(1);
    start_step(0, n);
    const Operands of_h = recurrent_rows(0, n);
    for (Index i = 0; i < count && n > 0; ++i) {
      const Index first = part.blocks.first + (from_end ? count - 1 - i : i) * width;
      const Range blocks{first, least(first + width, part.blocks.last)};
      input_product<G>(of_x, blocks);
      phase<G>(0, of_h, blocks);
      if (part.team.stopped()) break;
    }
    if (n == 0 || !part.team.wait()) return;
    now ^= 1;
    for (Index r = part.rows.first; r < part.rows.first + n; ++r) {
      store_final_state(r);
      if (!part.team.worked(kRowOperations + part.blocks.size())) return;
    }
  }

  // What is the same at every step, for the cell's maths.
  void start_steps() const {
    const Index first = part.rows.first, Hp = padded<T>(H);
    ForwardStep<T>& s = *row_ptrs.step;
    s.constants = &constants, s.vectors = weights.vectors, s.z = row_ptrs.z_now;
    s.c = cell.carried ? workspace.c + first * Hp : nullptr;
    s.operand = cell.has_operand() ? workspace.operand + first * Hp : nullptr;
    s.carried = nullptr, s.x = nullptr, s.moments = nullptr;
    s.y_row = y.row_stride, s.x_row = x.row_stride, s.state = rows.B * Hp;
    s.order = rows.order ? rows.order + first : nullptr;
    s.kept = rows.resets ? row_ptrs.kept + first : nullptr;
    s.H = H, s.Hp = Hp, s.keeps = keeps();
    for (int of = 0; cell.noise && of < kNoises; ++of) {
      s.noise[of] = noise.draws(of) ? noise_row(of, first) : nullptr;
      s.mean[of] = noise.mean(of);
    }
  }

  // Copies the initial states to where the loop wants them, for this thread's units.
  void load_initial_state() {
    start_steps();
    const Range own = outputs();
    const Index Hp = padded<T>(H), Pp = padded<T>(P), started = rows.T > 0 ? alive_at(rows, 0) : 0;
    const auto start = [&](int state, Index width, Index stride, Range blocks, T* to, Index r) {
      const Index caller = row_of(rows, r) * width, end = least(width, blocks.last * kLanes<T>);
      for (Index j = blocks.first * kLanes<T>; j < end; j += kLanes<T>) {
        const V v = d.first[state] ? load_n(d.first[state] + caller + j, end - j)
                                   : splat(cell.template fresh<T>(state));
        store(to + r * stride + j, v);
        if (r >= started) store_n(d.last[state] + caller + j, v, end - j);  // no step will
      }
    };
    for (Index r = part.rows.first; r < part.rows.last; ++r) {
      start(0, P, Pp, own, workspace.h[0], r);
      if (rows.count)
        start(0, P, Pp, own, workspace.h[1], r);  // back in time, rows join at any step
      for (int k = 0; k < cell.carried; ++k)
        start(1 + k, H, Hp, part.blocks, workspace.c + k * rows.B * Hp, r);
      for (int half = 0; half < 2; ++half) row_ptrs.h[half][r] = workspace.h[half] + r * Pp;
      if (cell.has_operand()) row_ptrs.operand[r] = workspace.operand + r * Hp;
      if (!part.team.worked(kRowOperations + own.size())) return;
    }
    if (rows.resets)
      for (Index j = 0; j < Pp; ++j) row_ptrs.fresh[j] = cell.template fresh<T>(0);
    if (!rows.count && !last_outputs) return;
    const Index from = own.first * kLanes<T>, to = least(P, own.last * kLanes<T>);
    const auto clear = [&](Index t, Index r) {
      for (Index j = from; j < to; ++j)
        y.data[t * y.time_stride + row_of(rows, r) * y.row_stride + j] = T(0);
      return part.team.worked(own.size());
    };
    if (last_outputs) {  // of rows that have no last step
      for (Index r = most(started, part.rows.first); r < part.rows.last; ++r)
        if (!clear(0, r)) return;
      return;
    }
    for (Index t = 0; t < rows.T; ++t)  // outputs behind a row's end
      for (Index r = part.rows.first + alive(t); r < part.rows.last; ++r)
        if (!clear(t, r)) return;
  }

  // Rows that a product takes, and how.
  struct Operands {
    Index n;
    const T* const* rows;
    Depth depth;
  };

  // The rows of x of the chunk, and where their products go.
  Operands input_rows(Index steps) const {
    const Index first = part.rows.first, size = z_row_size();
    Index n = 0;
    for (Index t = first_step; t < first_step + steps; ++t) {
      const Index count = alive(t);
      const T* const x_t = x.data + t * x.time_stride;
      T* const z = z_row(t, first);
      for (Index i = 0; i < count; ++i, ++n) {
        row_ptrs.x[n] = x_t + row_of(rows, first + i) * x.row_stride;
        row_ptrs.z[n] = z + i * size;
      }
      if (!part.team.worked(count * kRowOperations)) return {0, row_ptrs.x, {}};
    }
    if (weights.products) return {n, row_ptrs.x, {}};
    return rounded(row_ptrs.rounded_x, n, row_ptrs.x, Depth{1, I, 1, {0}});
  }
  // Rows as they are, or rounded as the layer's precision asks.
  RNNKERN_MEMBER Operands rounded(const RoundedRows<T>& to, Index n, const T* const* a,
                                  Depth depth) const {
    if constexpr (kTerms<W> > 1)
      if (constants.precision == Precision::bf16_products) a = round_rows(to, 0, n, a, depth);
    return {n, a, depth};
  }

  // The input's part of the gates' arguments.
  void input_product(const Operands& of_x, Range blocks) const {
    with_gates(cell.gates,
               [&](auto gates) { input_product<decltype(gates)::value>(of_x, blocks); });
  }
  template <int G>
  void input_product(const Operands& of_x, Range blocks) const {
    const auto done = [&](Index block, int np) {
      for (int g = 0; cell.has_sums_alone && g < G; ++g)
        if (cell.stands_alone(g)) start_alone(g, of_x.n, block, np);
    };
    if (weights.products) {
      if (look_up(of_x.n, blocks)) done(blocks.first, static_cast<int>(blocks.size()));
      return;
    }
    const Target<T> target{row_ptrs.z, weights.start(), cell.normalizes,
                           false,      padded<T>(H),    weights.input_place};
    product<G>(*part.team.token, of_x.n, of_x.rows, of_x.depth,
               static_cast<const W*>(weights.input), blocks, false, target, done);
  }
  // Copies the products that x names, computed before. False: leave.
  bool look_up(Index n, Range blocks) const {
    for (Index i = 0; i < n; ++i) {
      const T* const from =
          weights.products + static_cast<Index>(*row_ptrs.x[i]) * weights.product_size();
      for (int g = 0; g < cell.gates; ++g)
        for (Index b = blocks.first; b < blocks.last; ++b) {
          const Index j = weights.input_place[g] + b * kLanes<T>;
          store(row_ptrs.z[i] + j, load(from + j));
        }
      if (!part.team.worked(cell.gates * blocks.size())) return false;
    }
    return true;
  }
  // What a recurrent sum that stands alone starts from.
  void start_alone(int g, Index n, Index block, int np) const {
    const Index Hp = padded<T>(H);
    for (Index j = block * kLanes<T>; j < (block + np) * kLanes<T>; j += kLanes<T>) {
      const V bias = load(weights.bias_hh + g * Hp + j);
      for (Index i = 0; i < n; ++i) store(row_ptrs.z[i] + cell.recurrent_slot[g] * Hp + j, bias);
    }
  }

  // False: leave.
  bool step(Index t) {
    const Index n = alive(t);
    if (n == 0) return true;
    reset(t, n);
    draw_noise(t, n);
    start_step(t, n);
    for (int p = 0; p < cell.phases; ++p) {
      if (!phase(p, recurrent_rows(p, n), part.blocks) || !meet()) return false;
    }
    if (cell.projects) {
      project(t, n);
      if (!meet()) return false;
    }
    now ^= 1;
    const Index after = reverse ? (t == 0 ? 0 : n) : (t + 1 == rows.T ? 0 : alive(t + 1));
    for (Index r = part.rows.first + after; r < part.rows.first + n; ++r) store_final_state(r);
    return true;
  }

  // The team meets where a product is to read what all of its threads have written. False: leave.
  bool meet() const { return cell.elementwise ? !part.team.stopped() : part.team.wait(); }

  // Rows whose state before step t is fresh: the product reads it elsewhere, for other threads'
  // units of h' are not this thread's to write.
  void reset(Index t, Index n) const {
    if (!rows.resets) return;
    const Index Hp = padded<T>(H), Pp = padded<T>(P);
    const auto clear = [&](int state, T* row, Range blocks) {
      const V fresh = splat(cell.template fresh<T>(state));
      for (Index j = blocks.first * kLanes<T>; j < blocks.last * kLanes<T>; j += kLanes<T>)
        store(row + j, fresh);
    };
    for (Index r = part.rows.first; r < part.rows.first + n; ++r) {
      const bool resets = is_reset(rows, t, r, reverse);
      row_ptrs.h[now][r] = resets ? row_ptrs.fresh : workspace.h[now] + r * Pp;
      row_ptrs.kept[r] = resets ? T(0) : T(1);
      if (!resets) continue;
      clear(0, workspace.h[now] + r * Pp, outputs());
      for (int k = 0; k < cell.carried; ++k)
        clear(1 + k, workspace.c + (k * rows.B + r) * Hp, part.blocks);
    }
  }

  // What the cell's maths of step t reads, for this thread's rows and units.
  T* noise_row(int of, Index r) const { return workspace.noise + (of * rows.B + r) * padded<T>(H); }
  void draw_noise(Index t, Index n) const {
    if (cell.noise) noise.draw(t, part, n, [&](int of, Index r) { return noise_row(of, r); });
  }

  // Hands out the states of a row at its own last step.
  void store_final_state(Index r) const {
    const auto hand_out = [&](int state, Index width, Range blocks, const T* from) {
      const Index to = least(width, blocks.last * kLanes<T>), caller = row_of(rows, r) * width;
      for (Index j = blocks.first * kLanes<T>; j < to; j += kLanes<T>)
        store_n(d.last[state] + caller + j, load(from + r * padded<T>(width) + j), to - j);
    };
    hand_out(0, P, outputs(), workspace.h[now]);
    for (int k = 0; k < cell.carried; ++k)
      hand_out(1 + k, H, part.blocks, workspace.c + k * rows.B * padded<T>(H));
  }

  // The projection of the cell's outputs, and what follows from it: its clip, h and y.
  void project(Index t, Index n) const {
    const Index first = part.rows.first, Pp = padded<T>(P);
    const V bound = splat(static_cast<T>(constants.projection_clip));
    for (Index i = 0; i < n; ++i) row_ptrs.projected[i] = workspace.h[now ^ 1] + (first + i) * Pp;
    const Operands of = rounded(row_ptrs.rounded, n, row_ptrs.operand + first, Depth{1, H, 1, {0}});
    product<1>(*part.team.token, n, of.rows, of.depth, static_cast<const W*>(weights.projection),
               outputs(), false, Target<T>{row_ptrs.projected, nullptr, true, false, Pp},
               [&](Index block, int np) {
                 for (Index i = 0; i < n; ++i)
                   for (Index j = block * kLanes<T>; j < (block + np) * kLanes<T>; j += kLanes<T>) {
                     V h = load(row_ptrs.projected[i] + j);
                     if (d.projected)
                       store(d.projected + (rows_before(rows, t) + first + i) * Pp + j, h);
                     store(row_ptrs.projected[i] + j, h = limit(h, -bound, bound));
                     store_n(
                         y.data + t * y.time_stride + row_of(rows, first + i) * y.row_stride + j, h,
                         P - j);
                   }
               });
  }

  // Layer norm of both products and the cell's maths on them; or, in two parts, with layer norm of
  // c between them. False: leave.
  bool normalized(const ForwardStep<T>& s, Index n) const {
    const Index work = 64 * part.blocks.size();  // of a row, in vector operations, about
    return normalize_rows(
        part.team, n, 0, cell.normalizes_state ? 3 : 1, work, [&](int stage, Index i) {
          T* const moments = s.moments + i * kMoments;
          if (stage % 2 == 1) {
            functions.part[stage / 2].forward(s, i, part.blocks);
          } else if (stage == 2) {
            moments_of(s.c + i * s.Hp, 1, s.Hp, H, kNormEpsilon, moments + kStateMoments);
          } else {
            const T* const z = s.z[i];
            moments_of(z, cell.gates, s.Hp, H, kNormEpsilon, moments + kInputMoments);
            moments_of(z + cell.gates * s.Hp, cell.gates, s.Hp, H, kNormEpsilon,
                       moments + kRecurrentMoments);
          }
        });
  }

  // Where the values of step t are, for the cell's maths.
  void start_step(Index t, Index n) const {
    const Index Hp = padded<T>(H), first = part.rows.first, skipped = first * Hp;
    T* const z = z_row(t, first);
    const Index z_size = z_row_size();
    for (Index i = 0; i < n; ++i) row_ptrs.z_now[i] = z + i * z_size;
    ForwardStep<T>& s = *row_ptrs.step;
    s.h_before = workspace.h[now] + skipped, s.h = workspace.h[now ^ 1] + skipped;
    s.y = y.data + t * y.time_stride + (rows.order ? 0 : first * y.row_stride);
    if (d.carried) s.carried = d.carried + (rows_before(rows, t) + first) * cell.carried * Hp;
    if (cell.reads_x) s.x = x.data + t * x.time_stride + (rows.order ? 0 : first * x.row_stride);
    if (cell.normalizes) s.moments = moments_row(t, first);
  }
  // What the recurrent product of a phase multiplies: h', or the phase's operand. With heads, the
  // rows as they are: each range is rounded by itself.
  RNNKERN_MEMBER Operands recurrent_rows(int index, Index n) const {
    const T* const* const a = (index == 0 ? row_ptrs.h[now] : row_ptrs.operand) + part.rows.first;
    const Depth depth{1, weights.heads.length, 1, {0}};
    if (cell.elementwise || !weights.heads.is_one()) return {n, a, depth};
    return rounded(row_ptrs.rounded, n, a, depth);
  }

  // The recurrent product of one phase's gates, and the cell's maths on what it leaves in cache.
  // False: leave.
  bool phase(int index, const Operands& of_h, Range blocks) const {
    return with_gates(cell.phase[index].count, [&](auto gates) {
      return phase<decltype(gates)::value>(index, of_h, blocks);
    });
  }
  template <int G>
  bool phase(int index, const Operands& of_h, Range blocks) const {
    const auto& maths = functions.phase[index];
    const Index Hp = padded<T>(H), n = of_h.n;
    const ForwardStep<T>& s = *row_ptrs.step;
    if (cell.elementwise) {
      maths.forward(s, n, blocks.first, static_cast<int>(blocks.size()));
      constexpr Index vector_operations = 32;  // of a cell's maths, about
      part.team.worked(n * blocks.size() * vector_operations);
      return true;
    }
    const Target<T> target{
        row_ptrs.z_now, nullptr, cell.normalizes,
        false,          Hp,      weights.recurrent_place + cell.phase[index].first};
    const W* const panels = weights.panels(index);
    const bool backwards = from_end != (now == 1);
    for (Index first_block = blocks.first, end; first_block < blocks.last; first_block = end) {
      end = weights.heads.next_range(first_block, blocks.last);
      const Range of_range{first_block, end};
      const Operands of = operands_of_range(of_h, first_block);
      const auto cell_maths = [&](Index block, int np) {
        if (!cell.normalizes) maths.forward(s, n, block, np);
      };
      if constexpr (kTerms<W> == 1)
        if (n == 1 && !cell.normalizes) {
          one_row_product<G>(*part.team.token, of.rows, of.depth, panels, of_range, backwards,
                             target, [&](const TileCall<T>& call, Index block, int np) {
                               maths.tile[tile_index(np)](s, call, block);
                             });
          continue;
        }
      product<G>(*part.team.token, n, of.rows, of.depth, panels, of_range, backwards, target,
                 cell_maths);
    }
    return cell.normalizes ? normalized(s, n) : true;
  }
  RNNKERN_MEMBER Operands operands_of_range(const Operands& of_h, Index block) const {
    if (weights.heads.is_one()) return of_h;
    Depth depth = of_h.depth;
    depth.start[0] = weights.heads.range_of(block);
    return rounded(row_ptrs.rounded, of_h.n, of_h.rows, depth);
  }
};

}  // namespace rnnkern::RNNKERN_ISA

// What a call of the core has to give, to the bit: the order of every sum, written to be read.
//
// The second statement of forward.h, backward.h and stack.h: one row, one step, one chain at a
// time, on plain arrays. There are no panels, tiles, chunks, threads or workspaces in here, because
// none of them may leave a trace. The cells' pointwise maths is the core's own (core/cells/), and
// so is the generator behind dropout.
//
// Compiled with the flags of a set that multiplies and adds as the sets under test do: rounding
// once, or, as the x86-64 baseline, twice. Call it within the kernels' floating-point environment.
#pragma once

#undef RNNKERN_ISA
#define RNNKERN_ISA naive

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cells/all.h"
#include "training/random.h"

namespace rnnkern::RNNKERN_ISA {

#if defined(__FMA__) || defined(__aarch64__)
inline constexpr bool kFused = true;
#else
inline constexpr bool kFused = false;
#endif

template <class T>
T multiply_add(T a, T b, T c) {
  if constexpr (kFused) return std::fma(a, b, c);
  return a * b + c;
}

// The upper half of a float, to nearest even; zero for subnormals.
inline float as_bf16(float value) {
  if (!std::isfinite(value)) return value;
  if (std::fabs(value) < 0x1p-126f) return std::copysign(0.0f, value);
  // Added to a number 1.5 * 2^45 times as large in its binade, a double keeps eight bits.
  const double wide = value;
  std::uint64_t bits;
  std::memcpy(&bits, &wide, sizeof bits);
  bits = ((bits & 0x7ff0000000000000u) + (std::uint64_t{45} << 52)) | 0x0008000000000000u;
  double large;
  std::memcpy(&large, &bits, sizeof large);
  return static_cast<float>((wide + large) - large);
}
inline double as_bf16(double value) { return value; }  // products of doubles are never rounded

// The operands of a product: a weight, and what it is multiplied by.
template <class T>
T weight_of(Precision precision, T w) {
  return precision == Precision::full ? w : as_bf16(w);
}
template <class T>
T operand_of(Precision precision, T a) {
  return precision == Precision::bf16_products ? as_bf16(a) : a;
}

// to[j] += sum over k of a[k] w[j, k]: for each j one chain over rising k, from what is in to[j].
// w[j, k] is at w[j * across + k * along].
template <class T>
void add_product(Precision precision, T* to, Index n, const T* a, Index depth, const T* w,
                 Index across, Index along) {
  for (Index k = 0; k < depth; ++k)
    for (Index j = 0; j < n; ++j)
      to[j] = multiply_add(operand_of(precision, a[k]),
                           weight_of(precision, w[j * across + k * along]), to[j]);
}

// How long each row lives, and the order of rows in sums and on the tape: the longest first, of
// equally long ones the caller's first.
struct Rows {
  Index T, B;
  std::vector<Index> length;  // [B] by the caller's row
  std::vector<Index> order;   // [B] the caller's rows
  std::vector<Index> before;  // [T + 1] rows alive at all steps before
  const unsigned char* resets;

  // lengths: null where every row lives for all of T.
  Rows(const Schedule& s, const Index* lengths) : T(s.T), B(s.B), resets(s.resets) {
    for (Index b = 0; b < B; ++b) length.push_back(lengths ? lengths[b] : T);
    for (Index n = T; n >= 0; --n)
      for (Index b = 0; b < B; ++b)
        if (length[b] == n) order.push_back(b);
    before.push_back(0);
    for (Index t = 0; t < T; ++t) before.push_back(before.back() + alive(t));
  }
  Index alive(Index t) const {
    return std::count_if(length.begin(), length.end(), [&](Index n) { return n > t; });
  }
  // Whether the state before step t is zero. In reverse, step t + 1 came before.
  bool is_reset(Index t, Index b, bool reverse) const {
    return resets && resets[(reverse ? t + 1 : t) * B + b] != 0;
  }
};

template <class T>
Sequence<T> columns_from(const Sequence<T>& s, Index column) {
  return {s.data ? s.data + column : nullptr, s.time_stride, s.row_stride};
}
template <class T>
T* at(const Sequence<T>& s, Index t, Index b) {
  return s.data + t * s.time_stride + b * s.row_stride;
}

// Row b of a [B, width] state; null stands for elements of one value.
template <class T>
void set_state(std::vector<T>& to, const T* from, Index b, Index width, T fresh) {
  if (from) {
    to.assign(from + b * width, from + (b + 1) * width);
  } else {
    to.assign(width, fresh);
  }
}

// What a state's elements are where a sequence begins.
template <class Cell, class T>
T fresh_of(int state) {
  return static_cast<T>(Cell::info.states[state].fresh);
}

// A recurrent matrix of blocks on the diagonal: the columns of head n's rows are for its own h.
//
// All units of a cache line have equally many terms in their sums, those of other heads with zeros:
// from the first head that the line touches on, or from so many before the end; as many for each
// line as the line that touches the most heads needs.
template <class T>
struct HeadSums {
  Index units, size;
  Index length() const {
    Index most_heads = 0;
    for (Index first = 0; first < units; first += kLine<T>) {
      const Index last = std::min(units, first + kLine<T>) - 1;
      most_heads = std::max(most_heads, last / size - first / size + 1);
    }
    return most_heads * size;
  }
  Index first(Index unit, Index length) const {
    return std::min(unit / kLine<T> * kLine<T> / size * size, units - length);
  }
  // to[j] += sum over k of a[k] w[j, k]; of another head w[j, k] is zero. by_column: w[k, j].
  void add_product(Precision precision, T* to, const T* a, const T* w, bool by_column) const {
    const Index n = length();
    for (Index j = 0; j < units; ++j)
      for (Index i = 0; i < n; ++i) {
        const Index k = first(j, n) + i;
        const T w_jk = by_column ? w[k * size + j % size] : w[j * size + k % size];
        to[j] = multiply_add(operand_of(precision, a[k]),
                             j / size == k / size ? weight_of(precision, w_jk) : T(0), to[j]);
      }
  }
};

// The extent of a shape in a direction of these sizes.
inline Index extent_of(Extent extent, int gates, Index H, Index P, Index I, Index heads) {
  switch (extent) {
    case Extent::gates:
      return gates * H;
    case Extent::hidden:
      return H;
    case Extent::outputs:
      return P;
    case Extent::inputs:
      return I;
    case Extent::head:
      return P / heads;
    case Extent::one:
      break;
  }
  return 1;
}

// A vector of the cell's unit vectors; null stands for zeros.
template <class T>
Vec<T> vector_at(const Direction<T>& d, int vector, Index H, Index unit) {
  const T* const of = d.parameters[unit_vectors];
  return of ? load_n(of + vector * H + unit, H - unit) : Vec<T>{};
}

// A cell's noise in a direction of a layer: one word of the generator a value.
struct NaiveNoise {
  const CellConstants& constants;
  const Dropout& dropout;
  Index layer;
  bool reverse;

  template <class T>
  Vec<T> at(int of, Index t, Index b, Index unit) const {
    const double p = constants.noise[of];
    const bool is_factor = of == recurrent_dropout;
    if (!dropout.training || p == 0) return splat(static_cast<T>(is_factor ? 1 : 1 - p));
    const auto word32 = [](Index n) { return static_cast<std::uint32_t>(n); };
    Vec<T> values;
    for (Index i = 0; i < kLanes<T>; ++i) {
      const Index j = unit + i;
      const Words words =
          philox({{word32(j / 4), word32(dropout.first_row + b), word32(dropout.first + t),
                   word32((1 + 2 * of + reverse) * 65536 + layer)}},
                 mix(dropout.seed, dropout.step));
      const bool zero = words.of[j % 4] < static_cast<std::uint64_t>(p * 4294967296.0);
      values[i] = zero ? T(0) : static_cast<T>(is_factor ? 1 / (1 - p) : 1);
    }
    return values;
  }
};

// What a cell reads of them.
template <class Cell, class T>
void load_vectors(const Direction<T>& d, Index H, Index unit, Vec<T> (&to)[kMostVectors]) {
  for (int v = 0; v < Cell::vectors; ++v) to[v] = vector_at(d, v, H, unit);
  if constexpr (Cell::prepared != Cell::vectors) Cell::prepare(to);
}

// ---- layer norm --------------------------------------------------------------------------------

// A sum over the units of some vectors: by unit modulo a cache line, vector after vector, in
// doubles; then over these lanes.
template <class T>
struct LaneSum {
  double lane[kLine<T>] = {};
  double& of(Index unit) { return lane[unit % kLine<T>]; }
  double total() const {
    double sum = 0;
    for (const double one : lane) sum += one;
    return sum;
  }
};

// The mean and 1 / std of some vectors of H values.
template <class T>
void set_moments(const T* values, Index vectors, Index H, T* moments) {
  const double n = static_cast<double>(vectors * H);
  LaneSum<T> sum, squares;
  for (Index i = 0; i < vectors * H; ++i) sum.of(i % H) += static_cast<double>(values[i]);
  const double mean = sum.total() / n;
  for (Index i = 0; i < vectors * H; ++i) {
    const double d = static_cast<double>(values[i]) - mean;
    squares.of(i % H) = multiply_add(d, d, squares.of(i % H));
  }
  moments[0] = static_cast<T>(mean);
  moments[1] = static_cast<T>(1.0 / std::sqrt(squares.total() / n + 1e-5));
}

// (v - mean) / std.
template <class T>
T standardized(T v, const T* moments) {
  return (v - moments[0]) * moments[1];
}

// Element i of a parameter; null stands for zeros.
template <class T>
T element(const Direction<T>& d, Role role, Index i) {
  return d.parameters[role] ? d.parameters[role][i] : T(0);
}

// The gates' arguments from both products (2G, H): a, and x where the recurrent part stands alone.
template <class Cell, class T>
void set_arguments(const Direction<T>& d, Index H, const T* products, Index stride,
                   const T* moments, std::vector<T>& a, std::vector<T>& x) {
  for (Index g = 0; g < Cell::gates; ++g)
    for (Index j = 0; j < H; ++j) {
      const Index i = g * H + j;
      const T n_x = standardized(products[g * stride + j], moments + kInputMoments);
      const T n_h =
          standardized(products[(Cell::gates + g) * stride + j], moments + kRecurrentMoments);
      const T gain_x = element(d, input_gain, i), gain_h = element(d, recurrent_gain, i);
      const T b_x = element(d, input_bias, i), b_h = element(d, recurrent_bias, i);
      if (Cell::input_slot[g] == Cell::recurrent_slot[g]) {
        const T bias = d.parameters[recurrent_bias] ? b_x + b_h : b_x;
        a[i] = multiply_add(n_x, gain_x, multiply_add(n_h, gain_h, bias));
      } else {
        x[i] = multiply_add(n_x, gain_x, b_x);
        a[i] = multiply_add(n_h, gain_h, b_h);
      }
    }
}

// Layer norm of some units of c; sums: what its backward needs besides.
template <class T>
StateNorm<Vec<T>> state_norm(const Direction<T>& d, Index H, Index unit, const T* moments,
                             const T* sums) {
  const auto vector = [&](Role role) {
    const T* const of = d.parameters[role];
    return of ? load_n(of + unit, H - unit) : Vec<T>{};
  };
  return {splat(moments[kStateMoments]),
          splat(moments[kStateMoments + 1]),
          vector(state_gain),
          vector(state_bias),
          splat(sums[0]),
          splat(sums[1])};
}

// ---- forward -----------------------------------------------------------------------------------

// One direction of one layer.
template <class Cell, class T>
struct NaiveForward {
  static constexpr Index G = Cell::gates;
  const Cell& cell;
  const CellConstants& constants;
  const Rows& rows;
  Index H, P, I;
  Sequence<const T> x;
  Sequence<T> y;  // this direction's columns
  const Direction<T>& d;
  bool reverse;
  NaiveNoise noise;
  std::vector<T> a, saved, h, c[kMostCarried], operand, arguments_of_x, between;
  T kept = T(1);  // 0 where the state before the step was reset

  void run() {
    a.resize(G * H), saved.resize(Cell::saved * H);
    arguments_of_x.resize(G * H), between.resize(H);
    operand.resize(H);
    for (Index rank = 0; rank < rows.B; ++rank) row(rank, rows.order[rank]);
  }

  void row(Index rank, Index b) {
    set_state(h, d.first[0], b, P, fresh_of<Cell, T>(0));
    for (int k = 0; k < Cell::carried; ++k)
      set_state(c[k], d.first[1 + k], b, H, fresh_of<Cell, T>(1 + k));
    const Index length = rows.length[b];
    for (Index i = 0; i < length; ++i) step(reverse ? length - 1 - i : i, rank, b);
    std::copy_n(h.data(), P, d.last[0] + b * P);
    for (int k = 0; k < Cell::carried; ++k) std::copy_n(c[k].data(), H, d.last[1 + k] + b * H);
    for (Index t = length; t < rows.T; ++t) std::fill_n(at(y, t, b), P, T(0));
  }

  void step(Index t, Index rank, Index b) {
    if (rows.is_reset(t, b, reverse)) {
      h.assign(P, fresh_of<Cell, T>(0));
      for (int k = 0; k < Cell::carried; ++k) c[k].assign(H, fresh_of<Cell, T>(1 + k));
    }
    const Index place = rows.before[t] + rank, Hp = padded<T>(H);
    if constexpr (Cell::normalizes)
      normalized_step(t, b, place);
    else
      step_of_phases(t, b);
    if constexpr (Cell::projects) project(place);

    std::copy_n(h.data(), P, at(y, t, b));
    for (Index s = 0; d.saved && s < Cell::saved; ++s)
      std::copy_n(&saved[s * H], H, d.saved + (place * Cell::saved + s) * Hp);
    for (Index k = 0; d.carried && k < Cell::carried; ++k)
      std::copy_n(c[k].data(), H, d.carried + (place * Cell::carried + k) * Hp);
  }

  void step_of_phases(Index t, Index b) {
    // A gate whose recurrent part stands alone starts the input's part from b_ih, its own from
    // b_hh.
    const auto alone = [](Index g) { return Cell::recurrent_slot[g] != Cell::input_slot[g]; };
    const T *const b_ih = d.parameters[input_bias], *const b_hh = d.parameters[recurrent_bias];
    for (Index i = 0; i < G * H; ++i)
      a[i] = !b_ih ? T(0) : alone(i / H) || !b_hh ? b_ih[i] : b_ih[i] + b_hh[i];
    add_product(constants.precision, a.data(), G * H, at(x, t, b), I, d.parameters[input_matrix], I,
                1);
    for (Index g = 0; g < G; ++g) {
      if (!alone(g)) continue;
      std::copy_n(&a[g * H], H, &saved[g * H]);
      for (Index j = 0; j < H; ++j) a[g * H + j] = b_hh ? b_hh[g * H + j] : T(0);
    }
    kept = rows.is_reset(t, b, reverse) ? T(0) : T(1);
    phase<0>(h, t, b);
    if constexpr (Cell::phases > 1) phase<1>(operand, t, b);
  }

  // Both products apart, each from nothing; then the cell's parts, with the moments of c between.
  void normalized_step(Index t, Index b, Index place) {
    saved.assign(2 * G * H, T(0));
    T *const of_x = saved.data(), *const of_h = &saved[G * H];
    add_product(constants.precision, of_x, G * H, at(x, t, b), I, d.parameters[input_matrix], I,
                Index{1});
    add_product(constants.precision, of_h, G * H, h.data(), P, d.parameters[recurrent_matrix], P,
                Index{1});
    T moments[kMoments] = {};
    set_moments(of_x, G, H, moments + kInputMoments);
    set_moments(of_h, G, H, moments + kRecurrentMoments);
    set_arguments<Cell>(d, H, saved.data(), H, moments, a, arguments_of_x);
    part<0>(moments);
    if constexpr (Cell::normalizes_state) {
      set_moments(c[0].data(), 1, H, moments + kStateMoments);
      part<1>(moments);
    }
    if (d.moments) std::copy_n(moments, kMoments, d.moments + place * kMoments);
  }
  template <int index>
  void part(const T* moments) {
    for (Index j = 0; j < H; j += kLanes<T>) {
      const Index n = H - j;
      NormForward<Vec<T>> u;
      for (Index g = 0; g < G; ++g) u.a[g] = load_n(&a[g * H + j], n);
      for (Index g = 0; g < G; ++g) u.x[g] = load_n(&arguments_of_x[g * H + j], n);
      if constexpr (Cell::reads_h_before) u.h_before = load_n(&h[j], n);
      if constexpr (Cell::carried > 0) u.c_before = u.c = load_n(&c[0][j], n);
      const T none[2] = {};
      if constexpr (index == 1) u.norm = state_norm(d, H, j, moments, none);
      u.kept = load_n(&between[j], n);
      cell.template forward<index>(u);
      if constexpr (Cell::carried > 0) store_n(&c[0][j], u.c, n);
      constexpr bool last = index + 1 == Cell::parts;
      if constexpr (!last) store_n(&between[j], u.kept, n);
      if constexpr (last) store_n(Cell::projects ? &operand[j] : &h[j], u.output, n);
    }
  }

  // h = W_hr operand, one chain over the units for each output; then the clip.
  void project(Index place) {
    h.assign(P, T(0));
    add_product(constants.precision, h.data(), P, operand.data(), H,
                d.parameters[projection_matrix], H, Index{1});
    if (d.projected) std::copy_n(h.data(), P, d.projected + place * padded<T>(P));
    const T clip = static_cast<T>(constants.projection_clip);
    for (T& value : h) value = value < -clip ? -clip : value > clip ? clip : value;
  }

  template <int phase_index>
  void phase(const std::vector<T>& recurrent, Index t, Index b) {
    constexpr Phase ph = Cell::phase[phase_index];
    const T* const w = d.parameters[recurrent_matrix];
    if (constants.heads > 1)
      for (int g = ph.first; g < ph.first + ph.count; ++g)
        HeadSums<T>{H, H / constants.heads}.add_product(constants.precision, &a[g * H],
                                                        recurrent.data(),
                                                        w + g * H * (H / constants.heads), false);
    else if (!Cell::elementwise)
      add_product(constants.precision, &a[ph.first * H], ph.count * H, recurrent.data(), P,
                  w + ph.first * H * P, P, Index{1});
    for (Index j = 0; j < H; j += kLanes<T>) {
      const Index n = H - j;
      ForwardUnit<Vec<T>> u;
      for (int g = ph.first; g < ph.first + ph.count; ++g) u.a[g] = load_n(&a[g * H + j], n);
      for (int s = 0; s < Cell::saved; ++s)
        if (ph.reads >> s & 1u) u.saved[s] = load_n(&saved[s * H + j], n);
      if constexpr (Cell::reads_h_before) u.h_before = load_n(&h[j], n);
      load_vectors<Cell>(d, H, j, u.vectors);
      for (int k = 0; k < kNoises; ++k)
        if (Cell::noise >> k & 1u) u.noise[k] = noise.at<T>(k, t, b, j);
      for (int k = 0; k < Cell::carried; ++k) u.c_before[k] = load_n(&c[k][j], n);
      if constexpr (Cell::reads_x) u.x = load_n(at(x, t, b) + j, n);
      if constexpr (Cell::reads_kept) u.kept = splat(kept);
      cell.template forward<phase_index>(u);
      for (int s = 0; s < Cell::saved; ++s)
        if (ph.writes >> s & 1u) store_n(&saved[s * H + j], u.saved[s], n);
      constexpr bool last = phase_index + 1 == Cell::phases;
      if constexpr (!last || Cell::projects)
        store_n(&operand[j], u.operand, n);
      else
        store_n(&h[j], u.h, n);
      for (int k = 0; last && k < Cell::carried; ++k) store_n(&c[k][j], u.c[k], n);
    }
  }
};

// to = from * mask / (1 - p): one word of the generator an element.
template <class T>
void drop(const Dropout& dropout, Index l, Index t, Index b, Index channels, const T* from, T* to) {
  const double threshold = dropout.p * 4294967296.0;
  const T scale = static_cast<T>(1.0 / (1.0 - dropout.p));
  const auto word32 = [](Index n) { return static_cast<std::uint32_t>(n); };
  t += dropout.first, b += dropout.first_row;
  for (Index c = 0; c < channels; ++c) {
    const Words words =
        philox({{word32(c / 4), word32(b), word32(t), word32(l)}}, mix(dropout.seed, dropout.step));
    to[c] = words.of[c % 4] < static_cast<std::uint64_t>(threshold) ? T(0) : from[c] * scale;
  }
}

// The input of layer `l`: what the layer below gave, after dropout into `workspace` where there is
// any.
template <class T>
Sequence<const T> input_of(const Layer<T>& layer, Index l, const Dropout& dropout, const Rows& rows,
                           std::vector<T>& workspace) {
  if (l == 0 || dropout.p == 0) return layer.x;
  const Index C = layer.inputs;
  workspace.resize(rows.T * rows.B * C);
  for (Index b = 0; b < rows.B; ++b)
    for (Index t = 0; t < rows.length[b]; ++t)
      drop(dropout, l, t, b, C, at(layer.x, t, b), &workspace[(t * rows.B + b) * C]);
  return {workspace.data(), rows.B * C, C};
}

template <class Cell, class T>
void naive_forward(const Cell& cell, const ForwardCall<T>& call, const Rows& rows) {
  for (Index l = 0; l < call.L; ++l) {
    const Layer<T>& layer = call.layers[l];
    std::vector<T> workspace;
    const Sequence<const T> x = input_of(layer, l, call.dropout, rows, workspace);
    for (Index d = 0; d < call.D; ++d)
      NaiveForward<Cell, T>{cell,
                            call.constants,
                            rows,
                            call.H,
                            call.P,
                            layer.inputs,
                            x,
                            columns_from(layer.y, d * call.P),
                            layer.direction[d],
                            d == 1 || call.reverse,
                            {call.constants, call.dropout, l, d == 1 || call.reverse},
                            {},
                            {},
                            {},
                            {},
                            {},
                            {},
                            {}}
          .run();
    const Index C = call.D * call.P;
    for (Index t = 0; call.residual && l > 0 && t < rows.T; ++t)
      for (Index b = 0; b < rows.B; ++b)
        for (Index c = 0; c < C; ++c)
          at(layer.out, t, b)[c] =
              t < rows.length[b] ? at(layer.x, t, b)[c] + at(layer.y, t, b)[c] : T(0);
  }
}

// ---- backward ----------------------------------------------------------------------------------

// Sums of squares by column modulo a cache line.
template <class T>
struct Squares {
  double lane[kLine<T>] = {};
  void add(T value, Index column) {
    const double wide = static_cast<double>(value);
    lane[column % kLine<T>] += wide * wide;
  }
  void add(const Squares& other) {
    for (Index i = 0; i < kLine<T>; ++i) lane[i] += other.lane[i];
  }
};

template <class T>
struct ParameterSquares {
  Squares<T> of[kRoles];
};

// One direction of one layer.
template <class Cell, class T>
struct NaiveBackward {
  static constexpr Index G = Cell::gates, slots = Cell::slots;
  const Cell& cell;
  const CellConstants& constants;
  const Rows& rows;
  Index H, P, I;
  Sequence<const T> x, y, dy;  // y and dy: this direction's columns
  Sequence<T> dx;
  bool adds_dx;  // to what is there: both directions add to zeros
  const Direction<T>& d;
  const DirectionGradient<T>& gradient;
  const Clip& clip;
  double flow_penalty;
  bool reverse;
  NaiveNoise noise;
  std::vector<T> da;           // [alive rows, slots, H]
  std::vector<T> d_vectors;    // [alive rows, vectors, H] what their gradients are sums of
  std::vector<T> own_dx;       // [alive rows, H] what a cell that reads x adds to dL/dx
  std::vector<T> flow;         // [alive rows, P] what flow_penalty adds to h' in dW_hh
  std::vector<T> d_projected;  // [alive rows, P] dL/d(W_hr operand)
  std::vector<T> operands;     // [alive rows, H] of the projection
  std::vector<T> dz;           // [alive rows, 2 G, H] with layer norm: of both products
  std::vector<T> d_normed;     // [alive rows, 2, H] of LN(c): times n, itself
  std::vector<T> dh, dc[kMostCarried], direct, d_operand, fresh[kMostStates], whole;

  void run() {
    da.resize(rows.before.back() * slots * H);
    d_vectors.resize(rows.before.back() * Cell::vectors * H);
    own_dx.resize(Cell::reads_x ? rows.before.back() * H : 0);
    flow.resize(rows.before.back() * P), whole.resize(P);
    d_projected.resize(rows.before.back() * P), operands.resize(rows.before.back() * H);
    direct.resize(H);
    for (int s = 0; s < 1 + Cell::carried; ++s)
      fresh[s].assign(std::max(H, P), fresh_of<Cell, T>(s));
    if (Cell::normalizes) dz.resize(rows.before.back() * 2 * G * H);
    if (Cell::normalizes) d_normed.resize(rows.before.back() * 2 * H);
    for (Index rank = 0; rank < rows.B; ++rank) row(rank, rows.order[rank]);
    sums_over_steps();
  }

  // ---- what is where ----
  T* da_of(Index t, Index rank, Index slot) {
    return &da[((rows.before[t] + rank) * slots + slot) * H];
  }
  const T* saved_of(Index t, Index rank, Index s) const {
    return d.saved + ((rows.before[t] + rank) * Cell::saved + s) * padded<T>(H);
  }
  const T* carried_of(Index k, Index t, Index rank) const {
    return d.carried + ((rows.before[t] + rank) * Cell::carried + k) * padded<T>(H);
  }
  bool is_first(Index t, Index b) const { return t == (reverse ? rows.length[b] - 1 : 0); }
  Index before(Index t) const { return reverse ? t + 1 : t - 1; }
  const T* h_before(Index t, Index b) const {
    if (rows.is_reset(t, b, reverse)) return fresh[0].data();
    if (!is_first(t, b)) return at(y, before(t), b);
    return d.first[0] ? d.first[0] + b * P : fresh[0].data();
  }
  const T* c_before(Index k, Index t, Index rank, Index b) const {
    if (rows.is_reset(t, b, reverse)) return fresh[1 + k].data();
    if (!is_first(t, b)) return carried_of(k, before(t), rank);
    return d.first[1 + k] ? d.first[1 + k] + b * H : fresh[1 + k].data();
  }

  // What the products with W_ih and W_hh take of a gate.
  const T* of_product(Index t, Index rank, Index g, bool of_h) {
    if (Cell::normalizes) return &dz[((rows.before[t] + rank) * 2 * G + (of_h ? G + g : g)) * H];
    return da_of(t, rank, (of_h ? Cell::recurrent_slot : Cell::input_slot)[g]);
  }
  const T* moments_of(Index t, Index rank) const {
    return d.moments + (rows.before[t] + rank) * kMoments;
  }
  // A product normalized.
  T standardized_of(Index t, Index rank, Index g, bool of_h, Index j) const {
    return standardized(saved_of(t, rank, of_h ? G + g : g)[j],
                        moments_of(t, rank) + (of_h ? kRecurrentMoments : kInputMoments));
  }

  // ---- through time ----
  void row(Index rank, Index b) {
    set_state(dh, gradient.last[0], b, P, T(0));
    for (int k = 0; k < Cell::carried; ++k)
      set_state(dc[k], Cell::flows >> k & 1u ? gradient.last[1 + k] : nullptr, b, H, T(0));
    T scale = T(1);  // step_norm's factor of dh, applied when dh is used
    const Index length = rows.length[b];
    for (Index i = 0; i < length; ++i) {
      const Index t = reverse ? i : length - 1 - i;
      if constexpr (Cell::phases > 1) {
        pointwise<1>(t, rank, b, scale);
        d_operand.assign(H, T(0));
        add_recurrent<1>(t, rank, d_operand);
      }
      if constexpr (Cell::projects) unproject(t, rank, b, scale);
      if constexpr (Cell::normalizes)
        normalized(t, rank, b, scale);
      else
        pointwise<0>(t, rank, b, scale);
      dh = direct;
      if (Cell::projects) dh.assign(P, T(0));
      if constexpr (!Cell::elementwise) add_recurrent<0>(t, rank, dh);
      if (rows.is_reset(t, b, reverse)) {
        dh.assign(P, T(0));
        for (std::vector<T>& state : dc) state.assign(H, T(0));
      }
      scale = norm_of(dh) > clip.step_norm ? static_cast<T>(clip.step_norm / norm_of(dh)) : T(1);
      if (gradient.trace.dh) trace(t, rank, b, scale);
    }
    for (Index j = 0; j < P; ++j) gradient.first[0][b * P + j] = dh[j] * scale;
    for (int k = 0; k < Cell::carried; ++k)
      std::copy_n(dc[k].data(), H, gradient.first[1 + k] + b * H);
  }

  // dL/dh, complete; where h before its clip was within the bound it goes on, through W_hr.
  void unproject(Index t, Index rank, Index b, T scale) {
    const Index place = rows.before[t] + rank;
    for (Index j = 0; j < P; ++j) {
      whole[j] = multiply_add(dh[j], scale, dy.data ? at(dy, t, b)[j] : T(0));
      const T h = d.projected ? d.projected[place * padded<T>(P) + j] : T(0);
      const T bound = static_cast<T>(constants.projection_clip);
      const bool outside = h < -bound || h > bound;
      d_projected[place * P + j] = outside ? T(0) : whole[j];
    }
    d_operand.assign(H, T(0));
    add_product(constants.precision, d_operand.data(), H, &d_projected[place * P], P,
                d.parameters[projection_matrix], Index{1}, H);
  }

  template <int phase_index>
  void pointwise(Index t, Index rank, Index b, T scale) {
    constexpr Phase ph = Cell::phase[phase_index];
    const Vec<T> bound = splat(static_cast<T>(clip.step_value));
    const StepClip<Vec<T>> limits{-bound, bound};
    for (Index j = 0; j < H; j += kLanes<T>) {
      const Index n = H - j;
      BackwardUnit<Vec<T>> u;
      for (int s = 0; s < Cell::saved; ++s) u.saved[s] = load_n(saved_of(t, rank, s) + j, n);
      if constexpr (Cell::reads_h_before) u.h_before = load_n(h_before(t, b) + j, n);
      if constexpr (Cell::reads_h) u.h = load_n(at(y, t, b) + j, n);
      load_vectors<Cell>(d, H, j, u.vectors);
      for (int k = 0; k < kNoises; ++k)
        if (Cell::noise >> k & 1u) u.noise[k] = noise.at<T>(k, t, b, j);
      if constexpr (Cell::reads_x) u.x = load_n(at(x, t, b) + j, n);
      for (int k = 0; k < Cell::carried; ++k) {
        u.c[k] = load_n(carried_of(k, t, rank) + j, n);
        u.c_before[k] = load_n(c_before(k, t, rank, b) + j, n);
        u.dc[k] = load_n(&dc[k][j], n);
      }
      if constexpr (phase_index + 1 == Cell::phases && !Cell::projects) {
        const Vec<T> from_y = dy.data ? load_n(at(dy, t, b) + j, n) : Vec<T>{};
        u.dh = fma(load_n(&dh[j], n), splat(scale), from_y);
        store_n(&whole[j], u.dh, n);
      } else {
        u.dh = load_n(&d_operand[j], n);
        u.direct = load_n(&direct[j], n);
      }
      cell.template backward<phase_index>(u, limits);
      for (int s = 0; s < slots; ++s)
        if (ph.slots >> s & 1u) store_n(da_of(t, rank, s) + j, u.da[s], n);
      for (int v = 0; v < Cell::vectors; ++v)
        store_n(&d_vectors[((rows.before[t] + rank) * Cell::vectors + v) * H + j], u.d_vectors[v],
                n);
      if constexpr (Cell::reads_x) store_n(&own_dx[(rows.before[t] + rank) * H + j], u.dx, n);
      store_n(&direct[j], u.direct, n);
      if constexpr (Cell::projects)
        store_n(&operands[(rows.before[t] + rank) * H + j], u.operand, n);
      for (int k = 0; k < Cell::carried; ++k)
        if (Cell::flows >> k & 1u) store_n(&dc[k][j], u.dc[k], n);
    }
  }

  void normalized(Index t, Index rank, Index b, T scale) {
    T sums[2] = {};
    if constexpr (Cell::normalizes_state) {
      part<1>(t, rank, b, scale, sums);
      const T* const of_n = &d_normed[(rows.before[t] + rank) * 2 * H];
      LaneSum<T> gain_d, gain_dn;
      for (Index j = 0; j < H; ++j) {
        const double gain = static_cast<double>(element(d, state_gain, j));
        gain_d.of(j) = multiply_add(static_cast<double>(of_n[H + j]), gain, gain_d.of(j));
        gain_dn.of(j) = multiply_add(static_cast<double>(of_n[j]), gain, gain_dn.of(j));
      }
      sums[0] = static_cast<T>(-gain_d.total() / static_cast<double>(H));
      sums[1] = static_cast<T>(-gain_dn.total() / static_cast<double>(H));
    }
    part<0>(t, rank, b, scale, sums);
    for (const bool of_h : {false, true}) products_gradient(t, rank, of_h);
  }
  // dz = (gain da - mean(gain da) - n mean(gain da n)) / std.
  void products_gradient(Index t, Index rank, bool of_h) {
    const T* const moments = moments_of(t, rank) + (of_h ? kRecurrentMoments : kInputMoments);
    const Role gain = of_h ? recurrent_gain : input_gain;
    const double n = static_cast<double>(G * H), mean = static_cast<double>(moments[0]);
    const auto da_at = [&](Index g, Index j) {
      return da_of(t, rank, (of_h ? Cell::recurrent_slot : Cell::input_slot)[g])[j];
    };
    LaneSum<T> gain_d, gain_dn;
    for (Index g = 0; g < G; ++g)
      for (Index j = 0; j < H; ++j) {
        const double of =
            static_cast<double>(da_at(g, j)) * static_cast<double>(element(d, gain, g * H + j));
        const T product = saved_of(t, rank, of_h ? G + g : g)[j];
        gain_d.of(j) += of;
        gain_dn.of(j) = multiply_add(of, static_cast<double>(product) - mean, gain_dn.of(j));
      }
    const T along_gain = static_cast<T>(-gain_d.total() / n);
    const T along_n = static_cast<T>(-gain_dn.total() * static_cast<double>(moments[1]) / n);
    for (Index g = 0; g < G; ++g)
      for (Index j = 0; j < H; ++j) {
        const T of = multiply_add(da_at(g, j), element(d, gain, g * H + j), along_gain);
        const T sum = multiply_add(standardized_of(t, rank, g, of_h, j), along_n, of);
        dz[((rows.before[t] + rank) * 2 * G + (of_h ? G + g : g)) * H + j] = moments[1] * sum;
      }
  }
  template <int index>
  void part(Index t, Index rank, Index b, T scale, const T* sums) {
    const Index place = rows.before[t] + rank;
    const Vec<T> bound = splat(static_cast<T>(clip.step_value));
    const StepClip<Vec<T>> limits{-bound, bound};
    std::vector<T> a(G * H), x_part(G * H);
    set_arguments<Cell>(d, H, saved_of(t, rank, 0), padded<T>(H), moments_of(t, rank), a, x_part);
    T* const of_n = &d_normed[place * 2 * H];
    for (Index j = 0; j < H; j += kLanes<T>) {
      const Index n = H - j;
      NormBackward<Vec<T>> u;
      for (Index g = 0; g < G; ++g) u.a[g] = load_n(&a[g * H + j], n);
      for (Index g = 0; g < G; ++g) u.x[g] = load_n(&x_part[g * H + j], n);
      if constexpr (Cell::reads_h_before) u.h_before = load_n(h_before(t, b) + j, n);
      if constexpr (Cell::carried > 0) {
        u.c_before = load_n(c_before(0, t, rank, b) + j, n);
        u.dc = load_n(&dc[0][j], n);
      }
      if constexpr (Cell::normalizes_state) u.norm = state_norm(d, H, j, moments_of(t, rank), sums);
      if constexpr (index + 1 == Cell::parts) {
        const Vec<T> from_y = dy.data ? load_n(at(dy, t, b) + j, n) : Vec<T>{};
        if constexpr (Cell::projects)
          u.dh = load_n(&d_operand[j], n);
        else
          store_n(&whole[j], u.dh = fma(load_n(&dh[j], n), splat(scale), from_y), n);
      }
      for (int k = 0; k < Cell::kept; ++k) u.kept[k] = load_n(da_of(t, rank, k) + j, n);
      u.d_normed = load_n(of_n + H + j, n);
      cell.template backward<index>(u, limits);
      if constexpr (index == 1) {
        for (int k = 0; k < Cell::kept; ++k) store_n(da_of(t, rank, k) + j, u.kept[k], n);
        store_n(of_n + j, u.d_normed_n, n), store_n(of_n + H + j, u.d_normed, n);
      }
      for (int s = 0; s < slots; ++s)
        if (Cell::part_slots[index] >> s & 1u) store_n(da_of(t, rank, s) + j, u.da[s], n);
      if constexpr (Cell::projects && index + 1 == Cell::parts)
        store_n(&operands[place * H + j], u.output, n);
      if constexpr (index == 0) {
        store_n(&direct[j], u.direct, n);
        if constexpr (Cell::carried > 0) store_n(&dc[0][j], u.dc, n);
      }
    }
  }

  // One chain over the phase's gates and, within a gate, its units.
  template <int phase_index>
  void add_recurrent(Index t, Index rank, std::vector<T>& to) {
    constexpr Phase ph = Cell::phase[phase_index];
    const Index columns = P / constants.heads;
    for (Index g = ph.first; g < ph.first + ph.count; ++g) {
      const T* const da_g = of_product(t, rank, g, true);
      const T* const w = d.parameters[recurrent_matrix] + g * H * columns;
      if (constants.heads > 1)
        HeadSums<T>{H, columns}.add_product(constants.precision, to.data(), da_g, w, true);
      else
        add_product(constants.precision, to.data(), P, da_g, H, w, Index{1}, P);
    }
  }

  double norm_of(const std::vector<T>& row) const {
    Squares<T> squares;
    for (std::size_t j = 0; j < row.size(); ++j) squares.add(row[j], static_cast<Index>(j));
    double sum = 0;
    for (const double lane : squares.lane) sum += lane;
    return std::sqrt(sum);
  }

  void trace(Index t, Index rank, Index b, T scale) {
    const Index place = t * rows.B + b;
    const double v = norm_of(whole), u = norm_of(dh);
    gradient.trace.dh[place] = v, gradient.trace.dh_before[place] = u;
    if (Cell::carried > 0) gradient.trace.dc_before[place] = norm_of(dc[0]);
    gradient.trace.scale[place] = static_cast<double>(scale);
    Index limited = 0;
    for (Index g = 0; g < G && !std::isinf(static_cast<T>(clip.step_value)); ++g)
      for (Index j = 0; j < H; ++j)
        limited +=
            std::abs(da_of(t, rank, Cell::input_slot[g])[j]) >= static_cast<T>(clip.step_value);
    gradient.trace.clipped[place] = static_cast<double>(limited) / static_cast<double>(G * H);

    const double weight = 2 * flow_penalty / static_cast<double>(rows.B);
    const double factor = u > 0 && v > 0 ? weight * (u / v - 1) / u / v : 0;
    for (Index j = 0; flow_penalty > 0 && j < P; ++j)
      flow[(rows.before[t] + rank) * P + j] = static_cast<T>(factor * static_cast<double>(dh[j]));
  }

  // ---- over the steps ----
  // Parameter gradients: one chain over backward's steps and the schedule's rows. dx: one chain
  // over the gates and, within a gate, its units, from what the cell itself adds.
  void sums_over_steps() {
    for (const ParameterInfo* p = Cell::info.parameters; p->name; ++p)
      if (T* const values = gradient.parameters[p->role])
        std::fill_n(values, rows_of(*p) * columns_of(*p), T(0));
    T *const dw_ih = gradient.parameters[input_matrix],
             *const dw_hh = gradient.parameters[recurrent_matrix],
             *const dw_hr = gradient.parameters[projection_matrix],
             *const dv = gradient.parameters[unit_vectors];
    T *const d_gain_ih = gradient.parameters[input_gain],
             *const d_gain_hh = gradient.parameters[recurrent_gain],
             *const d_gain_c = gradient.parameters[state_gain],
             *const d_bias_c = gradient.parameters[state_bias];
    T *const db_ih = gradient.parameters[input_bias], *const db_hh =
                                                          gradient.parameters[recurrent_bias];
    std::vector<T> operand(std::max(H, P)), dx_row(I);
    for (Index i = 0; i < rows.T; ++i) {
      const Index t = reverse ? i : rows.T - 1 - i;
      for (Index rank = 0; rank < rows.alive(t); ++rank) {
        const Index b = rows.order[rank], place = rows.before[t] + rank;
        dx_row.assign(I, T(0));
        if constexpr (Cell::reads_x) std::copy_n(&own_dx[place * H], H, dx_row.data());
        for (Index g = 0; g < G; ++g) {
          const T* da_x = of_product(t, rank, g, false);
          const T* da_h = of_product(t, rank, g, true);
          const T* own_x = da_of(t, rank, Cell::input_slot[g]);
          const T* own_h = da_of(t, rank, Cell::recurrent_slot[g]);
          std::copy_n(h_before(t, b), P, operand.data());
          for (Index j = 0; flow_penalty > 0 && j < P; ++j) operand[j] += flow[place * P + j];
          if constexpr (Cell::phases > 1) {
            if (g >= Cell::phase[1].first)
              for (Index j = 0; j < H; j += kLanes<T>)
                store_n(&operand[j],
                        Cell::operand(load_n(saved_of(t, rank, 0) + j, H - j),
                                      load_n(&operand[j], H - j)),
                        H - j);
          }
          add_product(constants.precision, dx_row.data(), I, da_x, H,
                      d.parameters[input_matrix] + g * H * I, Index{1}, I);
          for (Index j = 0; j < H; ++j) {
            add_product(constants.precision, dw_ih + (g * H + j) * I, I, da_x + j, 1, at(x, t, b),
                        1, 0);
            const Index n = P / constants.heads;  // columns of dW_hh: h, or j's head's part
            const T* const seen = operand.data() + (constants.heads > 1 ? j / n * n : 0);
            if (dw_hh)
              add_product(constants.precision, dw_hh + (g * H + j) * n, n, da_h + j, 1, seen, 1, 0);
            if (db_ih) db_ih[g * H + j] += own_x[j];
            if (db_hh) db_hh[g * H + j] += own_h[j];
            if constexpr (Cell::normalizes) {
              T &gain_x = d_gain_ih[g * H + j], &gain_h = d_gain_hh[g * H + j];
              gain_x = multiply_add(own_x[j], standardized_of(t, rank, g, false, j), gain_x);
              gain_h = multiply_add(own_h[j], standardized_of(t, rank, g, true, j), gain_h);
            }
          }
        }
        for (Index j = 0; Cell::normalizes_state && j < H; ++j) {
          d_gain_c[j] += d_normed[place * 2 * H + j];
          if (d_bias_c) d_bias_c[j] += d_normed[(place * 2 + 1) * H + j];
        }
        for (Index v = 0; dv && v < Cell::vectors * H; ++v)
          dv[v] += d_vectors[place * Cell::vectors * H + v];
        for (Index p = 0; dw_hr && p < P; ++p)
          add_product(constants.precision, dw_hr + p * H, H, &d_projected[place * P + p], 1,
                      &operands[place * H], 1, 0);
        for (Index k = 0; k < I; ++k) {
          T& to = at(dx, t, b)[k];
          to = adds_dx ? to + dx_row[k] : dx_row[k];
        }
      }
    }
  }

  Index rows_of(const ParameterInfo& p) const {
    return p.times * extent_of(p.rows, Cell::gates, H, P, I, constants.heads);
  }
  Index columns_of(const ParameterInfo& p) const {
    return extent_of(p.columns, Cell::gates, H, P, I, constants.heads);
  }

  // `value`, and what the joint norm is made of: squares by column, row by row. A bias or gain
  // counts as a row for each gate, a unit vector as one row.
  ParameterSquares<T> finalize_gradient(bool& finite) const {
    const T bound = static_cast<T>(clip.value);
    ParameterSquares<T> squares;
    for (const ParameterInfo* p = Cell::info.parameters; p->name; ++p) {
      T* const values = gradient.parameters[p->role];
      const bool by_unit = p->columns == Extent::one;
      const Index columns = by_unit ? H : columns_of(*p);
      const Index count = by_unit ? rows_of(*p) / H : rows_of(*p);
      for (Index r = 0; values && r < count; ++r) {
        Squares<T> row;
        for (Index c = 0; c < columns; ++c) {
          T& value = values[r * columns + c];
          if (!std::isfinite(value)) finite = false;
          value = value < -bound ? -bound : value > bound ? bound : value;
          row.add(value, c);
        }
        squares.of[p->role].add(row);
      }
    }
    return squares;
  }
};

template <class Cell, class T>
GradientNorm naive_backward(const Cell& cell, const BackwardCall<T>& call, const Rows& rows) {
  std::vector<ParameterSquares<T>> squares(call.L * call.D);
  GradientNorm result{0, 1, true};
  for (Index l = call.L - 1; l >= 0; --l) {
    const Layer<T>& layer = call.layers[l];
    const LayerGradient<T>& gradient = call.gradients[l];
    std::vector<T> workspace;
    const Sequence<const T> x = input_of(layer, l, call.dropout, rows, workspace);
    const Sequence<const T> y{layer.y.data, layer.y.time_stride, layer.y.row_stride};
    for (Index t = 0; t < rows.T; ++t)
      for (Index b = 0; b < rows.B; ++b) std::fill_n(at(gradient.dx, t, b), layer.inputs, T(0));
    for (Index d = 0; d < call.D; ++d) {
      NaiveBackward<Cell, T> naive{cell,
                                   call.constants,
                                   rows,
                                   call.H,
                                   call.P,
                                   layer.inputs,
                                   x,
                                   columns_from(y, d * call.P),
                                   columns_from(gradient.dy, d * call.P),
                                   gradient.dx,
                                   call.D == 2,
                                   layer.direction[d],
                                   gradient.direction[d],
                                   call.clip,
                                   call.flow_penalty,
                                   d == 1 || call.reverse,
                                   {call.constants, call.dropout, l, d == 1 || call.reverse},
                                   {},
                                   {},
                                   {},
                                   {},
                                   {},
                                   {},
                                   {},
                                   {},
                                   {},
                                   {},
                                   {},
                                   {},
                                   {},
                                   {}};
      naive.run();
      squares[l * call.D + d] = naive.finalize_gradient(result.finite);
    }
    for (Index b = 0; l > 0 && call.dropout.p > 0 && b < rows.B; ++b)
      for (Index t = 0; t < rows.length[b]; ++t)
        drop(call.dropout, l, t, b, layer.inputs, at(gradient.dx, t, b), at(gradient.dx, t, b));
    for (Index b = 0; call.residual && l > 0 && gradient.dy.data && b < rows.B; ++b)
      for (Index t = 0; t < rows.length[b]; ++t)
        for (Index c = 0; c < layer.inputs; ++c)
          at(gradient.dx, t, b)[c] += at(gradient.dy, t, b)[c];
  }

  double sum = 0;
  for (const ParameterSquares<T>& s : squares)
    for (const Squares<T>& of : s.of)
      for (const double lane : of.lane) sum += lane;
  result.norm = std::sqrt(sum);
  result.finite = result.finite && std::isfinite(result.norm);
  if (result.finite) result.scale = std::min(1.0, call.clip.norm / (result.norm + 1e-6));
  if (result.scale == 1.0) return result;
  for (Index l = 0; l < call.L; ++l)
    for (Index d = 0; d < call.D; ++d) {
      const DirectionGradient<T>& g = call.gradients[l].direction[d];
      for (const ParameterInfo* p = Cell::info.parameters; p->name; ++p) {
        const auto extent = [&](Extent of) {
          return extent_of(of, Cell::gates, call.H, call.P, call.layers[l].inputs,
                           call.constants.heads);
        };
        T* const values = g.parameters[p->role];
        for (Index i = 0; values && i < p->times * extent(p->rows) * extent(p->columns); ++i)
          values[i] = static_cast<T>(static_cast<double>(values[i]) * result.scale);
      }
    }
  return result;
}

// ---- whole calls -------------------------------------------------------------------------------

// lengths: [B], null where every row lives for all of T. Of the call's own schedule only T, B and
// the resets are looked at.
template <class T>
void forward(const ForwardCall<T>& call, const Index* lengths) {
  const Rows rows(call.rows, lengths);
  with_cell<T>(call.kind, call.constants,
               [&](const auto& cell) { naive_forward(cell, call, rows); });
}
template <class T>
GradientNorm backward(const BackwardCall<T>& call, const Index* lengths) {
  const Rows rows(call.rows, lengths);
  return with_cell<T>(call.kind, call.constants,
                      [&](const auto& cell) { return naive_backward(cell, call, rows); });
}

// Compiled in naive.cpp, once for all drivers.
extern template void forward(const ForwardCall<float>&, const Index*);
extern template void forward(const ForwardCall<double>&, const Index*);
extern template GradientNorm backward(const BackwardCall<float>&, const Index*);
extern template GradientNorm backward(const BackwardCall<double>&, const Index*);

}  // namespace rnnkern::RNNKERN_ISA

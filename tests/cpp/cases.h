// Random problems for the core, drawn from bytes, and the kernels' results held against the naive
// reference's.
//
// Every array is a heap allocation of its exact size, so that AddressSanitizer sees one element too
// far. What is written is filled before with a number that no kernel gives, so that what a kernel
// leaves out, or touches between the rows of a strided array, shows in the comparison; what is not
// to be read is filled with nan.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dispatch.h"
#include "naive.h"
#include "stack/network.h"
#include "stack/schedule.h"
#include "threads/grid.h"
#include "threads/runtime.h"

namespace rnnkern::testing {

// Small numbers out of a fuzzer's bytes; zeros once they are used up.
class Draw {
 public:
  Draw(const unsigned char* bytes, std::size_t size) : at_(bytes), end_(bytes + size) {}
  unsigned byte() { return at_ < end_ ? *at_++ : 0u; }
  Index below(Index n) {  // [0, n) and below 65536
    const unsigned word = n <= 256 ? byte() : byte() << 8 | byte();
    return static_cast<Index>(word) % n;
  }
  bool one_in(Index n) { return below(n) == n - 1; }
  std::uint64_t word() {
    std::uint64_t w = 0;
    for (int i = 0; i < 8; ++i) w = w << 8 | byte();
    return w;
  }

 private:
  const unsigned char *at_, *end_;
};

// What values are like: mostly plain, now and then what floating-point arithmetic has at its edges.
enum class Values : int { plain, zeros, tiny, huge, infinite, not_a_number };

// A (T, B, C) array in memory: `row` and `step` may have gaps, be swapped, negative or zero.
struct Strides {
  Index step, row, size, origin;  // elements; where (0, 0, 0) stands
  Strides(Index T, Index B, Index C, Index step_, Index row_) : step(step_), row(row_) {
    const Index steps = (T - 1) * step, rows = (B - 1) * row;
    origin = std::max(Index{0}, -steps) + std::max(Index{0}, -rows);
    size = T && B ? C + std::abs(steps) + std::abs(rows) : 0;
    if (!size) origin = 0;
  }
};

struct Problem {
  Kind kind;
  bool is_double;
  bool large;
  Index T, B, I, H, P, L, D;
  CellConstants constants;
  bool residual;
  bool reverse;
  bool ragged;
  std::vector<Index> lengths;
  std::vector<unsigned char> resets;  // [T + 1, B]; none: empty
  bool bias, peephole, state, dy, dstate;
  bool keep;      // a tape, and backward
  bool in_place;  // the state's buffer is the initial state's (forward only)
  bool packed;    // weights packed before (one direction, forward only)
  bool from_end;  // over the weights from the end first
  bool trace;     // what backward saw, by step and row
  double flow_penalty;
  bool reuse;  // two buffers in turns between the layers, as the bindings have it
  Dropout dropout;
  Clip clip;
  int threads;
  Values values;
  double weight_scale;
  std::uint64_t seed;
  unsigned layout[4];  // of x, y, dy, dx: see `strides`
  Index forward_set, backward_set;
  Bf16Sums sums;
  Grid grid;  // forced; 0 threads: the core chooses

  explicit Problem(Draw& draw) {
    kind = static_cast<Kind>(draw.below(kKindCount));
    is_double = draw.one_in(2);
    L = 1 + (draw.one_in(2) ? draw.below(3) : 0);
    D = 1 + draw.below(2);
    shape(draw);
    if (info().reads_x) I = H, L = D == 1 ? L : 1;  // outputs of two directions are no units
    P = has(projection_matrix) ? 1 + draw.below(H) : H;
    constants.cell_clip = draw.one_in(2) ? bound(draw) : INFINITY;
    constants.projection_clip = draw.one_in(2) ? bound(draw) : INFINITY;
    constants.forward_clip = draw.one_in(2) ? bound(draw) : INFINITY;
    for (Activation& of : constants.activations) {
      const auto constant = [&] { return draw.byte() / 64.0 - 2; };
      of = {static_cast<ActivationKind>(draw.below(kActivations)), constant(), constant()};
    }
    for (const ParameterInfo* of = info().parameters; of->name; ++of)
      if (of->columns == Extent::head)  // as many heads as a divisor of H allows
        for (constants.heads = 1 + static_cast<int>(draw.below(H)); H % constants.heads;)
          --constants.heads;
    constants.exp_forget = draw.one_in(2);
    residual = L > 1 && draw.one_in(3);
    reverse = D == 1 && draw.one_in(3);
    ragged = draw.one_in(2);
    for (Index b = 0; ragged && b < B; ++b)
      lengths.push_back(draw.one_in(4) ? T : draw.below(T + 1));
    if (draw.one_in(4)) {
      std::uint64_t bits = draw.word();
      for (Index i = 0; i < (T + 1) * B; ++i, bits = bits >> 1 | bits << 63)
        resets.push_back(bits & 1u);
    }
    bias = !draw.one_in(4), peephole = !draw.one_in(3), state = draw.one_in(2),
    dy = !draw.one_in(4), dstate = draw.one_in(2);
    keep = !draw.one_in(4);
    in_place = !keep && state && draw.one_in(2);
    packed = !keep && D == 1 && draw.one_in(2);
    reuse = draw.one_in(4);
    from_end = draw.one_in(2);
    const double p[] = {0, 0, 0, 0.1, 0.5, 0.9, 0.999};
    dropout.p = p[draw.below(7)], dropout.seed = draw.word(), dropout.step = draw.word();
    clip.step_value = strength(draw), clip.step_norm = strength(draw);
    clip.value = strength(draw), clip.norm = strength(draw);
    trace = draw.one_in(4);
    const bool penalized =
        !info().states[1].name && has(recurrent_matrix) && kind != Kind::gru_reset_before &&
        kind != Kind::gru_reset_before_general && kind != Kind::gru_reset_before_noisy;
    flow_penalty = trace && penalized && draw.one_in(2) ? 0.5 : 0;
    threads = static_cast<int>(1 + draw.below(8));
    values = draw.one_in(4) ? static_cast<Values>(draw.below(6)) : Values::plain;
    const double scales[] = {0.1, 0.4, 1, 3};
    weight_scale = scales[draw.below(4)];
    for (unsigned& l : layout) l = draw.one_in(2) ? draw.byte() : 0;
    forward_set = draw.byte(), backward_set = draw.byte();
    seed = draw.word();
    for (double& of : constants.noise) of = p[draw.below(7)];
    dropout.training = !draw.one_in(4), dropout.first = draw.below(20);
    dropout.first_row = draw.below(20);
    const Precision precisions[] = {Precision::full, Precision::bf16_products,
                                    Precision::bf16_weights};
    if (!is_double) constants.precision = precisions[draw.below(keep ? 2 : 3)];
    sums = draw.one_in(2) ? Bf16Sums::pairs : Bf16Sums::floats;
    grid = {draw.one_in(4) ? threads : 0, static_cast<int>(1 + draw.below(threads))};
  }

  const KindInfo& info() const { return kKinds[static_cast<int>(kind)]; }
  bool has(Role role) const {
    for (const ParameterInfo* p = info().parameters; p->name; ++p)
      if (p->role == role) return true;
    return false;
  }
  bool has(const ParameterInfo& of) const {
    return of.needs == Needs::bias ? bias : of.needs == Needs::nothing || peephole;
  }
  Index extent(Extent of, Index inputs) const {
    return naive::extent_of(of, info().gates, H, P, inputs, constants.heads);
  }
  static double bound(Draw& draw) { return std::pow(10.0, draw.byte() / 64.0 - 3); }

  // Mostly small. Now and then long (several chunks), wide (threads share units) or broad (threads
  // share rows).
  void shape(Draw& draw) {
    const Index odd =
        draw.below(4096) - 1700;  // not what a fuzzer likes to put in: all zeros or ones
    large = 0 <= odd && odd < 52;
    if (large && odd < 12) {
      // Chunks of steps are 512 rows (backward), 128 rows or 256 KiB of gates (forward).
      L = 1, B = 1 + draw.below(24), H = 1 + draw.below(4), I = 1 + draw.below(4);
      const Index row = kLineBytes * std::max(info().gates, info().saved);
      const Index chunk = (odd < 4 ? 512 : std::max<Index>(128, (Index{256} << 10) / row)) / B;
      T = chunk * (1 + draw.below(2)) + (draw.one_in(2) ? draw.below(3) - 1 : -draw.below(chunk));
    } else if (large && odd < 32) {
      T = 1 + draw.below(4), B = 1 + draw.below(6), H = 64 + draw.below(80), I = 1 + draw.below(40);
    } else if (large && odd < 40) {
      // Layers side by side: steps enough for several chunks of them.
      L = 2 + draw.below(4), D = 1, T = 64 + draw.below(80), B = 1 + draw.below(5);
      H = 24 + draw.below(40), I = 1 + draw.below(40);
    } else if (large) {
      T = 1 + draw.below(6), B = 8 + draw.below(60), H = 10 + draw.below(25),
      I = 1 + draw.below(30);
    } else {
      T = draw.below(10), B = draw.one_in(32) ? 0 : 1 + draw.below(9);
      H = width(draw), I = width(draw);
    }
  }
  static Index width(Draw& draw) {
    const Index around[] = {3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33};
    switch (draw.below(8)) {
      case 0:
        return 1 + draw.below(40);
      case 1:
      case 2:
        return around[draw.below(12)];
      default:
        return 1 + draw.below(9);
    }
  }
  static double strength(Draw& draw) {
    const double edges[] = {0, 1e-42, 1e-300, 1e300};
    switch (draw.below(16)) {
      case 0:
        return edges[draw.below(4)];
      case 1:
      case 2:
      case 3:
      case 4:
      case 5:
        return std::pow(10.0, static_cast<double>(draw.byte()) / 64 - 3);
      default:
        return INFINITY;
    }
  }

  // bits 0-1: gap behind a row; 2: rows outside, steps inside; 3-4: gap behind a step; for arrays
  // that are read 5: backwards in time, 6: one step for all, 7: one row for all.
  Strides strides(int array, Index C, bool read) const {
    const unsigned bits = layout[array];
    const Index gap = bits & 3u, wide = bits >> 3 & 3u;
    Index row = C + gap, step = B * row + wide;
    if (bits & 4u) step = C + gap, row = T * step + wide;
    if (read && bits & 32u) step = -step;
    if (read && bits & 64u) step = 0;
    if (read && bits & 128u) row = 0;
    return {T, B, C, step, row};
  }

  std::string text() const {
    char line[600];
    std::snprintf(
        line, sizeof line,
        "%s f%d T=%td B=%td I=%td H=%td P=%td heads=%d exp_forget=%d cell_clip=%g "
        "projection_clip=%g L=%td D=%td "
        "reverse=%d residual=%d bias=%d state=%d dy=%d dstate=%d "
        "keep=%d in_place=%d packed=%d precision=%d sums=%d reuse=%d from_end=%d dropout=%g "
        "clip=(%g, %g, %g, %g) "
        "trace=%d flow_penalty=%g resets=%zu noise=(%g, %g, %g) training=%d "
        "threads=%d grid=(%d, %d) values=%d layout=(%u, %u, %u, %u) lengths=",
        info().name, is_double ? 64 : 32, T, B, I, H, P, constants.heads, constants.exp_forget,
        constants.cell_clip, constants.projection_clip, L, D, reverse, residual, bias, state, dy,
        dstate, keep, in_place, packed, static_cast<int>(constants.precision),
        static_cast<int>(sums), reuse, from_end, dropout.p, clip.step_value, clip.step_norm,
        clip.value, clip.norm, trace, flow_penalty, resets.size(), constants.noise[0],
        constants.noise[1], constants.noise[2], dropout.training, threads, grid.threads,
        grid.row_groups, static_cast<int>(values), layout[0], layout[1], layout[2], layout[3]);
    std::string out = line;
    if (!ragged) return out + "all";
    for (const Index n : lengths) out += std::to_string(n) + ",";
    return out;
  }
};

// ---- arrays ------------------------------------------------------------------------------------

template <class T>
struct Array {
  const char* name;
  Index layer, direction;
  Index size;
  Index row = 0, used = 0;  // of each row of `row` elements only `used` count; 0: all
  bool compared = true;
  std::unique_ptr<T[]> data;
};

inline constexpr double kUntouched = -12345.678;

template <class T>
void fill_with_nan(T* data, Index bytes) {
  std::memset(static_cast<void*>(data), 0xff, bytes);
}

// ---- a case ------------------------------------------------------------------------------------

// What a problem reads.
template <class T>
class Inputs {
 public:
  explicit Inputs(const Problem& problem) : p(problem), state_(problem.seed) {
    const Index C = p.D * p.P;
    const Strides x_lies = p.strides(0, p.I, true), dy_lies = p.strides(2, C, true);
    x = {make(x_lies.size, 1) + x_lies.origin, x_lies.step, x_lies.row};
    dy = {nullptr, dy_lies.step, dy_lies.row};
    if (p.dy) dy.data = make(dy_lies.size, 1) + dy_lies.origin;
    const double scale = p.weight_scale;
    for (Index l = 0; l < p.L; ++l)
      for (Index d = 0; d < p.D; ++d) {
        const Index I = l ? C : p.I;
        Direction<T> at{};
        DirectionGradient<T> gradient{};
        for (const ParameterInfo* of = p.info().parameters; of->name; ++of)
          if (p.has(*of))
            at.parameters[of->role] =
                make(of->times * p.extent(of->rows, I) * p.extent(of->columns, I), scale);
        for (int s = 0; p.info().states[s].name; ++s) {
          const Index n = p.B * p.extent(p.info().states[s].width, I);
          if (p.state) at.first[s] = make(n, 1);
          if (p.dstate) gradient.last[s] = make(n, 1);
        }
        directions.push_back(at), gradients.push_back(gradient);
      }
  }

  const Problem& p;
  Sequence<const T> x, dy;
  std::vector<Direction<T>> directions;         // [L * D] weights and initial state
  std::vector<DirectionGradient<T>> gradients;  // [L * D] dL/d last state

 private:
  const T* make(Index n, double scale) {
    arrays_.emplace_back(new T[n]);
    T* const data = arrays_.back().get();
    const T factor = static_cast<T>(scale) / T(1 << 23);
    for (Index i = 0; i < n; ++i) data[i] = factor * static_cast<T>(next());
    if (p.values != Values::plain)
      for (Index i = 0; i < n; ++i) data[i] = special(data[i]);
    return data;
  }
  // The upper bits of a linear congruential generator, in [-2^23, 2^23).
  std::int32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::int32_t>(state_ >> 40) - (1 << 23);
  }
  T special(T value) {
    const std::int32_t dice = next() & 255;
    constexpr bool is_float = sizeof(T) == 4;
    switch (p.values) {
      case Values::zeros:
        return dice < 128 ? std::copysign(T(0), value) : value;
      case Values::tiny:  // as far as subnormal, and as far as products that are
        return dice < 64 ? value * static_cast<T>(std::pow(2.0, -dice * (is_float ? 2.3 : 17)))
                         : value;
      case Values::huge:
        return dice < 4 ? value * (is_float ? T(1e38) : static_cast<T>(1e307)) : value;
      case Values::infinite:
        return dice == 0 ? std::copysign(T(INFINITY), value) : value;
      case Values::not_a_number:
        return dice == 0 ? T(NAN) : value;
      case Values::plain:
        break;
    }
    return value;
  }

  std::uint64_t state_;
  std::vector<std::unique_ptr<T[]>> arrays_;
};

// What a problem writes, once for the kernels and once for the naive reference, and the calls that
// write it.
template <class T>
class Outputs {
 public:
  // as_bindings: with the problem's `in_place` and `reuse`.
  Outputs(const Inputs<T>& inputs, Schedule rows, Index alive, bool as_bindings)
      : p(inputs.p), schedule(rows), alive_rows(alive), as_bindings_(as_bindings) {
    const KindInfo& info = p.info();
    const Index H = p.H, C = p.D * p.P;
    layers.resize(p.L), gradients.resize(layers.size());
    for (Index l = 0; l < p.L; ++l) {
      Layer<T>& layer = layers[l];
      LayerGradient<T>& gradient = gradients[l];
      const bool first = l == 0, last = l + 1 == p.L;
      layer.inputs = first ? p.I : C;
      layer.x = inputs.x;
      if (!first) layer.x = as_const(layers[l - 1].out);
      const auto output = [&](const char* name) {
        return last ? strided(name, l, p.strides(1, C, false)) : middle(name, l, 0);
      };
      // A residual layer keeps h apart from its sum, or lets the sum take its place.
      layer.out = layer.y = output("y");
      if (p.residual && !first) {
        T* const h = array("h", l, 0, p.T * p.B * C);
        arrays.back().compared = p.keep;
        if (p.keep || !as_bindings_) layer.y = {h, p.B * C, C};
      }
      gradient.dy = inputs.dy;
      if (p.keep) {
        gradient.dx = first ? strided("dx", l, p.strides(3, p.I, false)) : middle("dx", l, 1);
        if (!first) gradients[l - 1].dy = as_const(gradient.dx);
      }
      for (Index d = 0; d < p.D; ++d) {
        const Index i = l * p.D + d;
        Direction<T>& at = layer.direction[d];
        at = inputs.directions[i];
        const auto make = [&](const char* name, Index n) { return array(name, l, d, n); };
        const auto width = [&](int state) { return p.extent(info.states[state].width, 0); };
        int carried = -1;
        for (int s = 0; info.states[s].name; ++s, ++carried) {
          at.last[s] = make(info.states[s].name, p.B * width(s));
          if (!as_bindings_ || !p.in_place) continue;
          std::copy_n(at.first[s], p.B * width(s), at.last[s]);
          at.first[s] = at.last[s];
        }
        if (!p.keep) continue;
        const auto tape = [&](const char* name, Index vectors, Index used) {
          const Index row = naive::padded<T>(used), n = alive_rows * vectors * row;
          T* const data = make(name, n);
          arrays.back().row = row, arrays.back().used = used;
          fill_with_nan(data, n * static_cast<Index>(sizeof(T)));
          return data;
        };
        if (info.saved) at.saved = tape("saved", info.saved, H);
        if (carried) at.carried = tape("carried", carried, H);
        if (p.has(projection_matrix) && p.constants.projection_clip < INFINITY)
          at.projected = tape("projected", 1, p.P);
        if (p.has(input_gain)) {
          at.moments = make("moments", alive_rows * kMoments);
          arrays.back().row = kMoments, arrays.back().used = p.has(state_gain) ? 6 : 4;
          fill_with_nan(at.moments, alive_rows * kMoments * static_cast<Index>(sizeof(T)));
        }
        DirectionGradient<T>& g = gradient.direction[d];
        g = inputs.gradients[i];
        for (const ParameterInfo* of = info.parameters; of->name; ++of)
          if (p.has(*of))
            g.parameters[of->role] = make(of->name, of->times * p.extent(of->rows, layer.inputs) *
                                                        p.extent(of->columns, layer.inputs));
        for (int s = 0; info.states[s].name; ++s)
          g.first[s] = make(info.states[s].name, p.B * width(s));
        if (p.trace) {
          const auto norms = [&](const char* name) { return trace(name, l, d); };
          g.trace = {norms("trace.dh"), norms("trace.dh_before"), norms("trace.dc_before"),
                     norms("trace.scale"), norms("trace.clipped")};
        }
      }
    }
    if (p.dropout.p > 0 && p.L > 1) {
      dropped = array("dropped", 0, 0, p.T * p.B * C);
      arrays.back().compared = false;
    }
  }

  ForwardCall<T> forward_call(Interrupt interrupt = {}) {
    return {p.kind,    p.constants, p.residual,    p.L,       p.D,     p.H,
            p.P,       schedule,    layers.data(), p.dropout, dropped, p.threads,
            interrupt, p.from_end,  false,         p.reverse};
  }
  BackwardCall<T> backward_call(Interrupt interrupt = {}) {
    return {p.kind,   p.constants,   p.residual,       p.L,       p.D,      p.H,    p.P,
            schedule, layers.data(), gradients.data(), p.dropout, dropped,  p.clip, p.flow_penalty,
            false,    false,         p.threads,        interrupt, p.reverse};
  }

  const Problem& p;
  Schedule schedule;
  Index alive_rows;
  std::vector<Array<T>> arrays;
  std::vector<Layer<T>> layers;
  std::vector<LayerGradient<T>> gradients;
  std::vector<Array<double>> traces;  // [L * D * 5]
  T* dropped = nullptr;
  GradientNorm norm{0, 1, true};

 private:
  static Sequence<const T> as_const(const Sequence<T>& s) {
    return {s.data, s.time_stride, s.row_stride};
  }
  double* trace(const char* name, Index layer, Index direction) {
    traces.push_back({name, layer, direction, p.T * p.B, 0, 0, true, nullptr});
    double* const data = new double[p.T * p.B];
    traces.back().data.reset(data);
    std::fill_n(data, p.T * p.B, kUntouched);
    return data;
  }
  T* array(const char* name, Index layer, Index direction, Index n) {
    arrays.push_back({name, layer, direction, n, 0, 0, true, nullptr});
    T* const data = new T[n];
    arrays.back().data.reset(data);
    std::fill_n(data, n, static_cast<T>(kUntouched));
    return data;
  }
  Sequence<T> strided(const char* name, Index layer, const Strides& lies) {
    return {array(name, layer, 0, lies.size) + lies.origin, lies.step, lies.row};
  }
  // Between the layers. Where two are used in turns, the others stay untouched.
  Sequence<T> middle(const char* name, Index layer, int which) {
    const Index C = p.D * p.P;
    T* data = array(name, layer, 0, p.T * p.B * C);
    const bool in_turns = p.reuse && (which == 1 || !p.keep);
    arrays.back().compared = !in_turns;
    if (in_turns && as_bindings_) {
      T*& turn = turns_[which][layer % 2];
      turn = turn ? turn : data;
      data = turn;
    }
    return {data, p.B * C, C};
  }

  bool as_bindings_;
  T* turns_[2][2] = {};
};

// ---- comparison --------------------------------------------------------------------------------

template <class T>
bool same(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0 || (std::isnan(a) && std::isnan(b));
}

// The first difference in words; empty if there is none.
template <class T>
std::string difference(const std::vector<Array<T>>& ours, const std::vector<Array<T>>& theirs) {
  char line[200];
  for (std::size_t a = 0; a < ours.size(); ++a) {
    const Array<T>&one = ours[a], &other = theirs[a];
    const Index row = one.row ? one.row : one.size, used = one.row ? one.used : one.size;
    for (Index first = 0; one.compared && first < one.size; first += row) {
      const T *const xs = &one.data[first], *const ys = &other.data[first];
      if (std::memcmp(xs, ys, used * sizeof(T)) == 0) continue;
      for (Index i = 0; i < used; ++i) {
        if (same(xs[i], ys[i])) continue;
        const double x = static_cast<double>(xs[i]), y = static_cast<double>(ys[i]);
        std::snprintf(line, sizeof line,
                      "%s[%td] of layer %td, direction %td: kernels %a (%g), naive %a (%g)",
                      one.name, first + i, one.layer, one.direction, x, x, y, y);
        return line;
      }
    }
  }
  return "";
}
template <class T>
std::string difference(const Outputs<T>& ours, const Outputs<T>& theirs) {
  const std::string found = difference(ours.arrays, theirs.arrays);
  if (!found.empty()) return found;
  const std::string traced = difference(ours.traces, theirs.traces);
  if (!traced.empty()) return traced;
  char line[200];
  const GradientNorm &n = ours.norm, &m = theirs.norm;
  if (same(n.norm, m.norm) && same(n.scale, m.scale) && n.finite == m.finite) return "";
  std::snprintf(line, sizeof line, "norm, scale, finite: kernels %a, %a, %d, naive %a, %a, %d",
                n.norm, n.scale, n.finite, m.norm, m.scale, m.finite);
  return line;
}

// Room for a call, on a cache line, of exactly the size asked for.
struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Room = std::unique_ptr<void, Free>;
inline Room room_of(Index bytes) { return Room(std::aligned_alloc(kLineBytes, bytes)); }
inline Room nan_room_of(Index bytes) {
  Room workspace = room_of(bytes);
  fill_with_nan(static_cast<char*>(workspace.get()), bytes);
  return workspace;
}

// The sets that run here and round as the naive reference does.
inline const std::vector<const Kernels*>& comparable_sets() {
  static const std::vector<const Kernels*> sets = [] {
    std::vector<const Kernels*> found;
    for (int i = 0; i < kKernelsCount; ++i) {
      const bool fused = std::strcmp(kKernels[i]->name, "baseline") != 0;
      if (fused == naive::kFused && kKernels[i]->runs_here()) found.push_back(kKernels[i]);
    }
    return found;
  }();
  return sets;
}

// The vectors of x as a table, whose products with packed weights are looked up by number.
template <class T>
struct Folded {
  std::vector<T> table, numbers;
  Room products;

  // `layer` is the first one. Of every second problem, where the cell takes it.
  Folded(const TypedKernels<T>& kernels, const Problem& p, Room& packed, Layer<T>& layer) {
    if (kKinds[static_cast<int>(p.kind)].reads_x || (p.T + p.B) % 2) return;
    const Index I = layer.inputs, n = p.T * p.B;
    if (n == 0) return;
    for (Index t = 0; t < p.T; ++t)
      for (Index b = 0; b < p.B; ++b) {
        const T* const row = layer.x.data + t * layer.x.time_stride + b * layer.x.row_stride;
        table.insert(table.end(), row, row + I);
        numbers.push_back(static_cast<T>(t * p.B + b));
      }
    const Index gates = kKinds[static_cast<int>(p.kind)].gates;
    products = nan_room_of(n * gates * padded_row<T>(p.H) * static_cast<Index>(sizeof(T)));
    if (p.constants.precision == Precision::bf16_products)
      kernels.round_to_bf16(table.data(), n * I, table.data());
    kernels.fold(p.constants, packed.get(), table.data(), n, I, p.threads, {},
                 reinterpret_cast<T*>(products.get()));
    layer.inputs = 1, layer.x = {numbers.data(), p.B, 1};
  }
};

template <class T>
std::string run(const Problem& p) {
  bf16_sums = p.sums, forced_grid = p.grid;
  const RowSchedule schedule = p.ragged ? RowSchedule(p.T, p.lengths) : RowSchedule(p.T, p.B);
  Schedule rows = schedule.view();
  if (!p.resets.empty()) rows.resets = p.resets.data();
  const Inputs<T> inputs(p);
  Outputs<T> ours(inputs, rows, schedule.alive_rows(), true);
  Outputs<T> theirs(inputs, rows, schedule.alive_rows(), false);

  const auto& sets = comparable_sets();
  const auto pick = [&](Index i) -> const TypedKernels<T>& {
    return sets[i % sets.size()]->of<T>();
  };
  const TypedKernels<T>& kernels = pick(p.forward_set);
  std::vector<Room> packed;
  for (Layer<T>& layer : ours.layers) {
    if (!p.packed) break;
    Direction<T>& d = layer.direction[0];
    packed.push_back(
        nan_room_of(kernels.packed_bytes(p.kind, p.constants, layer.inputs, p.H, p.P)));
    kernels.pack(p.kind, p.constants, d, layer.inputs, p.H, p.P, p.threads, {},
                 packed.back().get());
    for (const T*& parameter : d.parameters) parameter = nullptr;
    d.packed = static_cast<const T*>(packed.back().get());
  }
  std::optional<Folded<T>> folded;
  if (p.packed) folded.emplace(kernels, p, packed[0], ours.layers[0]);
  const ForwardCall<T> forward = ours.forward_call();
  kernels.forward(forward, nan_room_of(kernels.forward_workspace(forward)).get());
  if (p.keep) {
    const TypedKernels<T>& back = pick(p.backward_set);
    const BackwardCall<T> backward = ours.backward_call();
    ours.norm = back.backward(backward, nan_room_of(back.backward_workspace(backward)).get());
  }

  const std::uint64_t saved = enter_float_environment();
  const Index* const lengths = p.ragged ? p.lengths.data() : nullptr;
  naive::forward(theirs.forward_call(), lengths);
  if (p.keep) theirs.norm = naive::backward(theirs.backward_call(), lengths);
  leave_float_environment(saved);
  return difference(ours, theirs);
}

// Runs a problem. The first difference in words; empty if there is none.
inline std::string check(const Problem& p) {
  const std::string found = p.is_double ? run<double>(p) : run<float>(p);
  return found.empty() ? found : found + "\n  " + p.text();
}

}  // namespace rnnkern::testing

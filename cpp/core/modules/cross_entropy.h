// Softmax cross-entropy with its gradient. The formula's owner is
// src/rnnkern/reference/losses.py.
#pragma once

#include "modules/calls.h"
#include "threads/team.h"

namespace rnnkern::RNNKERN_ISA {

// ln x of a normal x of at least 1, within 2 ULP; nan and infinity stay. The C library's may differ
// from machine to machine.
static double logarithm(double x) {
  if (!(x < __builtin_inf())) return x;
  std::uint64_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  Index exponent = static_cast<Index>(bits >> 52) - 1023;
  bits = (bits & 0x000fffffffffffff) | 0x3ff0000000000000;
  double m;  // x = m 2^exponent
  __builtin_memcpy(&m, &bits, sizeof m);
  if (m > 0x1.6a09e667f3bcdp0) m *= 0.5, ++exponent;  // m from sqrt(1/2) to sqrt(2)
  // ln m = 2 atanh s = 2 s (1 + s^2/3 + s^4/5 + ...), s^2 < 0.03: what is left out is below 1e-18.
  const double s = (m - 1) / (m + 1), q = s * s, n = static_cast<double>(exponent);
  double series = 0;
  for (int k = 23; k > 1; k -= 2) series = q * (series + 1.0 / k);
  return n * 0x1.62e42fee00000p-1 + (2 * s + (2 * s * series + n * 0x1.a39ef35793c76p-33));
}

// Sums by place modulo a cache line, then over these places: the same order on every instruction
// set. In double, so that p - 1 keeps its digits where p is nearly 1.
template <class T>
struct LineSums {
  static constexpr Index pairs = kLanes<double>;
  Vec<double> of[kLine<T> / pairs] = {};
  RNNKERN_MEMBER double total() const {
    double sum = 0;
    for (const Vec<double> some : of)
      for (Index i = 0; i < pairs; ++i) sum += some[i];
    return sum;
  }
};

// The target of a row: one class.
template <class T>
struct OneClass {
  static constexpr bool is_spread = false;
  Index target;
};
// A row's own part of SpreadTargets.
template <class T, bool has_soft>
struct Spread {
  static constexpr bool is_spread = true, is_soft = has_soft;
  Index target;  // -1: none
  const T *soft, *scale, *base;
  Index stride;
  double sum;  // of base; without `soft`
  // What the classes from j on count, zeros behind the last.
  RNNKERN_MEMBER Vec<T> at(Index j, Index left) const {
    const Vec<T> all = load_n(base + j * stride, left);
    if constexpr (!is_soft) return all;
    return fma(load_n(soft + j, left), load_n(scale + j * stride, left), all);
  }
  double of_target() const { return static_cast<double>(scale[target * stride]); }
};

// The largest of a row's values: of whole lines at x, and of one more at `last`.
template <class T>
RNNKERN_INLINE T largest(const T* x, Index whole, const T* last) {
  constexpr Index line = kLine<T>, lanes = kLanes<T>;
  Vec<T> tops[line / lanes];
  for (Index i = 0; i < line; i += lanes) tops[i / lanes] = load(last + i);
  for (Index j = 0; j < whole; j += line)
    for (Index i = 0; i < line; i += lanes)
      tops[i / lanes] = larger(tops[i / lanes], load(x + j + i));
  T top = -__builtin_inff();
  for (const Vec<T> some : tops)
    for (Index i = 0; i < lanes; ++i) top = some[i] > top ? some[i] : top;
  return top;
}

// A row's sums over spread targets: of a, and of a (x - top). Some lines' terms, which have one
// sign, are added up in T before they join the sums.
template <class T, class Goal>
struct SpreadSums {
  static constexpr Index line = kLine<T>, lanes = kLanes<T>, pairs = kLanes<double>;
  LineSums<T> counts, products;
  Vec<T> some_counts[line / lanes] = {}, some_products[line / lanes] = {};
  // The line at `from`, whose classes are those from j on, `left` of them.
  RNNKERN_MEMBER void add(const Goal& goal, const T* from, Index j, Index left, T top) {
    for (Index i = 0; i < line; i += lanes) {
      const Vec<T> a = goal.at(j + i, left - i);
      if (Goal::is_soft) some_counts[i / lanes] += a;
      // What does not count may be ruled out: its x is -inf.
      some_products[i / lanes] += a == T(0) ? a : a * (load(from + i) - top);
    }
  }
  RNNKERN_MEMBER void flush() {
    alignas(kLineBytes) T of_a[line], of_products[line];
    for (Index i = 0; i < line; i += lanes) {
      store(of_a + i, some_counts[i / lanes]), store(of_products + i, some_products[i / lanes]);
      some_counts[i / lanes] = some_products[i / lanes] = Vec<T>{};
    }
    for (Index i = 0; i < line; i += pairs) {
      counts.of[i / pairs] += as_doubles(of_a + i);
      products.of[i / pairs] += as_doubles(of_products + i);
    }
  }
};

// One row's loss -sum_j a_j ln p_j, p = softmax(x), where a_j is what class j counts; dx = factor
// (sum_i a_i p_j - a_j). x and dx may be the same. Three sweeps: only the first finds the row in
// memory, the others in cache.
template <class T, class Goal>
static double cross_entropy_row(const T* x, T* dx, Index V, const Goal& goal, double factor) {
  constexpr Index line = kLine<T>, lanes = kLanes<T>, pairs = kLanes<double>;
  const Index whole = V / line * line, left = V - whole;
  alignas(kLineBytes) T last[line];  // what no whole line holds; of -inf behind it e^x is 0
  for (Index i = 0; i < line; ++i) last[i] = i < left ? x[whole + i] : -__builtin_inff();

  const T top = largest(x, whole, last);
  const double highest = static_cast<double>(top);
  const Index target = goal.target;
  const double at_target = target < 0 ? 0 : static_cast<double>(x[target]) - highest;
  LineSums<T> sums;  // of powers
  SpreadSums<T, Goal> spread;
  const auto powers = [&](const T* from, T* to) __attribute__((always_inline)) {
    for (Index i = 0; i < line; i += lanes) store(to + i, exponential<T>(load(from + i) - top));
    for (Index i = 0; i < line; i += pairs) sums.of[i / pairs] += as_doubles(to + i);
  };
  if constexpr (Goal::is_spread) {
    constexpr Index some_lines = 4 * line;
    for (Index first = 0; first < whole; first += some_lines) {
      for (Index j = first; j < least(whole, first + some_lines); j += line) {
        spread.add(goal, x + j, j, line, top);
        powers(x + j, dx + j);
      }
      spread.flush();
    }
    spread.add(goal, last, whole, left, top);
    spread.flush();
  } else {
    for (Index j = 0; j < whole; j += line) powers(x + j, dx + j);
  }
  powers(last, last);
  const double sum = sums.total();
  const double of_target =
      target < 0 ? 0 : static_cast<double>(target < whole ? dx[target] : last[target - whole]);

  if constexpr (Goal::is_spread) {
    const double extra = target < 0 ? 0 : goal.of_target();
    const double count = goal.is_soft ? spread.counts.total() : goal.sum + extra,
                 share = count / sum;
    // The share in two parts, so that the largest power's, which is 1, keeps its digits.
    const T high = static_cast<T>(share), low = static_cast<T>(share - static_cast<double>(high));
    const T all = static_cast<T>(factor), product = static_cast<T>(factor * share);
    const auto gradient = [&](const T* from, Index j, Index n) __attribute__((always_inline)) {
      const Vec<T> power = load(from), a = goal.at(j, n);
      if constexpr (!Goal::is_soft) return fma(power, splat(product), a * -all);
      return fma(power, splat(low), fma(power, splat(high), -a)) * all;
    };
    for (Index j = 0; j < whole; j += lanes) store(dx + j, gradient(dx + j, j, lanes));
    for (Index i = 0; i < left; i += lanes)
      store_n(dx + whole + i, gradient(last + i, whole + i, left - i), left - i);
    if (target >= 0) {
      const double a = extra + static_cast<double>(goal.base[target * goal.stride]);
      dx[target] = static_cast<T>(factor * (share * of_target - a));
    }
    return count * logarithm(sum) - (spread.products.total() + extra * at_target);
  } else {
    const T share = static_cast<T>(factor / sum);
    for (Index j = 0; j < whole; j += lanes) store(dx + j, load(dx + j) * share);
    for (Index i = 0; i < left; ++i) dx[whole + i] = last[i] * share;
    dx[target] = static_cast<T>(factor * ((of_target - sum) / sum));
    return logarithm(sum) - at_target;
  }
}

// Of values by rising place, divided.
inline double sum_in_order(const double* values, Index n, double divisor) {
  const std::uint64_t saved = enter_float_environment();
  double sum = 0;
  for (Index r = 0; r < n; ++r) sum += values[r];
  sum /= divisor;
  leave_float_environment(saved);
  return sum;
}

// The loss: the rows' losses, by rising row, divided as the call says. Rows are handed out in
// turns, because those that don't count are often adjacent.
template <class T>
static double cross_entropy(const CrossEntropyCall<T>& call) {
  const double* const shares = call.shares ? call.shares : call.weights;
  const double weights = call.mean ? sum_in_order(shares, call.rows, 1.0) : 1.0;
  const double divisor = weights > 0 ? weights : 1.0;  // no row counts: the sum is 0
  constexpr Index fewest_of_a_thread = 1 << 14;        // elements that are worth a meeting
  const Index at_once = ceil_div(fewest_of_a_thread / 8, call.V);
  const Index worthwhile = call.rows * call.V / fewest_of_a_thread;
  const int threads = static_cast<int>(most(1, least(call.threads, worthwhile)));
  const SpreadTargets<T>& of = call.spread;
  double base = 0;
  if (of.base && !of.soft) {
    const std::uint64_t saved = enter_float_environment();
    if (of.stride == 0) base = as_double(call.V) * static_cast<double>(of.base[0]);
    for (Index j = 0; j < call.V * of.stride; ++j) base += static_cast<double>(of.base[j]);
    leave_float_environment(saved);
  }
  const auto row = [&](Index r, double factor) {
    const T* const x = call.logits + r * call.V;
    T* const dx = call.gradient + r * call.V;
    const Index target = of.soft ? -1 : static_cast<Index>(call.targets[r]);
    if (!of.base) return cross_entropy_row(x, dx, call.V, OneClass<T>{target}, factor);
    const auto spread = [&](const auto& goal) {
      return cross_entropy_row(x, dx, call.V, goal, factor);
    };
    if (of.soft)
      return spread(Spread<T, true>{-1, of.soft + r * call.V, of.scale, of.base, of.stride, 0});
    return spread(Spread<T, false>{target, nullptr, of.scale, of.base, of.stride, base});
  };
  parallel(threads, call.interrupt, [&](CancelToken& token, int thread, int count) {
    for (Index first = thread * at_once; first < call.rows; first += count * at_once) {
      for (Index r = first; r < least(first + at_once, call.rows); ++r) {
        T* const dx = call.gradient + r * call.V;
        const double weight = call.weights[r];
        if (weight > 0) {
          call.losses[r] = weight * row(r, weight / divisor);
        } else {
          call.losses[r] = 0;
          for (Index j = 0; j < call.V; ++j) dx[j] = T(0);
        }
      }
      constexpr Index operations = 16;  // of a vector, in three sweeps
      if (!go_on(token, at_once * ceil_div(call.V, kLanes<T>) * operations)) return;
    }
  });
  return sum_in_order(call.losses, call.rows, divisor);
}

}  // namespace rnnkern::RNNKERN_ISA

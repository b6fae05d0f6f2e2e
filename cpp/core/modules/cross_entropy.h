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

// One row's loss -ln p[target], p = softmax(x); dx = factor (p - one at the target). x and dx may
// be the same. Three sweeps: only the first finds the row in memory, the others in cache. The sum
// runs by place modulo a cache line, the same order on every instruction set; in double, so that p
// - 1 keeps its digits where p is nearly 1.
template <class T>
static double cross_entropy_row(const T* x, T* dx, Index V, Index target, double factor) {
  constexpr Index line = kLine<T>, lanes = kLanes<T>, pairs = kLanes<double>;
  const Index whole = V / line * line, left = V - whole;
  alignas(kLineBytes) T last[line];  // what no whole line holds; of -inf behind it e^x is 0
  for (Index i = 0; i < line; ++i) last[i] = i < left ? x[whole + i] : -__builtin_inff();

  Vec<T> tops[line / lanes];
  for (Index i = 0; i < line; i += lanes) tops[i / lanes] = load(last + i);
  for (Index j = 0; j < whole; j += line)
    for (Index i = 0; i < line; i += lanes)
      tops[i / lanes] = larger(tops[i / lanes], load(x + j + i));
  T top = -__builtin_inff();
  for (const Vec<T> some : tops)
    for (Index i = 0; i < lanes; ++i) top = some[i] > top ? some[i] : top;

  const double at_target = static_cast<double>(x[target]) - static_cast<double>(top);
  Vec<double> sums[line / pairs] = {};
  const auto powers = [&](const T* from, T* to) __attribute__((always_inline)) {
    for (Index i = 0; i < line; i += lanes) store(to + i, exponential<T>(load(from + i) - top));
    for (Index i = 0; i < line; i += pairs) sums[i / pairs] += as_doubles(to + i);
  };
  for (Index j = 0; j < whole; j += line) powers(x + j, dx + j);
  powers(last, last);
  double sum = 0;
  for (const Vec<double> some : sums)
    for (Index i = 0; i < pairs; ++i) sum += some[i];

  const T share = static_cast<T>(factor / sum);
  const double of_target = static_cast<double>(target < whole ? dx[target] : last[target - whole]);
  for (Index j = 0; j < whole; j += lanes) store(dx + j, load(dx + j) * share);
  for (Index i = 0; i < left; ++i) dx[whole + i] = last[i] * share;
  dx[target] = static_cast<T>(factor * ((of_target - sum) / sum));
  return logarithm(sum) - at_target;
}

// The loss: the rows' losses, by rising row, divided as the call says. Rows are handed out in
// turns, because those that don't count tend to stand together.
template <class T>
static double cross_entropy(const CrossEntropyCall<T>& call) {
  const auto sum_over = [&](const double* values, double divisor) {
    const std::uint64_t saved = enter_float_environment();
    double sum = 0;
    for (Index r = 0; r < call.rows; ++r) sum += values[r];
    sum /= divisor;
    leave_float_environment(saved);
    return sum;
  };
  const double weights = call.mean ? sum_over(call.weights, 1.0) : 1.0;
  const double divisor = weights > 0 ? weights : 1.0;  // no row counts: the sum is 0
  constexpr Index fewest_of_a_thread = 1 << 14;        // elements that are worth a meeting
  const Index at_once = ceil_div(fewest_of_a_thread / 8, call.V);
  const Index worthwhile = call.rows * call.V / fewest_of_a_thread;
  const int threads = static_cast<int>(most(1, least(call.threads, worthwhile)));
  parallel(threads, call.interrupt, [&](CancelToken& token, int thread, int count) {
    for (Index first = thread * at_once; first < call.rows; first += count * at_once) {
      for (Index r = first; r < least(first + at_once, call.rows); ++r) {
        T* const dx = call.gradient + r * call.V;
        const double weight = call.weights[r];
        if (weight > 0) {
          const Index target = static_cast<Index>(call.targets[r]);
          call.losses[r] = weight * cross_entropy_row(call.logits + r * call.V, dx, call.V, target,
                                                      weight / divisor);
        } else {
          call.losses[r] = 0;
          for (Index j = 0; j < call.V; ++j) dx[j] = T(0);
        }
      }
      constexpr Index operations = 16;  // of a vector, in three sweeps
      if (!go_on(token, at_once * ceil_div(call.V, kLanes<T>) * operations)) return;
    }
  });
  return sum_over(call.losses, divisor);
}

}  // namespace rnnkern::RNNKERN_ISA

// Losses that are sums over elements, with their gradients. The formulas' owner is
// src/rnnkern/reference/losses.py.
#pragma once

#include "modules/cross_entropy.h"

namespace rnnkern::RNNKERN_ISA {

// ln(1 + x) of x from 0 to 1: 2 atanh s = 2 s (1 + s^2/3 + s^4/5 + ...), s = x / (2 + x) <= 1/3.
// What is left out is below a tenth of a half-ULP.
template <class T>
RNNKERN_INLINE Vec<T> logarithm_of_1_plus(Vec<T> x) {
  const Vec<T> s = x / (x + T(2)), q = s * s;
  Vec<T> series{};
#pragma GCC unroll 20
  for (int k = sizeof(T) == 4 ? 17 : 37; k > 1; k -= 2) {
    const T of_k = T(1) / static_cast<T>(k);
    series = fma(q, series, splat(of_k));
  }
  return fma(s + s, q * series, s + s);
}

// e^x; beyond what the type holds of both signs, where it ends.
template <class T>
RNNKERN_INLINE Vec<T> limited_exponential(Vec<T> x) {
  using E = Exponential<T>;
  const Power<T> e = power<T, 1>(limit(x, splat(E::lowest), splat(E::highest)));
  return fma(e.scale, e.rest, e.scale);
}

// A loss of some elements, and its derivatives: of the output, and of a second output, if the loss
// reads one.
template <class T>
struct PointwiseTerms {
  Vec<T> loss, d, d_too;
};

// y: output; z: second output; t: target; p: parameter.
template <class T, PointwiseLoss kind>
RNNKERN_INLINE PointwiseTerms<T> pointwise_terms(Vec<T> y, Vec<T> z, Vec<T> t, Vec<T> p) {
  constexpr Vec<T> zero{};
  const T half = T(0.5);
  if constexpr (kind == PointwiseLoss::binary_cross_entropy) {
    const Vec<T> yes = p * t, no = T(1) - t;
    const Vec<T> e = exponential<T>(-larger(y, -y)), rest = logarithm_of_1_plus<T>(e);
    const Vec<T> high = T(1) / (e + T(1)), low = e * high;
    // What a target rules out may be infinite.
    const Vec<T> of_no = no == T(0) ? zero : no * (larger(zero, y) + rest);
    const Vec<T> of_yes = yes == T(0) ? zero : yes * (larger(zero, -y) + rest);
    const Vec<T> d = no * (y < T(0) ? low : high) - yes * (y < T(0) ? high : low);
    return {of_no + of_yes, d, zero};
  } else if constexpr (kind == PointwiseLoss::mean_squared_error) {
    const Vec<T> e = y - t;
    return {e * e, e + e, zero};
  } else if constexpr (kind == PointwiseLoss::huber) {
    const Vec<T> e = y - t, size = larger(e, -e);
    const Vec<T> inside = half * e * e, outside = p * (size - half * p);
    return {size <= p ? inside : outside, limit(e, -p, p), zero};
  } else if constexpr (kind == PointwiseLoss::quantile) {
    const Vec<T> e = t - y, over = T(1) - p;
    const Vec<T> side = e > T(0) ? -p : e < T(0) ? over : e;  // at the target 0; nan stays
    return {-side * e, side, zero};
  } else {
    const T constant = static_cast<T>(0.918938533204672742);  // ln(2 pi) / 2
    const Vec<T> inverse_std = limited_exponential<T>(z * -half), e = (y - t) * inverse_std;
    return {fma(fma(e, e, z), splat(half), splat(constant)), e * inverse_std,
            fma(e * -half, e, splat(half))};
  }
}

// Elements are taken in pieces of whole rows, or of a part of a long one.
inline constexpr Index kPiece = 512;

template <class T, PointwiseLoss kind>
class PointwiseLossRows {
 public:
  static constexpr bool two = kind == PointwiseLoss::gaussian;
  static constexpr bool one_target = kind == PointwiseLoss::quantile;
  static constexpr bool has_parameter = kind != PointwiseLoss::mean_squared_error && !two;
  static constexpr bool one_parameter = kind == PointwiseLoss::huber;

  PointwiseLossRows(const PointwiseLossCall<T>& call, double divisor)
      : call_(call), divisor_(divisor) {
    if (one_parameter)
      for (Index i = 0; i < kPiece; ++i) parameters_[i] = call.parameters[0];
  }

  // Rows [first, first + n), which are at most a piece or one row.
  void rows(Index first, Index n) {
    const Index K = call_.K;
    if (K > kPiece) {
      LineSums<T> sums;
      for (Index j = 0; j < K; j += kPiece) {
        const Index size = least(kPiece, K - j);
        piece(first, 1, j, size);
        add(weighted_, size, sums);
      }
      call_.sums[first] = sums.total();
      return;
    }
    piece(first, n, 0, K);
    for (Index i = 0; i < n; ++i) {
      LineSums<T> sums;
      add(weighted_ + i * K, K, sums);
      call_.sums[first + i] = sums.total();
    }
  }

 private:
  // n rows' K elements from column j on; of one row, or of all columns.
  void piece(Index first, Index n, Index j, Index K) {
    const Index size = n * K, at = first * call_.K + j;
    const T* y = call_.outputs + at;
    const T *z = y, *t = call_.targets + at, *p = parameters_;
    T *dy = call_.gradient + at, *dz = dy;
    if constexpr (two) {
      y = call_.outputs + 2 * first * call_.K + j;
      dy = call_.gradient + 2 * first * call_.K + j;
      z = y + call_.K, dz = dy + call_.K;
      if (n > 1) {
        for (Index i = 0; i < n; ++i)
          for (Index k = 0; k < K; ++k) {
            firsts_[i * K + k] = y[2 * i * K + k];
            seconds_[i * K + k] = z[2 * i * K + k];
          }
        y = firsts_, z = seconds_, dy = firsts_, dz = seconds_;
      }
    }
    if constexpr (one_target) {
      for (Index i = 0; i < n; ++i)
        for (Index k = 0; k < K; ++k) firsts_[i * K + k] = call_.targets[first + i];
      t = firsts_;
    }
    if constexpr (has_parameter && !one_parameter) {
      if (n == 1)
        p = call_.parameters + j;
      else if (filled_ < size)
        for (Index i = filled_; (filled_ = i) < size; ++i) parameters_[i] = call_.parameters[i % K];
    }
    weigh(first, n, j, K);
    double* const losses = call_.losses ? call_.losses + at : nullptr;
    for (Index i = 0; i < size; i += kLanes<T>) {
      const Index left = size - i;
      const Vec<T> factor = load(factors_ + i);
      const PointwiseTerms<T> of = pointwise_terms<T, kind>(
          load_n(y + i, left), two ? load_n(z + i, left) : Vec<T>{}, load_n(t + i, left),
          has_parameter ? load_n(p + i, left) : Vec<T>{});
      store(values_ + i, of.loss);
      store_n(dy + i, factor == T(0) ? Vec<T>{} : of.d * factor, left);
      if (two) store_n(dz + i, factor == T(0) ? Vec<T>{} : of.d_too * factor, left);
    }
    for (Index i = 0; i < size; i += kLanes<double>) {
      const Vec<double> weight = load(weights_ + i);
      const Vec<double> loss = weight == 0.0 ? weight : weight * as_doubles(values_ + i);
      store(weighted_ + i, loss);
      if (losses) store_n(losses + i, loss, size - i);
    }
    if (two && n > 1) {
      T* const to = call_.gradient + 2 * first * K;
      for (Index i = 0; i < n; ++i)
        for (Index k = 0; k < K; ++k) {
          to[2 * i * K + k] = firsts_[i * K + k];
          to[(2 * i + 1) * K + k] = seconds_[i * K + k];
        }
    }
  }

  // Fills `weights_` and `factors_`, unless all elements weigh what those before did.
  void weigh(Index first, Index n, Index j, Index K) {
    const double* const weights = call_.each ? call_.weights + first * call_.K + j : nullptr;
    const double of_first = call_.weights[first];
    bool equal = !call_.each;
    for (Index i = 1; i < n && equal; ++i) equal = call_.weights[first + i] == of_first;
    if (equal && of_first == equal_) return;
    equal_ = equal ? of_first : -1;
    const Index size = equal ? kPiece : n * K;
    for (Index i = 0; i < size; ++i) {
      weights_[i] = equal ? of_first : weights ? weights[i] : call_.weights[first + i / K];
      factors_[i] = static_cast<T>(weights_[i] / divisor_);
    }
  }

  static void add(const double* values, Index n, LineSums<T>& sums) {
    constexpr Index pairs = kLanes<double>, line = kLine<T>;
    Index j = 0;
    for (; j + line <= n; j += line)
      for (Index i = 0; i < line; i += pairs) sums.of[i / pairs] += load(values + j + i);
    for (Index i = 0; j + i < n; i += pairs)
      sums.of[i / pairs] += load_n(values + j + i, n - j - i);
  }

  const PointwiseLossCall<T>& call_;
  double divisor_, equal_ = -1;
  Index filled_ = 0;
  alignas(kLineBytes) T values_[kPiece] = {};
  alignas(kLineBytes) T factors_[kPiece] = {};
  alignas(kLineBytes) T parameters_[kPiece] = {};
  alignas(kLineBytes) T firsts_[kPiece] = {};
  alignas(kLineBytes) T seconds_[kPiece] = {};
  alignas(kLineBytes) double weights_[kPiece] = {};
  alignas(kLineBytes) double weighted_[kPiece] = {};
};

template <class T, PointwiseLoss kind>
static double pointwise_loss_of(const PointwiseLossCall<T>& call) {
  const Index K = call.K, weights = call.each ? call.rows * K : call.rows;
  double divisor = 1;
  if (call.mean) {
    divisor = sum_in_order(call.weights, weights, 1.0) * (call.each ? 1.0 : as_double(K));
    if (!(divisor > 0)) divisor = 1;  // no element counts: the sum is 0
  }
  constexpr Index fewest_of_a_thread = 1 << 13;  // elements
  const Index at_once = most(1, kPiece / K), groups = ceil_div(call.rows, at_once);
  const Index worthwhile = call.rows * K / fewest_of_a_thread;
  const int threads = static_cast<int>(most(1, least(call.threads, least(groups, worthwhile))));
  parallel(threads, call.interrupt, [&](CancelToken& token, int thread, int count) {
    PointwiseLossRows<T, kind> of(call, divisor);
    const Range mine = share(groups, thread, count);
    for (Index group = mine.first; group < mine.last; ++group) {
      const Index first = group * at_once, n = least(at_once, call.rows - first);
      of.rows(first, n);
      constexpr Index operations = 32;  // of a vector
      if (!go_on(token, n * ceil_div(K, kLanes<T>) * operations)) return;
    }
  });
  return sum_in_order(call.sums, call.rows, divisor);
}

// The loss: sums over rows by place modulo a cache line, then by rising row.
template <class T>
static double pointwise_loss(const PointwiseLossCall<T>& call) {
  switch (call.kind) {
    case PointwiseLoss::binary_cross_entropy:
      return pointwise_loss_of<T, PointwiseLoss::binary_cross_entropy>(call);
    case PointwiseLoss::mean_squared_error:
      return pointwise_loss_of<T, PointwiseLoss::mean_squared_error>(call);
    case PointwiseLoss::huber:
      return pointwise_loss_of<T, PointwiseLoss::huber>(call);
    case PointwiseLoss::quantile:
      return pointwise_loss_of<T, PointwiseLoss::quantile>(call);
    case PointwiseLoss::gaussian:
      break;
  }
  return pointwise_loss_of<T, PointwiseLoss::gaussian>(call);
}

}  // namespace rnnkern::RNNKERN_ISA

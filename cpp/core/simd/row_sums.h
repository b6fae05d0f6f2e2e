// Sums over whole rows, in doubles.
//
// They run over the units by unit modulo one cache line, vector after vector; then over the lanes.
// So they are the same on every instruction set and number of threads: one thread sums up a row.
#pragma once

#include "simd/simd.h"

namespace rnnkern::RNNKERN_ISA {

// `left` elements as doubles, zeros behind them.
template <class T>
RNNKERN_INLINE Vec<double> doubles(const T* p, Index left) {
  if (left >= kLanes<double>) return as_doubles(p);
  alignas(RNNKERN_VECTOR_BYTES) T some[kLanes<double>] = {};
  for (Index i = 0; i < left; ++i) some[i] = p[i];
  return as_doubles(some);
}
// The same, minus the mean.
template <class T>
RNNKERN_INLINE Vec<double> centered(const T* p, double mean, Index left) {
  if (left >= kLanes<double>) return as_doubles(p) - mean;
  alignas(RNNKERN_VECTOR_BYTES) double some[kLanes<double>] = {};
  for (Index i = 0; i < left; ++i) some[i] = static_cast<double>(p[i]) - mean;
  return load<double>(some);
}

// N sums over the H units of some vectors: add(sums, vector, unit, left) adds the terms of a
// vector's units from `unit` on.
template <class T, int N, class Add>
RNNKERN_INLINE void row_sums(int vectors, Index H, double (&totals)[N], const Add& add) {
  constexpr int step = kLanes<double>, n = static_cast<int>(kLine<T>) / step;
  Vec<double> sums[n][N] = {};
  for (int v = 0; v < vectors; ++v) {
    Index j = 0;
    for (; j + kLine<T> <= H; j += kLine<T>)
#pragma GCC unroll 8
      for (int k = 0; k < n; ++k) add(sums[k], v, j + k * step, step);
#pragma GCC unroll 8
    for (int k = 0; k < n; ++k)
      if (j + k * step < H) add(sums[k], v, j + k * step, H - j - k * step);
  }
  alignas(kLineBytes) double lanes[kLine<T>];
#pragma GCC unroll 2
  for (int i = 0; i < N; ++i) {
#pragma GCC unroll 8
    for (int k = 0; k < n; ++k) store<double>(lanes + k * step, sums[k][i]);
    totals[i] = 0;
    for (const double lane : lanes) totals[i] += lane;
  }
}

// The mean of some vectors of a row, `stride` apart.
template <class T>
double mean_of(const T* row, int vectors, Index stride, Index H) {
  double sum[1];
  row_sums<T>(vectors, H, sum,
              [&](Vec<double>(&s)[1], int v, Index j, Index left)
                  __attribute__((always_inline)) { s[0] += doubles(row + v * stride + j, left); });
  return sum[0] / static_cast<double>(vectors * H);
}

// 1 / sqrt(variance + epsilon) of vectors with this mean.
template <class T>
double inverse_deviation_of(const T* row, int vectors, Index stride, Index H, double epsilon,
                            double mean) {
  double squares[1];
  row_sums<T>(vectors, H, squares,
              [&](Vec<double>(&s)[1], int v, Index j, Index left) __attribute__((always_inline)) {
                const Vec<double> d = centered(row + v * stride + j, mean, left);
                s[0] = fma(d, d, s[0]);
              });
  return 1.0 / __builtin_sqrt(squares[0] / static_cast<double>(vectors * H) + epsilon);
}

// Both.
template <class T, class M>
void moments_of(const T* row, int vectors, Index stride, Index H, double epsilon, M* moments) {
  const double mean = mean_of(row, vectors, stride, H);
  moments[0] = static_cast<M>(mean);
  moments[1] = static_cast<M>(inverse_deviation_of(row, vectors, stride, H, epsilon, mean));
}

}  // namespace rnnkern::RNNKERN_ISA

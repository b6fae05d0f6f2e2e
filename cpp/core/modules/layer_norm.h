// Layer norm over the last axis, and its gradients: Ba, Kiros & Hinton 2016, "Layer normalization",
// arXiv:1607.06450, eqs. 3 and 4. The formula's owner is src/rnnkern/reference/layer_norm.py.
#pragma once

#include "modules/calls.h"
#include "simd/row_sums.h"
#include "threads/team.h"

namespace rnnkern::RNNKERN_ISA {

// n = (x - mean) / std of a row. The mean in two parts: the first is x's own type's.
template <class T>
struct NormalizedRow {
  const T* x;
  Vec<T> mean, rest, rstd;
  NormalizedRow(const T* row, const double* moments) : x(row) {
    const T high = static_cast<T>(moments[0]);
    mean = splat(high);
    rest = splat(static_cast<T>(moments[0] - static_cast<double>(high)));
    rstd = splat(static_cast<T>(moments[1]));
  }
  RNNKERN_MEMBER Vec<T> at(Index j, Index left) const {
    return (load_n(x + j, left) - mean - rest) * rstd;
  }
};

// Calls body(j, left) for the vectors of columns [first, last).
template <class T, class Body>
RNNKERN_INLINE void by_vectors(Index first, Index last, const Body& body) {
  Index j = first;
  for (; j + kLanes<T> <= last; j += kLanes<T>) body(j, kLanes<T>);
  if (j < last) body(j, last - j);
}

template <class Call>
int layer_norm_threads(const Call& call) {
  constexpr Index fewest_of_a_thread = 1 << 13;  // elements
  return static_cast<int>(most(1, least(call.threads, call.rows * call.C / fewest_of_a_thread)));
}

template <class T>
void layer_norm(const LayerNormCall<T>& call) {
  const Index C = call.C;
  // Some rows, which stay in the first cache: the ends of their sums overlap.
  constexpr Index elements = (1 << 14) / sizeof(T);
  const Index at_once = most(1, least(8, elements / C));
  parallel(
      layer_norm_threads(call), call.interrupt, [&](CancelToken& token, int thread, int threads) {
        const Range mine = share(call.rows, thread, threads);
        const auto input = [&](Index i) { return call.x + (call.order ? call.order[i] : i) * C; };
        for (Index first = mine.first; first < mine.last; first += at_once) {
          const Index last = least(first + at_once, mine.last);
          for (Index i = first; i < last; ++i) call.moments[2 * i] = mean_of(input(i), 1, 0, C);
          for (Index i = first; i < last; ++i)
            call.moments[2 * i + 1] =
                inverse_deviation_of(input(i), 1, 0, C, call.epsilon, call.moments[2 * i]);
          for (Index i = first; i < last; ++i) {
            const NormalizedRow<T> n(input(i), call.moments + 2 * i);
            T* const y = call.y + (n.x - call.x);
            by_vectors<T>(0, C, [&](Index j, Index left) __attribute__((always_inline)) {
              const Vec<T> gain = load_n(call.weight + j, left), of_x = n.at(j, left);
              store_n(y + j, call.bias ? fma(of_x, gain, load_n(call.bias + j, left)) : of_x * gain,
                      left);
            });
          }
          if (!go_on(token, at_once * ceil_div(C, kLanes<T>) * 8)) return;
        }
      });
}

template <class T>
void layer_norm_gradient(const LayerNormGradientCall<T>& call) {
  const Index C = call.C;
  const auto row_of = [&](Index i) { return call.order ? call.order[i] : i; };
  const auto input = [&](Index i) __attribute__((always_inline)) {
    using V = Vec<double>;
    const T *const x = call.x + row_of(i) * C, *const dy = call.dy + row_of(i) * C;
    T* const dx = call.dx + row_of(i) * C;
    const double *const moments = call.moments + 2 * i, size = as_double(C);
    double totals[2];
    row_sums<T>(1, C, totals,
                [&](V(&s)[2], int, Index j, Index left) __attribute__((always_inline)) {
                  const V d = doubles(dy + j, left) * doubles(call.weight + j, left);
                  s[0] += d;
                  s[1] = fma(d, centered(x + j, moments[0], left), s[1]);
                });
    const Vec<T> along_gain = splat(static_cast<T>(-totals[0] / size));
    const Vec<T> along_n = splat(static_cast<T>(-totals[1] * moments[1] / size));
    const NormalizedRow<T> n(x, moments);
    by_vectors<T>(0, C, [&](Index j, Index left) __attribute__((always_inline)) {
      const Vec<T> d = fma(load_n(dy + j, left), load_n(call.weight + j, left), along_gain);
      store_n(dx + j, n.rstd * fma(n.at(j, left), along_n, d), left);
    });
  };
  const auto parameters = [&](Index i, Index first, Index last) __attribute__((always_inline)) {
    const NormalizedRow<T> n(call.x + row_of(i) * C, call.moments + 2 * i);
    const T* const dy = call.dy + row_of(i) * C;
    by_vectors<T>(first, last, [&](Index j, Index left) __attribute__((always_inline)) {
      const Vec<T> d = load_n(dy + j, left);
      T* const to = call.dweight + j;
      store_n(to, fma(d, n.at(j, left), load_n(to, left)), left);
      if (call.dbias) store_n(call.dbias + j, load_n(call.dbias + j, left) + d, left);
    });
  };
  parallel(layer_norm_threads(call), call.interrupt,
           [&](CancelToken& token, int thread, int threads) {
             const Range lines = share(ceil_div(C, kLine<T>), thread, threads);
             const Index first = lines.first * kLine<T>, last = least(C, lines.last * kLine<T>);
             for (Index j = first; j < last; ++j) {
               call.dweight[j] = T(0);
               if (call.dbias) call.dbias[j] = T(0);
             }
             // One thread does both while the row is in cache.
             const Range mine = share(call.rows, thread, threads);
             for (Index i = mine.first; i < mine.last; ++i) {
               input(i);
               if (threads == 1) parameters(i, 0, C);
               if (!go_on(token, ceil_div(C, kLanes<T>) * 16)) return;
             }
             for (Index i = 0; i < call.rows && threads > 1; ++i) {
               parameters(i, first, last);
               if (!go_on(token, ceil_div(last - first, kLanes<T>) * 4 + 1)) return;
             }
           });
}

}  // namespace rnnkern::RNNKERN_ISA

// The mean and the largest of a sequence's steps, and their gradients. The formulas' owner is
// src/rnnkern/reference/pooling.py.
#pragma once

#include "modules/calls.h"
#include "threads/team.h"

namespace rnnkern::RNNKERN_ISA {

inline constexpr Index kChannelsAtOnce = 512;

template <class T>
class Pooling {
 public:
  using Bits = typename VectorOf<T>::Bits;
  explicit Pooling(const PoolingCall<T>& call) : call_(call) {}

  void mean(CancelToken& token, Index b, Index c, Index n) {
    Index steps = 0;
    for (Index i = 0; i < n; i += kLanes<double>) store(sums_ + i, Vec<double>{});
    each_step(token, b, c, n, [&](Index, const T* x) __attribute__((always_inline)) {
      ++steps;
      Index i = 0;
      for (; i + kLanes<double> <= n; i += kLanes<double>)
        store(sums_ + i, load(sums_ + i) + as_doubles(x + i));
      for (; i < n; ++i) sums_[i] += static_cast<double>(x[i]);
    });
    const double count = as_double(most(1, steps));
    for (Index i = 0; i < n; ++i) call_.y[b * call_.C + c + i] = static_cast<T>(sums_[i] / count);
  }

  void largest(CancelToken& token, Index b, Index c, Index n) {
    T* const y = call_.y + b * call_.C + c;
    bool first = true;
    for (Index i = 0; i < kChannelsAtOnce; ++i) places_[i] = 0, best_[i] = T(0);
    each_step(token, b, c, n, [&](Index t, const T* x) __attribute__((always_inline)) {
      const Bits step = Bits{} + static_cast<typename PoolingCall<T>::Place>(t);
      for (Index i = 0; i < n; i += kLanes<T>) {
        const Vec<T> now = load_n(x + i, n - i), best = load(best_ + i);
        Bits place;
        __builtin_memcpy(&place, places_ + i, sizeof place);
        // A nan is the largest, the first of several stays.
        const auto wins = (now > best) | ((now != now) & (best == best));
        store(best_ + i, first || wins ? now : best);
        place = wins ? step : place;
        if (first) place = step;
        __builtin_memcpy(places_ + i, &place, sizeof place);
      }
      first = false;
    });
    for (Index i = 0; i < n; ++i) {
      y[i] = best_[i];
      call_.places[b * call_.C + c + i] = places_[i];
    }
  }

 private:
  // Calls body(t, values) for the real steps of some channels of a row.
  template <class Body>
  void each_step(CancelToken& token, Index b, Index c, Index n, const Body& body) const {
    for (Index t = 0; t < call_.steps; ++t) {
      if (call_.real && !call_.real[t * call_.B + b]) continue;
      body(t, call_.x + (t * call_.B + b) * call_.C + c);
      if (!go_on(token, ceil_div(n, kLanes<T>) * 4)) return;
    }
  }

  const PoolingCall<T>& call_;
  alignas(kLineBytes) double sums_[kChannelsAtOnce];
  alignas(kLineBytes) T best_[kChannelsAtOnce];
  alignas(kLineBytes) typename PoolingCall<T>::Place places_[kChannelsAtOnce];
};

// Calls body(token, row, channel, channels) for parts of all rows.
template <class Call, class Body>
void pool_rows(const Call& call, const Body& body) {
  constexpr Index fewest_of_a_thread = 1 << 13;  // elements
  const Index parts = ceil_div(call.C, kChannelsAtOnce);
  const Index worthwhile = least(call.B * parts, call.steps * call.B * call.C / fewest_of_a_thread);
  const int threads = static_cast<int>(most(1, least(call.threads, worthwhile)));
  parallel(threads, call.interrupt, [&](CancelToken& token, int thread, int count) {
    const Range mine = share(call.B * parts, thread, count);
    for (Index part = mine.first; part < mine.last; ++part) {
      const Index c = part % parts * kChannelsAtOnce;
      body(token, part / parts, c, least(kChannelsAtOnce, call.C - c));
    }
  });
}

template <class T>
void pool(const PoolingCall<T>& call) {
  pool_rows(call, [&](CancelToken& token, Index b, Index c, Index n) {
    Pooling<T> of(call);
    if (call.places)
      of.largest(token, b, c, n);
    else
      of.mean(token, b, c, n);
  });
}

template <class T>
void pool_gradient(const PoolingGradientCall<T>& call) {
  pool_rows(call, [&](CancelToken& token, Index b, Index c, Index n) {
    const Index B = call.B, C = call.C;
    const T* const dy = call.dy + b * C + c;
    const auto is_real = [&](Index t) { return !call.real || call.real[t * B + b]; };
    alignas(kLineBytes) T shares[kChannelsAtOnce] = {};
    Index steps = 0;
    for (Index t = 0; t < call.steps; ++t) steps += is_real(t);
    if (!call.places)
      for (Index i = 0; i < n; ++i) shares[i] = dy[i] / static_cast<T>(steps);
    for (Index t = 0; t < call.steps; ++t) {
      T* const dx = call.dx + (t * B + b) * C + c;
      const bool shared = !call.places && is_real(t);
      for (Index i = 0; i < n; ++i) dx[i] = shared ? shares[i] : T(0);
      if (!go_on(token, ceil_div(n, kLanes<T>) * 2)) return;
    }
    if (call.places && steps > 0)
      for (Index i = 0; i < n; ++i)
        call.dx[(static_cast<Index>(call.places[b * C + c + i]) * B + b) * C + c + i] = dy[i];
  });
}

}  // namespace rnnkern::RNNKERN_ISA

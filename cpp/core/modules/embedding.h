// The look-up of an embedding, and the sum of its gradient.
#pragma once

#include "modules/calls.h"
#include "threads/team.h"

namespace rnnkern::RNNKERN_ISA {

// Copies rows of a table; threads share them.
template <class T>
static void take_rows(const TakeRowsCall<T>& call) {
  constexpr Index fewest_of_a_thread = 1 << 14;  // elements
  const Index worthwhile = call.rows * call.C / fewest_of_a_thread;
  const int threads = static_cast<int>(most(1, least(call.threads, worthwhile)));
  parallel(threads, call.interrupt, [&](CancelToken& token, int thread, int count) {
    const Range mine = share(call.rows, thread, count);
    for (Index r = mine.first; r < mine.last; ++r) {
      __builtin_memcpy(call.values + r * call.C, call.table + call.ids[r] * call.C,
                       static_cast<std::size_t>(call.C) * sizeof(T));
      if (!go_on(token, kRowOperations + ceil_div(call.C, kLanes<T>))) return;
    }
  });
}

template <class T>
static void set_zero(T* values, Index n, int threads) {
  constexpr Index fewest_of_a_thread = 1 << 18;
  const Index worthwhile = most(1, least(threads, n / fewest_of_a_thread));
  parallel(static_cast<int>(worthwhile), Interrupt{}, [&](CancelToken&, int thread, int count) {
    const Range mine = share(ceil_div(n, kLine<T>), thread, count);
    const Index first = mine.first * kLine<T>, last = least(mine.last * kLine<T>, n);
    if (first < last)
      __builtin_memset(values + first, 0, static_cast<std::size_t>(last - first) * sizeof(T));
  });
}

// Adds each row of `values` to its row of a table of zeros, by rising row; threads share the
// columns.
template <class T>
static void sum_rows(const SumRowsCall<T>& call) {
  set_zero(call.table, call.N * call.C, call.threads);
  constexpr Index fewest_of_a_thread = 1 << 14;
  const Index lines = ceil_div(call.C, kLine<T>);
  const Index worthwhile = least(lines, call.rows * call.C / fewest_of_a_thread);
  const int threads = static_cast<int>(most(1, least(call.threads, worthwhile)));
  // Not to be interrupted: one pass over memory, as an optimizer's step.
  parallel(threads, Interrupt{}, [&](CancelToken&, int thread, int count) {
    const Range mine = share(lines, thread, count);
    const Index last = least(mine.last * kLine<T>, call.C);
    for (Index r = 0; r < call.rows; ++r) {
      const T* const from = call.values + r * call.C;
      T* const to = call.table + call.ids[r] * call.C;
      for (Index j = mine.first * kLine<T>; j < last; j += kLanes<T>)
        store_n(to + j, load_n(to + j, last - j) + load_n(from + j, last - j), last - j);
    }
  });
}

}  // namespace rnnkern::RNNKERN_ISA

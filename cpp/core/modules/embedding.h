// The sum of an embedding's gradient.
#pragma once

#include "modules/calls.h"
#include "threads/team.h"

namespace rnnkern::RNNKERN_ISA {

// Adds each row of `values` to its row of `table`, by rising row; threads share the columns.
template <class T>
static void add_rows(const AddRowsCall<T>& call) {
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

// Masked steps. A row's real steps, one after the other, are the steps that the kernels see: a
// sequence of so many steps as `lengths` describes it. This knows where the caller has them.
#pragma once

#include <algorithm>
#include <vector>

#include "threads/runtime.h"

namespace rnnkern {

class StepMask {
 public:
  // real: [T, B], not 0 where a step is; resets: the same where another sequence begins, or null. A
  // poll that ends it leaves the mask unusable.
  void assign(Index T, Index B, const unsigned char* real, const unsigned char* resets,
              ThrottledPoll& poll);

  // Whether a row has a masked step before a real one. Otherwise all steps stay where they are.
  bool moves() const { return !place_.empty(); }
  Index steps() const { return steps_; }                          // those that the kernels see
  const std::vector<Index>& lengths() const { return lengths_; }  // [B] real steps
  // [steps + 1, B] resets by real step, as a Schedule has them; empty: none. A reset at a masked
  // step acts at the next real one, or at the row's end.
  const std::vector<unsigned char>& resets() const { return resets_; }
  // [B] rows with a reset at a masked step behind the direction's last real step: their last state
  // is a fresh one. Empty: none.
  const std::vector<unsigned char>& cut_rows(bool reverse) const { return cut_rows_[reverse]; }

  // From the caller's steps to the kernels'. What lies behind a row's end is left as it is.
  template <class T>
  void gather(Index channels, const Sequence<const T>& from, const Sequence<T>& to,
              ThrottledPoll& poll) const {
    if (!from.data || !to.data) return;  // arrays without elements
    for (Index t = 0; t < T_; ++t)
      for (Index b = 0; b < B_; ++b) {
        const Index place = place_[static_cast<std::size_t>(t * B_ + b)];
        if (place >= 0)
          std::copy_n(from.data + t * from.time_stride + b * from.row_stride, channels,
                      to.data + place * to.time_stride + b * to.row_stride);
        if (!poll.go_on(channels)) return;
      }
  }
  // Back, with `masked` at masked steps. A row's steps only move towards the end, so that the two
  // sequences may be the same.
  template <class T>
  void spread(Index channels, const Sequence<T>& from, const Sequence<T>& to, T masked,
              ThrottledPoll& poll) const {
    if (!from.data || !to.data) return;
    for (Index t = T_ - 1; t >= 0; --t)
      for (Index b = 0; b < B_; ++b) {
        const Index place = place_[static_cast<std::size_t>(t * B_ + b)];
        T* const step = to.data + t * to.time_stride + b * to.row_stride;
        if (place >= 0)
          std::copy_n(from.data + place * from.time_stride + b * from.row_stride, channels, step);
        else
          std::fill_n(step, channels, masked);
        if (!poll.go_on(channels)) return;
      }
  }

 private:
  void assign_resets(const unsigned char* real, const unsigned char* resets, ThrottledPoll& poll);

  Index T_ = 0, B_ = 0, steps_ = 0;
  std::vector<Index> lengths_, place_;  // place_: [T, B] which of its row's real steps; -1: masked
  std::vector<unsigned char> resets_, cut_rows_[2];
};

}  // namespace rnnkern

// What a mask means for the arrays of a run: sequences of real steps alone, and rows of states that
// a reset at a masked step cuts off.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "stack/network.h"

namespace rnnkern {

// Some sequences that the kernels read: the caller's own or, where a mask moves steps, a copy of
// the real ones, [members, steps, B, C].
template <class T>
class RealSteps {
 public:
  RealSteps(const TapeRecord<T>& tape, const MemberSequence<const T>& given, Index C)
      : mask_(tape.mask),
        given_(given),
        B_(tape.B),
        C_(C),
        moves_(mask_.moves() && given.first.data != nullptr),
        members_(given.stride ? tape.sizes.count() : 1) {
    if (moves_) copy_ = block<T>(members_ * size());
  }
  MemberSequence<const T> sequence() const {
    if (!moves_) return given_;
    return {{copy_.get(), B_ * C_, C_}, given_.stride ? size() : 0};
  }
  void gather(ThrottledPoll& poll) const {
    for (Index e = 0; moves_ && e < members_; ++e)
      mask_.gather(C_, given_.of(e), {copy_.get() + e * size(), B_ * C_, C_}, poll);
  }
  Block<T> release() { return std::move(copy_); }

 private:
  Index size() const { return mask_.steps() * B_ * C_; }  // of a member
  const StepMask& mask_;
  const MemberSequence<const T> given_;
  const Index B_, C_;
  const bool moves_;
  const Index members_;
  Block<T> copy_;
};

// A value for each state of a cell, or for its gradient: what rows hold that a reset cuts off.
template <class T>
using CutValues = std::array<T, kMostStates>;

// Sets the rows of last states, or of their gradients, that resets at masked steps cut off.
template <class T>
void cut(const TapeRecord<T>& tape, const States<T>& last, const CutValues<T>& values) {
  const Sizes& s = tape.sizes;
  for (Index j = 0; j < s.L * s.D; ++j) {
    const std::vector<unsigned char>& rows = tape.mask.cut_rows(s.goes_back(j % s.D));
    for (Index i = 0; !rows.empty() && i < s.count() * tape.B; ++i)
      for (Index k = 0; rows[static_cast<std::size_t>(i % tape.B)] && k < s.states(); ++k)
        if (last.part[k])
          std::fill_n(last.part[k] + (j * s.count() * tape.B + i) * s.width(k), s.width(k),
                      values[static_cast<std::size_t>(k)]);
  }
}
template <class T>
void cut_states(const TapeRecord<T>& tape, const States<T>& last) {
  const Sizes& s = tape.sizes;
  CutValues<T> fresh{};
  for (Index k = 0; k < s.states(); ++k) fresh[static_cast<std::size_t>(k)] = s.fresh<T>(k);
  cut(tape, last, fresh);
}

// dL/d(last states) as the kernels read it: the caller's own or, where rows are cut off, a copy
// with zeros there.
template <class T>
class LastGradients {
 public:
  LastGradients(const TapeRecord<T>& tape, const States<const T>& given) : states_(given) {
    if (tape.mask.cut_rows(false).empty() && tape.mask.cut_rows(true).empty()) return;
    States<T> copies;
    for (Index k = 0; k < tape.sizes.states(); ++k) {
      if (!given.part[k]) continue;  // zeros
      copy_[k] = block<T>(tape.state_size(k));
      std::copy_n(given.part[k], tape.state_size(k), copy_[k].get());
      states_.part[k] = copies.part[k] = copy_[k].get();
    }
    cut(tape, copies, {});
  }
  const States<const T>& states() const { return states_; }

 private:
  States<const T> states_;
  Block<T> copy_[kMostStates];
};

}  // namespace rnnkern

#include "stack/schedule.h"

namespace rnnkern {

// A counting sort by falling length, stable. `offset_` serves as its table before it gets its own
// contents. All vectors are reserved and not resized: the loops, which poll, touch their pages.
void RowSchedule::assign(Index T, const std::vector<Index>& lengths, ThrottledPoll& poll) {
  T_ = T, B_ = static_cast<Index>(lengths.size());
  order_.clear(), count_.clear(), offset_.clear();
  const auto at = [](std::vector<Index>& values, Index i) -> Index& {
    return values[static_cast<std::size_t>(i)];
  };
  offset_.reserve(static_cast<std::size_t>(T) + 1);
  for (Index t = 0; t <= T; ++t) {
    offset_.push_back(0);
    if (!poll.go_on(1)) return;
  }
  for (const Index length : lengths) {  // rows of each length
    ++at(offset_, length);
    if (!poll.go_on(1)) return;
  }
  count_.reserve(static_cast<std::size_t>(T));
  Index alive = B_;
  for (Index t = 0; t < T; ++t) {  // where the rows of each length begin: after all longer ones
    alive -= at(offset_, t);
    count_.push_back(alive);
    at(offset_, t) = alive;
    if (!poll.go_on(1)) return;
  }
  at(offset_, T) = 0;
  order_.resize(lengths.size());
  for (Index row = 0; row < B_; ++row) {
    at(order_, at(offset_, lengths[static_cast<std::size_t>(row)])++) = row;
    if (!poll.go_on(1)) return;
  }
  at(offset_, 0) = 0;
  for (Index t = 0; t < T; ++t) {
    at(offset_, t + 1) = at(offset_, t) + at(count_, t);
    if (!poll.go_on(1)) return;
  }
}

RowSchedule::RowSchedule(Index T, const std::vector<Index>& lengths) {
  ThrottledPoll never{Interrupt{}};
  assign(T, lengths, never);
}

Schedule steps_of(const Schedule& s, Index from, Index steps) {
  Schedule part = s;
  part.T = steps;
  if (s.count) part.count += from;
  if (s.offset) part.offset += from;
  if (s.resets) part.resets += from * s.B;
  return part;
}

Schedule RowSchedule::view() const {
  Schedule all;
  all.T = T_, all.B = B_;
  if (offset_.empty()) return all;
  all.order = order_.data(), all.count = count_.data(), all.offset = offset_.data();
  return all;
}

}  // namespace rnnkern

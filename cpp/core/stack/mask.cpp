#include "stack/mask.h"

namespace rnnkern {

namespace {

template <class X>
X& at(std::vector<X>& values, Index i) {
  return values[static_cast<std::size_t>(i)];
}

}  // namespace

// Vectors are reserved and not resized where they are long: the loops, which poll, touch their
// pages.
void StepMask::assign(Index T, Index B, const unsigned char* real, const unsigned char* resets,
                      ThrottledPoll& poll) {
  T_ = T, B_ = B;
  lengths_.assign(static_cast<std::size_t>(B), 0);
  place_.clear(), resets_.clear();
  for (std::vector<unsigned char>& rows : cut_rows_) rows.clear();
  bool moves = false;
  for (Index t = 0; t < T; ++t)
    for (Index b = 0; b < B; ++b) {
      if (real[t * B + b]) moves = moves || at(lengths_, b) != t, ++at(lengths_, b);
      if (!poll.go_on(1)) return;
    }
  steps_ = moves ? *std::max_element(lengths_.begin(), lengths_.end()) : T;
  if (moves) {
    std::vector<Index> next(lengths_.size(), 0);
    place_.reserve(static_cast<std::size_t>(T * B));
    for (Index t = 0; t < T; ++t)
      for (Index b = 0; b < B; ++b) {
        place_.push_back(real[t * B + b] ? at(next, b)++ : -1);
        if (!poll.go_on(1)) return;
      }
  }
  if (resets) assign_resets(real, resets, poll);
}

void StepMask::assign_resets(const unsigned char* real, const unsigned char* resets,
                             ThrottledPoll& poll) {
  resets_.reserve(static_cast<std::size_t>((steps_ + 1) * B_));
  for (Index i = 0; i < (steps_ + 1) * B_; ++i) {
    resets_.push_back(0);
    if (!poll.go_on(1)) return;
  }
  std::vector<Index> passed(lengths_.size(), 0);            // real steps
  std::vector<unsigned char> pending(lengths_.size(), 0);   // a reset since the last of them
  std::vector<unsigned char> in_front(lengths_.size(), 0);  // one between step 0 and the first
  for (Index t = 0; t < T_; ++t)
    for (Index b = 0; b < B_; ++b) {
      if (resets[t * B_ + b]) {
        at(pending, b) = 1;
        if (t > 0 && at(passed, b) == 0) at(in_front, b) = 1;
      }
      if (real[t * B_ + b]) {
        at(resets_, at(passed, b)++ * B_ + b) = at(pending, b);
        at(pending, b) = 0;
      }
      if (!poll.go_on(1)) return;
    }
  for (Index b = 0; b < B_; ++b)
    if (at(pending, b)) at(resets_, at(passed, b) * B_ + b) = 1;
  const auto keep = [](std::vector<unsigned char>& rows, std::vector<unsigned char>& as) {
    if (std::find(rows.begin(), rows.end(), 1) != rows.end()) as = std::move(rows);
  };
  keep(pending, cut_rows_[0]);
  keep(in_front, cut_rows_[1]);
}

}  // namespace rnnkern

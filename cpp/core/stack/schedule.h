// Owns the arrays of a Schedule.
#pragma once

#include <vector>

#include "threads/runtime.h"

namespace rnnkern {

class RowSchedule {
 public:
  RowSchedule() = default;
  RowSchedule(Index T, Index B) : T_(T), B_(B) {}           // every row lives for all of T
  RowSchedule(Index T, const std::vector<Index>& lengths);  // [B], each 0 <= length <= T

  // As the last constructor, but polls. A poll that ends it leaves the schedule unusable.
  void assign(Index T, const std::vector<Index>& lengths, ThrottledPoll& poll);

  Schedule view() const;
  Index alive_rows() const { return offset_.empty() ? T_ * B_ : offset_.back(); }

 private:
  Index T_ = 0, B_ = 0;
  std::vector<Index> order_, count_, offset_;
};

}  // namespace rnnkern

#include "schedule.h"

#include <algorithm>
#include <numeric>

namespace rnnkern {

RowSchedule::RowSchedule(Index T, const std::vector<Index>& lengths)
    : T_(T),
      B_(static_cast<Index>(lengths.size())),
      order_(lengths.size()),
      count_(static_cast<std::size_t>(T)),
      offset_(static_cast<std::size_t>(T) + 1) {
  const auto length = [&](Index row) { return lengths[static_cast<std::size_t>(row)]; };
  std::iota(order_.begin(), order_.end(), Index{0});
  std::stable_sort(order_.begin(), order_.end(),
                   [&](Index a, Index b) { return length(a) > length(b); });
  Index alive = B_;
  for (Index t = 0; t < T; ++t) {
    while (alive > 0 && length(order_[static_cast<std::size_t>(alive) - 1]) <= t) --alive;
    count_[static_cast<std::size_t>(t)] = alive;
    offset_[static_cast<std::size_t>(t) + 1] = offset_[static_cast<std::size_t>(t)] + alive;
  }
}

Schedule steps_of(const Schedule& s, Index from, Index steps) {
  return {steps,
          s.B,
          s.order,
          s.count ? s.count + from : nullptr,
          s.offset ? s.offset + from : nullptr,
          s.resets ? s.resets + from * s.B : nullptr};
}

Schedule RowSchedule::view() const {
  const bool all = offset_.empty();
  return {T_,
          B_,
          all ? nullptr : order_.data(),
          all ? nullptr : count_.data(),
          all ? nullptr : offset_.data(),
          nullptr};
}

}  // namespace rnnkern

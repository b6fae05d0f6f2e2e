// Elements of the arrays that a forward reads, by which backward sees whether they have changed.
#pragma once

#include <cstring>

#include "arrays.h"

namespace rnnkern {

// An array's memory in bytes as it is now, in the fewest axes.
inline PinnedArray<const char> bytes_of(const py::array& a) {
  PinnedArray<const char> pinned(a);
  if ((a.flags() & py::array::c_style) == 0) return pinned;
  pinned.axes = 1, pinned.shape[0] = a.size(), pinned.stride[0] = a.itemsize();
  return pinned;
}

// Appends 64 evenly spaced elements in C order, or all. The distance between them is odd, so that
// they are not all in one column of a matrix.
template <class T>
void sample(const PinnedArray<const char>& a, bool all, std::vector<T>& to) {
  constexpr Index count = 64;
  Index n = 1;
  for (int k = 0; k < a.axes; ++k) n *= a.shape[k];
  const Index distance = all ? 1 : n / count | 1;
  for (Index i = 0; i < n; i += distance) {
    Index place = i * a.stride[0];
    if (a.axes > 1) {
      place = 0;
      for (Index k = a.axes - 1, left = i; k >= 0; left /= a.shape[k--])
        place += left % a.shape[k] * a.stride[k];
    }
    T element;
    std::memcpy(&element, a.data + place, sizeof(T));
    to.push_back(element);
  }
}

// The samples of some arrays, which `read` appends one after the other: read(i, samples) of array
// i, false behind the last one.
template <class T>
class Samples {
 public:
  template <class Read>
  void take(const Read& read) {
    for (std::size_t i = 0; read(i, values_); ++i) ends_.push_back(values_.size());
  }
  // The first array that holds others than then; -1: none does. Bits count, so nan equals itself.
  template <class Read>
  Index changed(const Read& read) const {
    std::vector<T> now;
    now.reserve(values_.size());
    for (std::size_t i = 0; i < ends_.size(); ++i) {
      const std::size_t first = now.size();
      read(i, now);
      if (std::memcmp(now.data() + first, values_.data() + first, (ends_[i] - first) * sizeof(T)))
        return static_cast<Index>(i);
    }
    return -1;
  }

 private:
  std::vector<T> values_;
  std::vector<std::size_t> ends_;  // of each array in values_
};

}  // namespace rnnkern

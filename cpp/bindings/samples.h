// Elements of the arrays that a forward reads, by which backward sees whether they have changed.
#pragma once

#include <cstring>

#include "arrays.h"

namespace rnnkern {

// n elements, one behind the other.
template <class T>
PinnedArray<const char> bytes_of(const T* data, Index n) {
  PinnedArray<const char> bytes;
  bytes.data = reinterpret_cast<const char*>(data);
  bytes.axes = 1, bytes.shape[0] = n, bytes.stride[0] = sizeof(T);
  return bytes;
}

// The caller's x, whose elements `x` has as they are, or a copy of them. Its header may have
// changed since; if it no longer fits, nothing of it is compared.
template <class T>
PinnedArray<const char> bytes_of(const py::array& given, const PinnedArray<const T>& x) {
  if (given.ptr() != x.owner.ptr()) {
    const bool fits = given.ndim() == x.axes && given.itemsize() == sizeof(T);
    return fits ? PinnedArray<const char>(given) : bytes_of<T>(nullptr, 0);
  }
  Index n = 1;
  bool is_dense = true;
  for (int k = x.axes - 1; k >= 0; n *= x.shape[k--]) is_dense = is_dense && x.stride[k] == n;
  PinnedArray<const char> bytes = bytes_of(x.data, n);
  bytes.owner = x.owner;
  if (is_dense) return bytes;
  bytes.axes = x.axes;
  for (int k = 0; k < x.axes; ++k)
    bytes.shape[k] = x.shape[k], bytes.stride[k] = x.stride[k] * static_cast<Index>(sizeof(T));
  return bytes;
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
    for (std::size_t i = 0, first = 0; i < ends_.size(); first = ends_[i++]) {
      read(i, now);
      const std::size_t count = ends_[i] - first;
      if (count && std::memcmp(now.data() + first, values_.data() + first, count * sizeof(T)))
        return static_cast<Index>(i);
    }
    return -1;
  }

 private:
  std::vector<T> values_;
  std::vector<std::size_t> ends_;  // of each array in values_
};

}  // namespace rnnkern

// What the modules' arguments have in common: ids, masks, weights of rows.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "../../core/dispatch.h"
#include "../../core/threads/runtime.h"
#include "../layer.h"
#include "../unlocked.h"

namespace rnnkern {

using Ids = py::array_t<std::int64_t>;

inline Shape shape_like(const py::array& a) { return Shape(a.shape(), a.shape() + a.ndim()); }

template <class T>
py::array_t<T> empty_like(const py::array& a) {
  return py::array_t<T>(std::vector<py::ssize_t>(a.shape(), a.shape() + a.ndim()));
}

// A copy as T in C order. A caller's array can change at any time: elements are copied first, and
// what was checked is what is used.
template <class T>
py::array_t<T> copied(const py::array& a) {
  py::array_t<T> copy = result<T>({a.shape(), a.shape() + a.ndim()});
  const py::array_t<T, py::array::c_style | py::array::forcecast> same(a);
  std::copy_n(same.data(), same.size(), copy.mutable_data());
  return copy;
}

// An array of one of `kinds` (NumPy's letters), which `expected` says in words. A view, whose
// shape, strides and dtype no caller can change.
py::array array_of(const char* name, const py::object& value, const std::string& kinds,
                   const char* expected);

// Refuses the element at place `i` of the flattened array: "targets[3, 1]: expected ...".
[[noreturn]] void bad_element(const std::string& name, const py::array& a, Index i,
                              const std::string& expected);

// `ids`, the copy of `given`, are from 0 to below `n`; anything where the weight is zero.
void check_ids(const char* name, const py::array& given, const Ids& ids, Index n,
               const double* weights = nullptr, const std::string& also = "");

// A copy of numbers of one of `kinds`, each from 0 to float32's largest, so that no sum of them
// overflows.
py::array_t<double> checked_weights(const char* name, const py::object& value, const Shape& shape,
                                    const std::string& kinds, const char* expected);

// What a mask of this shape, of booleans or weights, says that each of its elements counts; 1, if
// there is none.
py::array_t<double> mask_weights(const py::object& mask, const Shape& shape);

// Whether an array is one of float32; TypeError if it is none of float64 either.
bool of_floats(const char* name, const py::object& value);

// A copy of integers from 0 to below n, as int64.
Ids checked_input(const py::object& x, Index n);

// Booleans (T, B), this package's own, of `lengths` (B,) or `mask` (T, B), one of them given; `of`
// precedes their names in messages.
py::array real_steps(const py::object& lengths, const py::object& mask, Index T, Index B,
                     const std::string& of);

// The real steps of the rows of (T, B, ...), from a mask (T, B) of this package's own; None: all.
class StepLists {
 public:
  StepLists(const py::object& mask, Index T, Index B);
  StepsOfRows record() const { return {T_, count_.data(), steps_.data()}; }
  bool are_all() const { return all_; }  // there is no padding

 private:
  Index T_;
  bool all_ = true;
  std::vector<Index> count_, steps_;
};

// A new array; zeros, where the core does not write to all of it.
template <class T>
py::array_t<T> result_or_zeros(const std::vector<Index>& shape, bool zeros) {
  py::array_t<T> a = result<T>(shape);
  if (zeros) std::fill_n(a.mutable_data(), a.size(), T(0));
  return a;
}

// Which of N rows a map of rows reads and writes.
class CountedRows {
 public:
  CountedRows(const py::object& rows, Index N) : all_(rows.is_none()), size_(N) {
    if (all_) return;
    list_ = checked_input(rows, N);
    size_ = list_.size();
  }
  Index size() const { return size_; }
  const Index* order() const { return all_ ? nullptr : list_.data(); }
  // The rows that do not count are zeros.
  template <class T>
  void clear(const py::array_t<T>& a, T* values) const {
    if (!all_) std::fill_n(values, a.size(), T(0));
  }

 private:
  bool all_;
  Ids list_;
  Index size_;
};

}  // namespace rnnkern

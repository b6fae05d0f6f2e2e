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

// A copy of integers from 0 to below n, as int64.
Ids checked_input(const py::object& x, Index n);

}  // namespace rnnkern

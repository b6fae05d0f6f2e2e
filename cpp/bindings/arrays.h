// NumPy arrays, checked and seen as the core wants them. The only source of input errors.
//
// An error names the argument, what was expected and what came:
//   x: expected shape (T, 8, 64), got (20, 8, 32)
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "../core/threads/memory.h"

namespace rnnkern {

namespace py = pybind11;

// One expected axis: a size, or a letter for any size.
struct Axis {
  Axis(Index n) : size(n), letter(nullptr) {}       // NOLINT: sizes and letters read best bare
  Axis(const char* any) : size(-1), letter(any) {}  // NOLINT
  Index size;
  const char* letter;
};
using Shape = std::vector<Axis>;

std::string text(const Shape& shape);
std::string shape_of(const py::array& a);

[[noreturn]] void bad_value(const std::string& name, const std::string& expected,
                            const std::string& got);
[[noreturn]] void bad_type(const std::string& name, const std::string& expected,
                           const std::string& got);

// `value` as an array of dtype T, of any layout; TypeError otherwise.
template <class T>
py::array typed(const std::string& name, py::handle value) {
  constexpr const char* expected =
      sizeof(T) == 4 ? "an array of dtype float32" : "an array of dtype float64";
  if (!py::isinstance<py::array>(value))
    bad_type(name, expected, py::str(py::type::of(value).attr("__name__")));
  py::array a = py::reinterpret_borrow<py::array>(value);
  if (!py::isinstance<py::array_t<T>>(value)) bad_type(name, expected, py::str(a.dtype()));
  return a;
}

void check_shape(const std::string& name, const py::array& a, const Shape& expected);

bool aligned(const py::array& a);
bool contiguous(const py::array& a);  // C order and aligned

// Whether `value` is an array, of no subclass, with this very dtype object, of this shape (-1: any
// size), C-contiguous and aligned, and has these flags too. A look at its header, for calls that
// are small: what is not plain may still be right.
inline bool is_plain_ndarray(py::handle value, const py::dtype& dtype, const Index* shape,
                             std::size_t axes, int flags = 0) {
  if (Py_TYPE(value.ptr()) != py::detail::npy_api::get().PyArray_Type_) return false;
  const auto* a = py::detail::array_proxy(value.ptr());
  flags |= py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (a->descr != dtype.ptr() || a->nd != static_cast<int>(axes) || (a->flags & flags) != flags)
    return false;
  for (std::size_t i = 0; i < axes; ++i)
    if (shape[i] != -1 && a->dimensions[i] != shape[i]) return false;
  return true;
}
inline bool is_plain_ndarray(py::handle value, const py::dtype& dtype,
                             std::initializer_list<Index> shape, int flags = 0) {
  return is_plain_ndarray(value, dtype, shape.begin(), shape.size(), flags);
}

// A new C-contiguous array. pybind11 would work out the strides, which NumPy knows to do.
inline py::array new_ndarray(py::dtype dtype, const Index* shape, std::size_t axes) {
  const auto& numpy = py::detail::npy_api::get();
  PyObject* a =
      numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, dtype.release().ptr(),
                                  static_cast<int>(axes), shape, nullptr, nullptr, 0, nullptr);
  if (!a) throw py::error_already_set();
  return py::reinterpret_steal<py::array>(a);
}
inline py::array new_ndarray(py::dtype dtype, std::initializer_list<Index> shape) {
  return new_ndarray(std::move(dtype), shape.begin(), shape.size());
}

// The product of sizes; OutOfMemory where it can't be addressed (with workspace to spare for
// padding).
Index product_of(std::initializer_list<Index> sizes);

// A new C-contiguous array for a result. A large one is in a block, which a base object holds.
template <class T>
py::array_t<T> result(const std::vector<Index>& shape) {
  Index n = 1;
  for (const Index size : shape) n = product_of({n, size});
  if (static_cast<std::size_t>(n) * sizeof(T) < kFewestCachedBytes)
    return py::reinterpret_steal<py::array_t<T>>(
        new_ndarray(py::dtype::of<T>(), shape.data(), shape.size()).release());
  auto held = std::make_unique<Block<T>>(block<T>(n));
  const py::capsule base(held.get(), [](void* p) { delete static_cast<Block<T>*>(p); });
  return py::array_t<T>(shape, held.release()->get(), base);
}

// C-contiguous and aligned: the array itself where it is so already, else a copy.
template <class T>
py::array_t<T, py::array::c_style> as_contiguous(const std::string& name, py::handle value,
                                                 const Shape& expected) {
  py::array a = typed<T>(name, value);
  check_shape(name, a, expected);
  if (contiguous(a)) return py::reinterpret_borrow<py::array_t<T, py::array::c_style>>(a);
  py::array_t<T, py::array::c_style> copy(
      std::vector<py::ssize_t>(a.shape(), a.shape() + a.ndim()));
  copy[py::ellipsis()] = a;
  return copy;
}

// Memory whose channels are contiguous, aligned and of non-negative element strides: as it is
// where possible, else a copy.
template <class T>
py::array channels_last(const std::string& name, py::handle value, const Shape& expected) {
  py::array a = typed<T>(name, value);
  check_shape(name, a, expected);
  bool fits = aligned(a) && a.strides(a.ndim() - 1) == static_cast<py::ssize_t>(sizeof(T));
  for (py::ssize_t i = 0; i < a.ndim(); ++i)
    fits = fits && a.strides(i) % static_cast<py::ssize_t>(sizeof(T)) == 0;
  return fits || a.size() == 0 ? a : as_contiguous<T>(name, value, expected);
}

// An array's memory as it was when it was validated. The caller may give the array object another
// shape, other strides or another dtype at any time; this record keeps what the core uses.
template <class T>
struct PinnedArray {
  static constexpr int kMostAxes = 4;
  T* data = nullptr;  // null: no array
  int axes = 0;
  Index shape[kMostAxes] = {};
  Index stride[kMostAxes] = {};  // in elements
  py::object owner;              // keeps the memory

  PinnedArray() = default;
  explicit PinnedArray(const py::array& a)
      : data(static_cast<T*>(const_cast<void*>(a.data()))),
        axes(static_cast<int>(a.ndim())),
        owner(a) {
    for (int i = 0; i < axes; ++i) {
      shape[i] = a.shape(i);
      stride[i] = a.strides(i) / static_cast<Index>(sizeof(T));
    }
  }
};

// A caller's array to write to: writable, C-contiguous, aligned, of the right dtype and shape.
template <class T>
T* writable(const std::string& name, const py::array& a, const Shape& expected) {
  check_shape(name, a, expected);
  if (!a.writeable()) bad_value(name, "a writable array", "a read-only one");
  if (!contiguous(a)) bad_value(name, "a C-contiguous, aligned array", "one of another layout");
  return static_cast<T*>(const_cast<void*>(a.data()));
}

// The C++ object that a bound type's instance holds. pybind11 would make up an uninitialised one
// where `cls.__new__(cls)` made the instance and its constructor has not run. `expected`: what an
// error says; null: the type's name.
template <class X>
X& constructed(const char* name, py::handle object, const char* expected = nullptr) {
  static PyObject* const type = py::type::of<X>().ptr();  // pybind11 would look it up each time
  const bool right_type =
      PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(type)) != 0;
  if (right_type) {
    const auto* held = reinterpret_cast<const py::detail::instance*>(object.ptr());
    if (held->simple_layout && held->simple_value_holder[0])
      return *static_cast<X*>(held->simple_value_holder[0]);
  }
  const auto type_name = [](py::handle type) {
    return py::str(type.attr("__name__")).cast<std::string>();
  };
  bad_type(name, expected ? expected : "a " + type_name(type),
           right_type ? "one whose constructor has not run" : type_name(py::type::of(object)));
}
// A method as a function of an instance, which `constructed` checks.
template <class X, class R, class... A>
auto method_of(R (X::*method)(A...) const) {
  return [method](py::handle self, A... arguments) -> R {
    return (constructed<X>("self", self).*method)(std::forward<A>(arguments)...);
  };
}
template <class X, class R, class... A>
auto method_of(R (X::*method)(A...)) {
  return [method](py::handle self, A... arguments) -> R {
    return (constructed<X>("self", self).*method)(std::forward<A>(arguments)...);
  };
}

// Instances of the type hold memory of the core: pickle and copy raise TypeError.
template <class Type>
void refuse_pickling(Type& type) {
  const auto refuse = [](py::handle self, const py::args&) {
    throw py::type_error("cannot pickle '" +
                         py::str(py::type::of(self).attr("__qualname__")).cast<std::string>() +
                         "' object");
  };
  type.def("__reduce__", refuse);
  type.def("__reduce_ex__", refuse);
}

// Clears the flag of every array of the dict, and skips what else there is: NumPy's property takes
// longer than a small gradient.
void make_read_only(const py::dict& arrays);

void refuse_overlap(const char* name, const py::array& out, const char* with, const py::array& in);

}  // namespace rnnkern

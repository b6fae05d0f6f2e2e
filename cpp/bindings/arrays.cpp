#include "arrays.h"

#include <algorithm>
#include <cstdint>

namespace rnnkern {
namespace {

std::string joined(const std::vector<std::string>& axes) {
  std::string out = "(";
  for (std::size_t i = 0; i < axes.size(); ++i) out += (i ? ", " : "") + axes[i];
  return out + (axes.size() == 1 ? ",)" : ")");
}

// First and one-past-last byte that an array may touch.
std::pair<std::uintptr_t, std::uintptr_t> bounds(const py::array& a) {
  auto first = reinterpret_cast<std::uintptr_t>(a.data()), last = first;
  for (py::ssize_t i = 0; i < a.ndim(); ++i) {
    if (a.shape(i) == 0) return {first, first};
    const py::ssize_t reach = (a.shape(i) - 1) * a.strides(i);
    (reach < 0 ? first : last) += static_cast<std::uintptr_t>(reach);
  }
  return {first, last + static_cast<std::uintptr_t>(a.itemsize())};
}

}  // namespace

std::string text(const Shape& shape) {
  std::vector<std::string> axes;
  for (const Axis& axis : shape)
    axes.push_back(axis.letter ? axis.letter : std::to_string(axis.size));
  return joined(axes);
}

std::string shape_of(const py::array& a) {
  std::vector<std::string> axes;
  for (py::ssize_t i = 0; i < a.ndim(); ++i) axes.push_back(std::to_string(a.shape(i)));
  return joined(axes);
}

void bad_value(const std::string& name, const std::string& expected, const std::string& got) {
  throw py::value_error(name + ": expected " + expected + ", got " + got);
}
void bad_type(const std::string& name, const std::string& expected, const std::string& got) {
  throw py::type_error(name + ": expected " + expected + ", got " + got);
}

void check_shape(const std::string& name, const py::array& a, const Shape& expected) {
  bool fits = static_cast<std::size_t>(a.ndim()) == expected.size();
  for (std::size_t i = 0; fits && i < expected.size(); ++i)
    fits = expected[i].letter || a.shape(static_cast<py::ssize_t>(i)) == expected[i].size;
  if (!fits) bad_value(name, "shape " + text(expected), shape_of(a));
}

bool aligned(const py::array& a) {
  return (a.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
}
bool contiguous(const py::array& a) { return (a.flags() & py::array::c_style) != 0 && aligned(a); }

void make_read_only(const py::dict& arrays) {
  for (const auto& [name, array] : arrays)
    if (py::isinstance<py::array>(array))
      py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
}

void refuse_overlap(const char* name, const py::array& out, const char* with, const py::array& in) {
  const auto a = bounds(out), b = bounds(in);
  if (a.first < b.second && b.first < a.second)
    bad_value(name, "memory of its own", std::string("an array that overlaps ") + with);
}

Index product_of(std::initializer_list<Index> sizes) {
  Index product = 1;
  for (const Index size : sizes)
    if (__builtin_mul_overflow(product, size, &product) || product > PTRDIFF_MAX / 64)
      throw OutOfMemory("sizes: expected a product that memory can hold, got more");
  return product;
}

}  // namespace rnnkern

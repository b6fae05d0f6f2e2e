#include "shared.h"

#include <limits>

namespace rnnkern {

py::array array_of(const char* name, const py::object& value, const std::string& kinds,
                   const char* expected) {
  const auto& numpy = py::detail::npy_api::get();
  const py::array given = py::array::ensure(value);
  if (!given) bad_type(name, expected, py::str(py::type::of(value).attr("__name__")));
  PyObject* const view =
      numpy.PyArray_View_(given.ptr(), nullptr, reinterpret_cast<PyObject*>(numpy.PyArray_Type_));
  if (!view) throw py::error_already_set();
  const auto a = py::reinterpret_steal<py::array>(view);
  if (kinds.find(a.dtype().kind()) == std::string::npos)
    bad_type(name, expected, py::str(a.dtype()));
  return a;
}

void bad_element(const std::string& name, const py::array& a, Index i,
                 const std::string& expected) {
  const py::object got = a.attr("item")(i);
  std::string axes;
  for (py::ssize_t axis = a.ndim() - 1; axis >= 0; i /= a.shape(axis), --axis)
    axes = std::to_string(i % a.shape(axis)) + (axes.empty() ? "" : ", ") + axes;
  bad_value(axes.empty() ? name : name + "[" + axes + "]", expected, py::str(got));
}

void check_ids(const char* name, const py::array& given, const Ids& ids, Index n,
               const double* weights, const std::string& also) {
  const std::int64_t* const id = ids.data();
  for (Index r = 0; r < ids.size(); ++r)
    if ((id[r] < 0 || id[r] >= n) && (!weights || weights[r] > 0))
      bad_element(name, given, r, "an integer from 0 to " + std::to_string(n - 1) + also);
}

py::array_t<double> checked_weights(const char* name, const py::object& value, const Shape& shape,
                                    const std::string& kinds, const char* expected) {
  const py::array given = array_of(name, value, kinds, expected);
  check_shape(name, given, shape);
  py::array_t<double> weights = copied<double>(given);
  const double* const weight = weights.data();
  for (Index r = 0; r < weights.size(); ++r)
    if (!(weight[r] >= 0 && weight[r] <= std::numeric_limits<float>::max()))
      bad_element(name, given, r, "a weight from 0 to 3.4e38");
  return weights;
}

py::array_t<double> mask_weights(const py::object& mask, const Shape& shape) {
  if (!mask.is_none())
    return checked_weights("mask", mask, shape, "biuf", "an array of booleans or weights");
  std::vector<Index> sizes;
  for (const Axis& axis : shape) sizes.push_back(axis.size);
  py::array_t<double> weights = result<double>(sizes);
  std::fill_n(weights.mutable_data(), weights.size(), 1.0);
  return weights;
}

bool of_floats(const char* name, const py::object& value) {
  if (py::isinstance<py::array_t<float>>(value)) return true;
  if (py::isinstance<py::array_t<double>>(value)) return false;
  const bool array = py::isinstance<py::array>(value), scalar = py::hasattr(value, "dtype");
  bad_type(name, "an array of dtype float32 or float64",
           array    ? py::str(value.attr("dtype"))
           : scalar ? py::str("a scalar")
                    : py::str(py::type::of(value).attr("__name__")));
}

Ids checked_input(const py::object& x, Index n) {
  const py::array given = array_of("x", x, "iu", "an array of integers");
  const Ids ids = copied<std::int64_t>(given);
  check_ids("x", given, ids, n);
  return ids;
}

StepLists::StepLists(const py::object& mask, Index T, Index B) : T_(T) {
  const bool* real = nullptr;
  py::array held;
  if (!mask.is_none()) {
    held = array_of("mask", mask, "b", "an array of booleans");
    check_shape("mask", held, {T, B});
    held = copied<bool>(held);
    real = static_cast<const bool*>(held.data());
  }
  count_.assign(static_cast<std::size_t>(B), 0);
  steps_.resize(static_cast<std::size_t>(product_of({T, B})));
  for (Index t = 0; t < T; ++t)
    for (Index b = 0; b < B; ++b) {
      if (real && !real[t * B + b]) {
        all_ = false;
        continue;
      }
      Index& count = count_[static_cast<std::size_t>(b)];
      steps_[static_cast<std::size_t>(b * T + count++)] = t;
    }
}

py::array real_steps(const py::object& lengths, const py::object& mask, Index T, Index B,
                     const std::string& of) {
  if (!lengths.is_none() && !mask.is_none())
    bad_value(of + "mask", "None with " + of + "lengths", "an array");
  if (lengths.is_none()) {
    const std::string name = of + "mask";
    const py::array given = array_of(name.c_str(), mask, "b", "an array of booleans");
    check_shape(name, given, {T, B});
    return copied<bool>(given);
  }
  const std::string name = of + "lengths";
  const py::array given = array_of(name.c_str(), lengths, "iu", "an array of integers");
  check_shape(name, given, {B});
  const Ids of_rows = copied<std::int64_t>(given);
  for (Index b = 0; b < B; ++b)
    if (of_rows.data()[b] < 0 || of_rows.data()[b] > T)
      bad_element(name, given, b, "a length from 0 to T = " + std::to_string(T));
  py::array_t<bool> real = result<bool>({T, B});
  for (Index t = 0; t < T; ++t)
    for (Index b = 0; b < B; ++b) real.mutable_data()[t * B + b] = t < of_rows.data()[b];
  return real;
}

}  // namespace rnnkern

#include "shared.h"

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

Ids checked_input(const py::object& x, Index n) {
  const py::array given = array_of("x", x, "iu", "an array of integers");
  const Ids ids = copied<std::int64_t>(given);
  check_ids("x", given, ids, n);
  return ids;
}

}  // namespace rnnkern

// An embedding: its arguments checked.
#include "shared.h"

namespace rnnkern {
namespace {

template <class T>
void add_rows_of(const Ids& ids, const py::object& dy_given, const py::array& table) {
  Shape shape = shape_like(ids);
  shape.emplace_back(table.shape(1));
  const auto dy = as_contiguous<T>("dy", dy_given, shape);
  T* const sums = writable<T>("table", table, shape_like(table));
  unlocked([&](const Interrupt&) {
    kernels().of<T>().modules->add_rows(
        {ids.size(), table.shape(1), ids.data(), dy.data(), sums, threads()});
  });
}

// Adds the rows of dy to those of `table` that x names.
void add_rows(const py::object& x, const py::object& dy, const py::array& table) {
  const Ids ids = checked_input(x, table.shape(0));
  return py::isinstance<py::array_t<double>>(table) ? add_rows_of<double>(ids, dy, table)
                                                    : add_rows_of<float>(ids, dy, table);
}

}  // namespace

void bind_embedding(py::module_& m) {
  m.def("checked_input", &checked_input, py::arg("x"), py::arg("n"));
  m.def("add_rows", &add_rows, py::arg("x"), py::arg("dy"), py::arg("table"));
}

}  // namespace rnnkern

// An embedding: its arguments checked.
#include "shared.h"

namespace rnnkern {
namespace {

template <class T>
py::tuple look_up_in(const Ids& ids, const py::object& table_given, Index n) {
  const auto table = as_contiguous<T>("weight", table_given, {n, "E"});
  std::vector<Index> sizes(ids.shape(), ids.shape() + ids.ndim());
  sizes.push_back(table.shape(1));
  py::array_t<T> values = result<T>(sizes);
  TakeRowsCall<T> call{};
  call.rows = ids.size(), call.C = table.shape(1);
  call.ids = ids.data(), call.table = table.data(), call.values = values.mutable_data();
  call.threads = threads();
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    kernels().of<T>().modules->take_rows(call);
  });
  return py::make_tuple(ids, values);
}

// -> (a copy of x (...) as int64; the rows of table [n, E] that x names, (..., E))
py::tuple look_up(const py::object& x, const py::array& table) {
  const Index n = table.shape(0);
  const Ids ids = checked_input(x, n);
  return py::isinstance<py::array_t<double>>(table) ? look_up_in<double>(ids, table, n)
                                                    : look_up_in<float>(ids, table, n);
}

template <class T>
py::array sum_rows_of(const Ids& ids, const py::object& dy_given, Index n, Index columns) {
  Shape shape = shape_like(ids);
  shape.emplace_back(columns);
  const auto dy = as_contiguous<T>("dy", dy_given, shape);
  py::array_t<T> table = result<T>({n, columns});
  SumRowsCall<T> call{};
  call.rows = ids.size(), call.N = n, call.C = columns;
  call.ids = ids.data(), call.values = dy.data(), call.table = table.mutable_data();
  call.threads = threads();
  unlocked([&](const Interrupt&) { kernels().of<T>().modules->sum_rows(call); });
  return std::move(table);
}

// A new table [n, columns]: for each row the sum of the rows of dy where x names it.
py::array sum_rows(const py::object& x, const py::object& dy, Index n, Index columns) {
  const Ids ids = checked_input(x, n);
  return py::isinstance<py::array_t<double>>(dy) ? sum_rows_of<double>(ids, dy, n, columns)
                                                 : sum_rows_of<float>(ids, dy, n, columns);
}

}  // namespace

void bind_embedding(py::module_& m) {
  m.def("look_up", &look_up, py::arg("x"), py::arg("table"));
  m.def("sum_rows", &sum_rows, py::arg("x"), py::arg("dy"), py::arg("n"), py::arg("columns"));
}

}  // namespace rnnkern

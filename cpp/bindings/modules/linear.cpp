// A linear map: its arguments checked.
#include "shared.h"

namespace rnnkern {
namespace {

// The rows that a mask of some shape counts, by rising row.
Ids counted_rows(const py::object& mask, const std::vector<Index>& shape) {
  const py::array given = array_of("mask", mask, "b", "an array of booleans");
  check_shape("mask", given, Shape(shape.begin(), shape.end()));
  const auto counts = copied<bool>(given);
  std::vector<std::int64_t> rows;
  for (Index r = 0; r < counts.size(); ++r)
    if (counts.data()[r]) rows.push_back(r);
  Ids list = result<std::int64_t>({static_cast<Index>(rows.size())});
  std::copy_n(rows.data(), rows.size(), list.mutable_data());
  return list;
}

template <class T>
py::array linear_of(const py::object& x_given, const py::object& weight_given,
                    const py::object& bias_given, const py::object& rows_given,
                    const py::object& out) {
  const auto x = as_contiguous<T>("x", x_given, {"N", "I"});
  const Index N = x.shape(0), I = x.shape(1);
  const auto weight = as_contiguous<T>("weight", weight_given, {"O", I});
  const Index O = weight.shape(0);
  py::array_t<T> bias;
  if (!bias_given.is_none()) bias = as_contiguous<T>("bias", bias_given, {O});
  const CountedRows rows(rows_given, N);
  const py::array y = out.is_none() ? result<T>({N, O}) : typed<T>("out", out);
  T* const written = writable<T>("out", y, {N, O});
  rows.clear(py::array_t<T>(y), written);
  LinearCall<T> call{};
  call.rows = rows.size(), call.I = I, call.O = O, call.order = rows.order();
  call.x = x.data(), call.weight = weight.data();
  call.bias = bias_given.is_none() ? nullptr : bias.data();
  call.y = written, call.threads = threads();
  const auto& of_type = *kernels().of<T>().modules;
  const Block<char> workspace = block<char>(of_type.linear_workspace(call));
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    of_type.linear(call, workspace.get());
  });
  return y;
}

// y (N, O) of x (N, I); `out`, if given.
py::array linear(const py::object& x, const py::object& weight, const py::object& bias,
                 const py::object& rows, const py::object& out) {
  return py::isinstance<py::array_t<double>>(weight) ? linear_of<double>(x, weight, bias, rows, out)
                                                     : linear_of<float>(x, weight, bias, rows, out);
}

template <class T>
py::tuple linear_gradient_of(const py::object& x_given, const py::object& weight_given,
                             const py::object& dy_given, const py::object& rows_given, bool bias) {
  const auto x = as_contiguous<T>("x", x_given, {"N", "I"});
  const Index N = x.shape(0), I = x.shape(1);
  const auto weight = as_contiguous<T>("weight", weight_given, {"O", I});
  const Index O = weight.shape(0);
  const auto dy = as_contiguous<T>("dy", dy_given, {N, O});
  const CountedRows rows(rows_given, N);
  py::array_t<T> dx = result<T>({N, I}), dweight = result<T>({O, I});
  py::array_t<T> dbias = bias ? result<T>({O}) : py::array_t<T>();
  rows.clear(dx, dx.mutable_data());
  if (rows.size() == 0) std::fill_n(dweight.mutable_data(), dweight.size(), T(0));
  LinearGradientCall<T> call{};
  call.rows = rows.size(), call.I = I, call.O = O, call.order = rows.order();
  call.x = x.data(), call.weight = weight.data(), call.dy = dy.data();
  call.dx = dx.mutable_data(), call.dweight = dweight.mutable_data();
  call.dbias = bias ? dbias.mutable_data() : nullptr;
  call.threads = threads();
  const auto& of_type = *kernels().of<T>().modules;
  const Block<char> workspace = block<char>(of_type.linear_gradient_workspace(call));
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    of_type.linear_gradient(call, workspace.get());
  });
  return py::make_tuple(dweight, bias ? py::object(dbias) : py::none(), dx);
}

// -> (dweight, dbias, dx)
py::tuple linear_gradient(const py::object& x, const py::object& weight, const py::object& dy,
                          const py::object& rows, bool bias) {
  return py::isinstance<py::array_t<double>>(weight)
             ? linear_gradient_of<double>(x, weight, dy, rows, bias)
             : linear_gradient_of<float>(x, weight, dy, rows, bias);
}

}  // namespace

void bind_linear(py::module_& m) {
  m.def("counted_rows", &counted_rows, py::arg("mask"), py::arg("shape"));
  m.def("linear", &linear, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("rows"),
        py::arg("out"));
  m.def("linear_gradient", &linear_gradient, py::arg("x"), py::arg("weight"), py::arg("dy"),
        py::arg("rows"), py::arg("bias"));
}

}  // namespace rnnkern

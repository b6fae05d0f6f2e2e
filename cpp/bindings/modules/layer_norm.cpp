// Layer norm: its arguments checked.
#include "shared.h"

namespace rnnkern {
namespace {

template <class T>
py::tuple layer_norm_of(const py::object& x_given, const py::object& weight_given,
                        const py::object& bias_given, double epsilon, const py::object& rows_given,
                        const py::object& out) {
  const auto x = as_contiguous<T>("x", x_given, {"N", "C"});
  const Index N = x.shape(0), C = x.shape(1);
  const auto weight = as_contiguous<T>("weight", weight_given, {C});
  py::array_t<T> bias;
  if (!bias_given.is_none()) bias = as_contiguous<T>("bias", bias_given, {C});
  const CountedRows rows(rows_given, N);
  const py::array y = out.is_none() ? result<T>({N, C}) : typed<T>("out", out);
  T* const written = writable<T>("out", y, {N, C});
  rows.clear(py::array_t<T>(y), written);
  py::array_t<double> moments = result<double>({rows.size(), 2});
  LayerNormCall<T> call{};
  call.rows = rows.size(), call.C = C, call.order = rows.order();
  call.x = x.data(), call.weight = weight.data();
  call.bias = bias_given.is_none() ? nullptr : bias.data();
  call.epsilon = epsilon;
  call.y = written, call.moments = moments.mutable_data(), call.threads = threads();
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    kernels().of<T>().modules->layer_norm(call);
  });
  return py::make_tuple(y, moments);
}

// -> (y (N, C) of x (N, C): `out`, if given; moments of the rows that count)
py::tuple layer_norm(const py::object& x, const py::object& weight, const py::object& bias,
                     double epsilon, const py::object& rows, const py::object& out) {
  return py::isinstance<py::array_t<double>>(weight)
             ? layer_norm_of<double>(x, weight, bias, epsilon, rows, out)
             : layer_norm_of<float>(x, weight, bias, epsilon, rows, out);
}

template <class T>
py::tuple layer_norm_gradient_of(const py::object& x_given, const py::object& weight_given,
                                 const py::object& dy_given, const py::object& moments_given,
                                 const py::object& rows_given, bool bias) {
  const auto x = as_contiguous<T>("x", x_given, {"N", "C"});
  const Index N = x.shape(0), C = x.shape(1);
  const auto weight = as_contiguous<T>("weight", weight_given, {C});
  const auto dy = as_contiguous<T>("dy", dy_given, {N, C});
  const CountedRows rows(rows_given, N);
  const auto moments = as_contiguous<double>("moments", moments_given, {rows.size(), Index{2}});
  py::array_t<T> dx = result<T>({N, C}), dweight = result<T>({C});
  py::array_t<T> dbias = bias ? result<T>({C}) : py::array_t<T>();
  rows.clear(dx, dx.mutable_data());
  LayerNormGradientCall<T> call{};
  call.rows = rows.size(), call.C = C, call.order = rows.order();
  call.x = x.data(), call.weight = weight.data();
  call.dy = dy.data(), call.moments = moments.data();
  call.dx = dx.mutable_data(), call.dweight = dweight.mutable_data();
  call.dbias = bias ? dbias.mutable_data() : nullptr;
  call.threads = threads();
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    kernels().of<T>().modules->layer_norm_gradient(call);
  });
  return py::make_tuple(dweight, bias ? py::object(dbias) : py::none(), dx);
}

// -> (dweight, dbias or None, dx)
py::tuple layer_norm_gradient(const py::object& x, const py::object& weight, const py::object& dy,
                              const py::object& moments, const py::object& rows, bool bias) {
  return py::isinstance<py::array_t<double>>(weight)
             ? layer_norm_gradient_of<double>(x, weight, dy, moments, rows, bias)
             : layer_norm_gradient_of<float>(x, weight, dy, moments, rows, bias);
}

}  // namespace

void bind_layer_norm(py::module_& m) {
  m.def("layer_norm", &layer_norm, py::arg("x"), py::arg("weight"), py::arg("bias"),
        py::arg("epsilon"), py::arg("rows"), py::arg("out"));
  m.def("layer_norm_gradient", &layer_norm_gradient, py::arg("x"), py::arg("weight"), py::arg("dy"),
        py::arg("moments"), py::arg("rows"), py::arg("bias"));
}

}  // namespace rnnkern

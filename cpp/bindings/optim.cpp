// The fused optimizer steps, one array at a time. src/rnnkern/optim.py checks a whole step's arrays
// before the first one is written, and says which one is wrong; here is what memory safety needs.
#include <pybind11/stl.h>

#include <iterator>
#include <optional>

#include "../core/dispatch.h"
#include "../core/runtime.h"
#include "layer.h"

namespace rnnkern {
namespace {

Optimizer optimizer(const std::string& kind) {
  for (std::size_t i = 0; i < std::size(kOptimizers); ++i)
    if (kind == kOptimizers[i]) return static_cast<Optimizer>(i);
  bad_value("kind", "sgd, rmsprop, adam or adamw", "'" + kind + "'");
}

// Calls use(T{}) with the element type of an array of float32 or float64.
template <class Use>
auto with_dtype(const py::array& a, const Use& use) {
  return py::isinstance<py::array_t<double>>(a) ? use(double{}) : use(float{});
}

Shape shape_like(const py::array& a) { return Shape(a.shape(), a.shape() + a.ndim()); }

double sum_of_squares(const py::array& values) {
  return with_dtype(values, [&](auto zero) {
    using T = decltype(zero);
    const auto a = flat<T>("values", values, shape_like(values));
    const T* const data = a.data();
    const Index n = a.size();
    const py::gil_scoped_release released;
    return kernels().of<T>().sum_of_squares(data, n);
  });
}

void optimizer_step(const std::string& kind, const py::array& parameter, const py::array& gradient,
                    const std::optional<py::array>& first, const std::optional<py::array>& second,
                    double scale, double l1, double l2, double lr, double momentum, bool nesterov,
                    double beta1, double beta2, double eps, double correction1, double correction2,
                    double weight_decay) {
  with_dtype(parameter, [&](auto zero) {
    using T = decltype(zero);
    const Shape shape = shape_like(parameter);
    const auto written = [&](const char* name, const std::optional<py::array>& a) {
      return a ? writable<T>(name, typed<T>(name, *a), shape) : nullptr;
    };
    const auto g = flat<T>("gradient", gradient, shape);
    OptimizerStep<T> step{};
    step.kind = optimizer(kind);
    step.n = parameter.size();
    step.parameter = written("parameter", parameter);
    step.gradient = g.data();
    step.first = written("first", first);
    step.second = written("second", second);
    step.scale = scale, step.l1 = l1, step.l2 = l2;
    step.lr = lr, step.momentum = momentum, step.nesterov = nesterov;
    step.beta1 = beta1, step.beta2 = beta2, step.eps = eps;
    step.correction1 = correction1, step.correction2 = correction2;
    step.weight_decay = weight_decay;
    step.threads = threads();
    const py::gil_scoped_release released;
    kernels().of<T>().optimizer_step(step);
  });
}

}  // namespace

void bind_optim(py::module_& m) {
  m.def("sum_of_squares", &sum_of_squares, py::arg("values"));
  m.def("optimizer_step", &optimizer_step, py::arg("kind"), py::arg("parameter"),
        py::arg("gradient"), py::arg("first"), py::arg("second"), py::kw_only(), py::arg("scale"),
        py::arg("l1"), py::arg("l2"), py::arg("lr"), py::arg("momentum") = 0.0,
        py::arg("nesterov") = false, py::arg("beta1") = 0.0, py::arg("beta2") = 0.0,
        py::arg("eps") = 0.0, py::arg("correction1") = 1.0, py::arg("correction2") = 1.0,
        py::arg("weight_decay") = 0.0);
}

}  // namespace rnnkern

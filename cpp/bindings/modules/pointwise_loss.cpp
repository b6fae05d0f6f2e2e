// Losses of elements: their arguments checked.
#include "shared.h"

namespace rnnkern {
namespace {

struct Named {
  const char* name;
  PointwiseLoss kind;
};
constexpr Named kLosses[] = {{"binary_cross_entropy", PointwiseLoss::binary_cross_entropy},
                             {"mean_squared_error", PointwiseLoss::mean_squared_error},
                             {"huber", PointwiseLoss::huber},
                             {"quantile", PointwiseLoss::quantile},
                             {"gaussian_nll", PointwiseLoss::gaussian}};

PointwiseLoss kind_of(const std::string& name) {
  for (const Named& one : kLosses)
    if (name == one.name) return one.kind;
  throw py::value_error("kind: expected a loss, got " + name);
}

const char* name_of(PointwiseLoss kind) {
  return kind == PointwiseLoss::binary_cross_entropy ? "logits" : "outputs";
}

// Targets of the outputs' type; of a binary loss also booleans.
template <class T>
py::array_t<T, py::array::c_style> targets_of(const py::object& value, const Shape& shape,
                                              bool binary) {
  if (!binary || !py::isinstance<py::array>(value) ||
      py::reinterpret_borrow<py::array>(value).dtype().kind() != 'b')
    return as_contiguous<T>("targets", value, shape);
  const py::array given = array_of("targets", value, "b", "an array of booleans");
  check_shape("targets", given, shape);
  return copied<T>(given);
}

// The shapes of a call, by its outputs (..., K), or (..., 2 K) of gaussian.
struct LossShapes {
  Index rows, K;    // K losses a row
  Shape outputs;    // as given
  Shape of_rows;    // (...)
  Shape of_losses;  // (..., K)
  LossShapes(PointwiseLoss kind, const py::array& given) : outputs(shape_like(given)) {
    const bool gaussian = kind == PointwiseLoss::gaussian;
    const Index columns = outputs.empty() ? 0 : outputs.back().size;
    if (columns == 0 || (gaussian && columns % 2 != 0))
      bad_value(
          name_of(kind),
          gaussian ? "shape (..., 2 K) with K at least 1" : "shape (..., K) with K at least 1",
          shape_of(given));
    rows = given.size() / columns, K = gaussian ? columns / 2 : columns;
    of_rows.assign(outputs.begin(), outputs.end() - 1);
    of_losses = of_rows;
    of_losses.emplace_back(K);
  }
};

// What a loss reads besides outputs and targets: [1] of huber, [K] of others; empty of None.
template <class T>
py::array_t<T> loss_parameters(PointwiseLoss kind, const py::object& given, Index K) {
  if (given.is_none()) return {};
  const bool one = kind == PointwiseLoss::huber;
  const char* const name = kind == PointwiseLoss::quantile ? "quantiles"
                           : one                           ? "delta"
                                                           : "pos_weight";
  return copied<T>(
      checked_weights(name, given, {one ? Index{1} : K}, "iuf", "an array of numbers"));
}

// The weights of rows, or of elements: of a mask with as many axes as the losses.
struct LossWeights {
  py::array_t<double> values;
  bool each = false;  // of elements
  LossWeights(const py::object& mask, const LossShapes& shapes) {
    py::object own = mask;
    if (!mask.is_none()) {
      const py::array given = array_of("mask", mask, "biuf", "an array of booleans or weights");
      each = given.ndim() == static_cast<py::ssize_t>(shapes.of_losses.size());
      own = given;
    }
    values = mask_weights(own, each ? shapes.of_losses : shapes.of_rows);
  }
};

template <class T>
py::tuple pointwise_loss_of(PointwiseLoss kind, const py::array& outputs_given,
                            const py::object& targets_given, const py::object& parameters_given,
                            const py::object& mask, bool mean, bool each_loss,
                            const py::object& out) {
  const char* const name = name_of(kind);
  const LossShapes shapes(kind, outputs_given);
  const auto targets = targets_of<T>(
      targets_given, kind == PointwiseLoss::quantile ? shapes.of_rows : shapes.of_losses,
      kind == PointwiseLoss::binary_cross_entropy);
  const py::array_t<T> parameters = loss_parameters<T>(kind, parameters_given, shapes.K);
  const LossWeights weights(mask, shapes);
  const auto outputs = as_contiguous<T>(name, outputs_given, shapes.outputs);
  const py::array gradient = out.is_none() ? empty_like<T>(outputs) : typed<T>("out", out);
  T* const written = writable<T>("out", gradient, shapes.outputs);
  if (written != outputs.data()) refuse_overlap("out", gradient, name, outputs);
  refuse_overlap("out", gradient, "targets", targets);

  py::array_t<double> sums = result<double>({shapes.rows}), losses;
  if (each_loss) {
    std::vector<Index> sizes;
    for (const Axis& axis : shapes.of_losses) sizes.push_back(axis.size);
    losses = result<double>(sizes);
  }
  PointwiseLossCall<T> call{};
  call.kind = kind, call.rows = shapes.rows, call.K = shapes.K;
  call.outputs = outputs.data(), call.targets = targets.data();
  call.parameters = parameters_given.is_none() ? nullptr : parameters.data();
  call.weights = weights.values.data(), call.each = weights.each, call.mean = mean;
  call.gradient = written, call.losses = each_loss ? losses.mutable_data() : nullptr;
  call.sums = sums.mutable_data(), call.threads = threads();
  double loss;
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    loss = kernels().of<T>().modules->pointwise_loss(call);
  });
  return py::make_tuple(loss, each_loss ? py::object(losses) : py::none(), gradient);
}

// -> (loss, each element's times its weight or None, gradient)
py::tuple pointwise_loss(const std::string& kind, const py::object& outputs,
                         const py::object& targets, const py::object& parameters,
                         const py::object& mask, bool mean, bool each, const py::object& out) {
  const PointwiseLoss own = kind_of(kind);
  const auto call = [&](auto of) {
    const auto given = py::reinterpret_borrow<py::array>(outputs);
    return of(own, given, targets, parameters, mask, mean, each, out);
  };
  return of_floats(name_of(own), outputs) ? call(pointwise_loss_of<float>)
                                          : call(pointwise_loss_of<double>);
}

}  // namespace

void bind_pointwise_loss(py::module_& m) {
  m.def("pointwise_loss", &pointwise_loss, py::arg("kind"), py::arg("outputs"), py::arg("targets"),
        py::arg("parameters"), py::arg("mask"), py::arg("mean"), py::arg("each"), py::arg("out"));
}

}  // namespace rnnkern

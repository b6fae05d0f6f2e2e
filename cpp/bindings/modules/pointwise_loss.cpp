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

template <class T>
py::tuple pointwise_loss_of(PointwiseLoss kind, const py::array& outputs_given,
                            const py::object& targets_given, const py::object& parameters_given,
                            const py::object& mask, bool mean, bool each_loss,
                            const py::object& out) {
  const bool gaussian = kind == PointwiseLoss::gaussian, quantile = kind == PointwiseLoss::quantile;
  const bool binary = kind == PointwiseLoss::binary_cross_entropy;
  const char* const name = name_of(kind);
  const Shape shape = shape_like(outputs_given);
  const Index columns = shape.empty() ? 0 : shape.back().size;
  if (columns == 0 || (gaussian && columns % 2 != 0))
    bad_value(name,
              gaussian ? "shape (..., 2 K) with K at least 1" : "shape (..., K) with K at least 1",
              shape_of(outputs_given));
  const Shape rows(shape.begin(), shape.end() - 1);
  Shape of_losses = rows;
  const Index K = gaussian ? columns / 2 : columns;
  of_losses.emplace_back(K);
  const auto targets = targets_of<T>(targets_given, quantile ? rows : of_losses, binary);
  py::array_t<T> parameters;
  if (!parameters_given.is_none()) {
    const bool one = kind == PointwiseLoss::huber;
    const char* const of = quantile ? "quantiles" : one ? "delta" : "pos_weight";
    parameters = copied<T>(
        checked_weights(of, parameters_given, {one ? Index{1} : K}, "iuf", "an array of numbers"));
  }
  // Of rows, or of elements: a mask with as many axes as the losses.
  py::object own_mask = mask;
  bool each = false;
  if (!mask.is_none()) {
    const py::array given = array_of("mask", mask, "biuf", "an array of booleans or weights");
    each = given.ndim() == static_cast<py::ssize_t>(of_losses.size());
    own_mask = given;
  }
  const py::array_t<double> weights = mask_weights(own_mask, each ? of_losses : rows);
  const auto outputs = as_contiguous<T>(name, outputs_given, shape);
  const py::array gradient = out.is_none() ? empty_like<T>(outputs) : typed<T>("out", out);
  T* const written = writable<T>("out", gradient, shape);
  if (written != outputs.data()) refuse_overlap("out", gradient, name, outputs);
  refuse_overlap("out", gradient, "targets", targets);

  const Index N = outputs.size() / columns;
  py::array_t<double> sums = result<double>({N}), losses;
  if (each_loss) {
    std::vector<Index> sizes;
    for (const Axis& axis : of_losses) sizes.push_back(axis.size);
    losses = result<double>(sizes);
  }
  PointwiseLossCall<T> call{kind,
                            N,
                            K,
                            outputs.data(),
                            targets.data(),
                            parameters_given.is_none() ? nullptr : parameters.data(),
                            weights.data(),
                            each,
                            mean,
                            written,
                            each_loss ? losses.mutable_data() : nullptr,
                            sums.mutable_data(),
                            threads(),
                            {}};
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

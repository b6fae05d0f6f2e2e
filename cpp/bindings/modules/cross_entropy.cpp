// Softmax cross-entropy: its arguments checked.
#include <limits>
#include <optional>

#include "shared.h"

namespace rnnkern {
namespace {

// The rows' weights: the mask's, and 0 where the target is the one to be ignored. Up to float32's
// largest, so that no sum of them overflows.
py::array_t<double> row_weights(const py::array& targets, const Ids& ids, const py::object& mask,
                                std::optional<std::int64_t> ignored) {
  const Index rows = ids.size();
  py::array_t<double> weights;
  if (mask.is_none()) {
    weights = result<double>({targets.shape(), targets.shape() + targets.ndim()});
    std::fill_n(weights.mutable_data(), rows, 1.0);
  } else {
    const py::array given = array_of("mask", mask, "biuf", "an array of booleans or weights");
    check_shape("mask", given, shape_like(targets));
    weights = copied<double>(given);
    for (Index r = 0; r < rows; ++r)
      if (!(weights.data()[r] >= 0 && weights.data()[r] <= std::numeric_limits<float>::max()))
        bad_element("mask", given, r, "a weight from 0 to 3.4e38");
  }
  // Unsigned targets of 2^63 or more, which are negative in `ids`, match nothing.
  if (ignored && (*ignored >= 0 || targets.dtype().kind() == 'i')) {
    double* const weight = weights.mutable_data();
    for (Index r = 0; r < rows; ++r)
      if (ids.data()[r] == *ignored) weight[r] = 0;
  }
  return weights;
}

template <class T>
py::tuple cross_entropy_of(const py::array& logits_given, const py::object& targets_given,
                           const py::object& mask, std::optional<std::int64_t> ignored, bool mean,
                           const py::object& out) {
  const py::ssize_t axis = logits_given.ndim() - 1;
  if (axis < 0 || logits_given.shape(axis) == 0)
    bad_value("logits", "shape (..., V) with V at least 1", shape_of(logits_given));
  const Shape shape = shape_like(logits_given);
  const py::array targets = array_of("targets", targets_given, "iu", "an array of integers");
  check_shape("targets", targets, Shape(shape.begin(), shape.end() - 1));

  const Index V = shape.back().size;
  const Ids ids = copied<std::int64_t>(targets);
  const py::array_t<double> weights = row_weights(targets, ids, mask, ignored);
  const std::string also = ignored ? " or ignore_index " + std::to_string(*ignored) : "";
  check_ids("targets", targets, ids, V, weights.data(), also);
  const auto logits = as_contiguous<T>("logits", logits_given, shape);
  const py::array gradient = out.is_none() ? empty_like<T>(logits) : typed<T>("out", out);
  T* const written = writable<T>("out", gradient, shape);
  if (written != logits.data()) refuse_overlap("out", gradient, "logits", logits);
  refuse_overlap("out", gradient, "targets", targets);

  py::array_t<double> losses = empty_like<double>(targets);
  CrossEntropyCall<T> call{ids.size(), V,       logits.data(),         ids.data(), weights.data(),
                           mean,       written, losses.mutable_data(), threads(),  {}};
  double loss;
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    loss = kernels().of<T>().modules->cross_entropy(call);
  });
  return py::make_tuple(loss, losses, gradient);
}

// -> (loss, the rows' losses times their weights, gradient)
py::tuple cross_entropy(const py::object& logits, const py::object& targets, const py::object& mask,
                        std::optional<std::int64_t> ignored, bool mean, const py::object& out) {
  const auto call = [&](auto of, const py::array& a) {
    return of(a, targets, mask, ignored, mean, out);
  };
  if (py::isinstance<py::array_t<float>>(logits)) return call(cross_entropy_of<float>, logits);
  if (py::isinstance<py::array_t<double>>(logits)) return call(cross_entropy_of<double>, logits);
  const bool array = py::isinstance<py::array>(logits), scalar = py::hasattr(logits, "dtype");
  bad_type("logits", "an array of dtype float32 or float64",
           array    ? py::str(logits.attr("dtype"))
           : scalar ? py::str("a scalar")
                    : py::str(py::type::of(logits).attr("__name__")));
}

}  // namespace

void bind_cross_entropy(py::module_& m) {
  m.def("cross_entropy", &cross_entropy, py::arg("logits"), py::arg("targets"), py::arg("mask"),
        py::arg("ignore_index"), py::arg("mean"), py::arg("out"));
}

}  // namespace rnnkern

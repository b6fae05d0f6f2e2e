// Softmax cross-entropy: its arguments checked.
#include <optional>

#include "shared.h"

namespace rnnkern {
namespace {

// The rows' weights: the mask's, and 0 where the target is the one to be ignored.
py::array_t<double> row_weights(const py::array& targets, const Ids& ids, const py::object& mask,
                                std::optional<std::int64_t> ignored) {
  py::array_t<double> weights = mask_weights(mask, shape_like(targets));
  // Unsigned targets of 2^63 or more, which are negative in `ids`, match nothing.
  if (ignored && (*ignored >= 0 || targets.dtype().kind() == 'i')) {
    double* const weight = weights.mutable_data();
    for (Index r = 0; r < ids.size(); ++r)
      if (ids.data()[r] == *ignored) weight[r] = 0;
  }
  return weights;
}

// What the options make of the targets.
struct Options {
  double smoothing;
  py::object class_weights;
};

// Memory of SpreadTargets.
template <class T>
struct SpreadArrays {
  std::vector<T> scale, base;
  // w: [V] or none.
  SpreadArrays(double smoothing, const py::array_t<double>& w, bool weighted, Index V) {
    const Index n = weighted ? V : kLineBytes / static_cast<Index>(sizeof(T));
    for (Index j = 0; j < n; ++j) {
      const double weight = weighted ? w.data()[j] : 1.0;
      scale.push_back(static_cast<T>((1.0 - smoothing) * weight));
      base.push_back(static_cast<T>(smoothing * weight / static_cast<double>(V)));
    }
  }
};

// Targets of logits (..., V): classes or, as floats, distributions; and what each row counts.
template <class T>
struct ClassTargets {
  py::array array;  // as given
  bool soft;
  Ids ids;                                           // [rows], or
  py::array_t<T, py::array::c_style> distributions;  // [rows, V], if soft
  py::array_t<double> weights;                       // [rows]
  ClassTargets(const py::object& given, const Shape& shape, const py::object& mask,
               std::optional<std::int64_t> ignored)
      : array(array_of("targets", given, "iuf", "an array of integers")),
        soft(array.dtype().kind() == 'f' &&
             array.ndim() == static_cast<py::ssize_t>(shape.size())) {
    const Shape rows(shape.begin(), shape.end() - 1);
    if (soft) {
      distributions = as_contiguous<T>("targets", array, shape);
      if (ignored)
        bad_value("ignore_index", "None with targets of floats", std::to_string(*ignored));
      weights = mask_weights(mask, rows);
      return;
    }
    array_of("targets", array, "iu", "an array of integers");
    check_shape("targets", array, rows);
    ids = copied<std::int64_t>(array);
    weights = row_weights(array, ids, mask, ignored);
    const std::string also = ignored ? " or ignore_index " + std::to_string(*ignored) : "";
    check_ids("targets", array, ids, shape.back().size, weights.data(), also);
  }
};

template <class T>
py::tuple cross_entropy_of(const py::array& logits_given, const py::object& targets_given,
                           const py::object& mask, std::optional<std::int64_t> ignored,
                           const Options& options, bool mean, const py::object& out) {
  const py::ssize_t axis = logits_given.ndim() - 1;
  if (axis < 0 || logits_given.shape(axis) == 0)
    bad_value("logits", "shape (..., V) with V at least 1", shape_of(logits_given));
  const Shape shape = shape_like(logits_given);
  const Index V = shape.back().size;
  const ClassTargets<T> targets(targets_given, shape, mask, ignored);
  const bool soft = targets.soft;
  const py::array_t<double>& weights = targets.weights;
  const bool weighted = !options.class_weights.is_none();
  py::array_t<double> of_classes, shares;
  if (weighted)
    of_classes =
        checked_weights("class_weights", options.class_weights, {V}, "iuf", "an array of weights");
  const bool spread = soft ? weighted || options.smoothing > 0 : options.smoothing > 0;
  const SpreadArrays<T> arrays(options.smoothing, of_classes, weighted, V);
  if (weighted && !soft) {  // a row counts what its class does
    shares = spread ? copied<double>(weights) : weights;
    double* const share = shares.mutable_data();
    for (Index r = 0; r < targets.ids.size(); ++r)
      if (share[r] > 0) share[r] *= of_classes.data()[targets.ids.data()[r]];
  }
  const auto logits = as_contiguous<T>("logits", logits_given, shape);
  const py::array gradient = out.is_none() ? empty_like<T>(logits) : typed<T>("out", out);
  T* const written = writable<T>("out", gradient, shape);
  if (written != logits.data()) refuse_overlap("out", gradient, "logits", logits);
  refuse_overlap("out", gradient, "targets", targets.array);

  py::array_t<double> losses = empty_like<double>(weights);
  CrossEntropyCall<T> call{};
  call.rows = weights.size(), call.V = V;
  call.logits = logits.data(), call.targets = targets.ids.data(), call.weights = weights.data();
  call.mean = mean, call.gradient = written, call.losses = losses.mutable_data();
  call.threads = threads();
  if (spread || soft)
    call.spread = {soft ? targets.distributions.data() : nullptr, arrays.scale.data(),
                   arrays.base.data(), weighted ? 1 : 0};
  if (spread && shares.size() != 0) call.shares = shares.data();
  double loss;
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    loss = kernels().of<T>().modules->cross_entropy(call);
  });
  return py::make_tuple(loss, losses, gradient);
}

// -> (loss, the rows' losses times their weights, gradient)
py::tuple cross_entropy(const py::object& logits, const py::object& targets, const py::object& mask,
                        std::optional<std::int64_t> ignored, double smoothing,
                        const py::object& class_weights, bool mean, const py::object& out) {
  const auto call = [&](auto of, const py::array& a) {
    return of(a, targets, mask, ignored, Options{smoothing, class_weights}, mean, out);
  };
  return of_floats("logits", logits) ? call(cross_entropy_of<float>, logits)
                                     : call(cross_entropy_of<double>, logits);
}

}  // namespace

void bind_cross_entropy(py::module_& m) {
  m.def("cross_entropy", &cross_entropy, py::arg("logits"), py::arg("targets"), py::arg("mask"),
        py::arg("ignore_index"), py::arg("label_smoothing"), py::arg("class_weights"),
        py::arg("mean"), py::arg("out"));
}

}  // namespace rnnkern

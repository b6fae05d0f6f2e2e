// The modules around a layer: their arguments checked.
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "../core/dispatch.h"
#include "../core/threads/runtime.h"
#include "layer.h"
#include "unlocked.h"

namespace rnnkern {
namespace {

Shape shape_like(const py::array& a) { return Shape(a.shape(), a.shape() + a.ndim()); }

template <class T>
py::array_t<T> empty_like(const py::array& a) {
  return py::array_t<T>(std::vector<py::ssize_t>(a.shape(), a.shape() + a.ndim()));
}

// A copy as T in C order. A caller's array can change at any time: elements are copied first, and
// what was checked is what is used.
template <class T>
py::array_t<T> copied(const py::array& a) {
  py::array_t<T> copy = result<T>({a.shape(), a.shape() + a.ndim()});
  const py::array_t<T, py::array::c_style | py::array::forcecast> same(a);
  std::copy_n(same.data(), same.size(), copy.mutable_data());
  return copy;
}
using Ids = py::array_t<std::int64_t>;

// An array of one of `kinds` (NumPy's letters), which `expected` says in words. A view, whose
// shape, strides and dtype no caller can change.
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

// Refuses the element at place `i` of the flattened array: "targets[3, 1]: expected ...".
[[noreturn]] void bad_element(const std::string& name, const py::array& a, Index i,
                              const std::string& expected) {
  const py::object got = a.attr("item")(i);
  std::string axes;
  for (py::ssize_t axis = a.ndim() - 1; axis >= 0; i /= a.shape(axis), --axis)
    axes = std::to_string(i % a.shape(axis)) + (axes.empty() ? "" : ", ") + axes;
  bad_value(axes.empty() ? name : name + "[" + axes + "]", expected, py::str(got));
}

// `ids`, the copy of `given`, are from 0 to below `n`; anything where the weight is zero.
void check_ids(const char* name, const py::array& given, const Ids& ids, Index n,
               const double* weights = nullptr, const std::string& also = "") {
  const std::int64_t* const id = ids.data();
  for (Index r = 0; r < ids.size(); ++r)
    if ((id[r] < 0 || id[r] >= n) && (!weights || weights[r] > 0))
      bad_element(name, given, r, "an integer from 0 to " + std::to_string(n - 1) + also);
}

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
    loss = kernels().of<T>().cross_entropy(call);
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

// A copy of an embedding's input, as int64.
Ids checked_input(const py::object& x, Index n) {
  const py::array given = array_of("x", x, "iu", "an array of integers");
  const Ids ids = copied<std::int64_t>(given);
  check_ids("x", given, ids, n);
  return ids;
}

template <class T>
void add_rows_of(const Ids& ids, const py::object& dy_given, const py::array& table) {
  Shape shape = shape_like(ids);
  shape.emplace_back(table.shape(1));
  const auto dy = as_contiguous<T>("dy", dy_given, shape);
  T* const sums = writable<T>("table", table, shape_like(table));
  unlocked([&](const Interrupt&) {
    kernels().of<T>().add_rows(
        {ids.size(), table.shape(1), ids.data(), dy.data(), sums, threads()});
  });
}

// Adds the rows of dy to those of `table` that x names.
void add_rows(const py::object& x, const py::object& dy, const py::array& table) {
  const Ids ids = checked_input(x, table.shape(0));
  return py::isinstance<py::array_t<double>>(table) ? add_rows_of<double>(ids, dy, table)
                                                    : add_rows_of<float>(ids, dy, table);
}

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

// Which of N rows a linear map reads and writes.
class CountedRows {
 public:
  CountedRows(const py::object& rows, Index N) : all_(rows.is_none()), size_(N) {
    if (all_) return;
    list_ = checked_input(rows, N);
    size_ = list_.size();
  }
  Index size() const { return size_; }
  const Index* order() const { return all_ ? nullptr : list_.data(); }
  // The rows that do not count are zeros.
  template <class T>
  void clear(const py::array_t<T>& a, T* values) const {
    if (!all_) std::fill_n(values, a.size(), T(0));
  }

 private:
  bool all_;
  Ids list_;
  Index size_;
};

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
  LinearCall<T> call{rows.size(),
                     I,
                     O,
                     rows.order(),
                     x.data(),
                     weight.data(),
                     bias_given.is_none() ? nullptr : bias.data(),
                     written,
                     threads(),
                     {}};
  const auto& of_type = kernels().of<T>();
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
  LinearGradientCall<T> call{rows.size(),
                             I,
                             O,
                             rows.order(),
                             x.data(),
                             weight.data(),
                             dy.data(),
                             dx.mutable_data(),
                             dweight.mutable_data(),
                             bias ? dbias.mutable_data() : nullptr,
                             threads(),
                             {}};
  const auto& of_type = kernels().of<T>();
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

void bind_modules(py::module_& m) {
  m.def("counted_rows", &counted_rows, py::arg("mask"), py::arg("shape"));
  m.def("linear", &linear, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("rows"),
        py::arg("out"));
  m.def("linear_gradient", &linear_gradient, py::arg("x"), py::arg("weight"), py::arg("dy"),
        py::arg("rows"), py::arg("bias"));
  m.def("cross_entropy", &cross_entropy, py::arg("logits"), py::arg("targets"), py::arg("mask"),
        py::arg("ignore_index"), py::arg("mean"), py::arg("out"));
  m.def("checked_input", &checked_input, py::arg("x"), py::arg("n"));
  m.def("add_rows", &add_rows, py::arg("x"), py::arg("dy"), py::arg("table"));
}

}  // namespace rnnkern

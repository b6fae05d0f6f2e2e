// The optimizers' one pass over all arrays of a step. Every array is checked before the first is
// written; the messages that name a caller's array are src/rnnkern/optim.py's.
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <iterator>
#include <optional>

#include "../core/dispatch.h"
#include "../core/threads/runtime.h"
#include "layer.h"
#include "unlocked.h"

namespace rnnkern {
namespace {

Optimizer optimizer(const std::string& kind) {
  for (std::size_t i = 0; i < std::size(kOptimizers); ++i)
    if (kind == kOptimizers[i]) return static_cast<Optimizer>(i);
  bad_value("kind", "sgd, rmsprop, adam or adamw", "'" + kind + "'");
}

bool is_double(const py::array& a) { return py::isinstance<py::array_t<double>>(a); }
Shape shape_like(const py::array& a) { return Shape(a.shape(), a.shape() + a.ndim()); }

template <class T>
std::vector<double> sums_of(const py::array& values, Index parts) {
  const auto a = as_contiguous<T>("values", values, shape_like(values));
  const T* const data = a.data();
  const Index n = a.size() / parts;
  std::vector<double> sums;
  sums.reserve(static_cast<std::size_t>(parts));  // without the lock nothing may throw
  unlocked([&](const Interrupt&) {
    for (Index i = 0; i < parts; ++i)
      sums.push_back(kernels().of<T>().sum_of_squares(data + i * n, n));
  });
  return sums;
}
// One sum for each of `parts` equal parts.
std::vector<double> sums_of_squares(const py::array& values, Index parts) {
  return is_double(values) ? sums_of<double>(values, parts) : sums_of<float>(values, parts);
}

// Parameter, gradient, the rows that it is of if not of all, first and second moment, learning
// rate, l1, l2, weight decay.
using Arrays = std::tuple<py::array, py::array, std::optional<py::array>, std::optional<py::array>,
                          std::optional<py::array>, double, double, double, double>;

// Which of the members that the arrays hold side by side is stepped, and what is its own of the
// rule: scale, correction1, correction2.
using Member = std::tuple<Index, double, double, double>;

// What steps read until the end: gradients, and copies of the ids of rows.
struct Kept {
  std::vector<py::array> gradients;
  std::deque<std::vector<std::int64_t>> ids;
};

// A copy of ids of rows, each once and from 0 to below n: the core writes to these.
const std::int64_t* checked_ids(const py::array& given, Index n, Kept& kept) {
  const py::array_t<std::int64_t, py::array::c_style | py::array::forcecast> ids(given);
  check_shape("ids", ids, {"n"});
  const auto& copy = kept.ids.emplace_back(ids.data(), ids.data() + ids.size());
  std::int64_t least = 0;
  for (const std::int64_t id : copy) {
    if (id < least || id >= n)
      bad_value("ids", "rising ones from 0 to " + std::to_string(n - 1), std::to_string(id));
    least = id + 1;
  }
  return copy.data();
}

template <class T>
OptimizerStep<T> checked(const OptimizerRule& rule, const Arrays& arrays, Kept& kept) {
  const auto& [parameter, gradient, ids, first, second, lr, l1, l2, weight_decay] = arrays;
  const Shape shape = shape_like(parameter);
  Shape read = shape;
  const std::int64_t* own_ids = nullptr;
  Index rows = 0, columns = 0;
  if (ids) {
    if (parameter.ndim() < 2) bad_value("parameter", "at least two axes", shape_of(parameter));
    columns = parameter.shape(parameter.ndim() - 1), rows = 1;
    for (py::ssize_t axis = 0; axis + 1 < parameter.ndim(); ++axis) rows *= parameter.shape(axis);
    own_ids = checked_ids(*ids, rows, kept);
    read = {static_cast<Index>(kept.ids.back().size()), columns};
  }
  const auto written = [&](const char* name, const std::optional<py::array>& a) {
    return a ? writable<T>(name, typed<T>(name, *a), shape) : nullptr;
  };
  const auto g = as_contiguous<T>("gradient", gradient, read);
  kept.gradients.push_back(g);
  return {rule,
          g.size(),
          written("parameter", parameter),
          g.data(),
          written("first", first),
          written("second", second),
          lr,
          l1,
          l2,
          weight_decay,
          own_ids,
          rows,
          columns,
          nullptr};
}

// One of `count` members' part of a step on the arrays of all.
template <class T>
void select_member(OptimizerStep<T>& part, Index index, Index count) {
  part.n /= count;
  const Index from = index * part.n;
  part.parameter += from, part.gradient += from;
  if (part.first) part.first += from;
  if (part.second) part.second += from;
}
// The same of rows, which stay numbered as in the arrays of all.
template <class T>
void select_rows(OptimizerStep<T>& part, Index index, Index count) {
  const Index rows = part.rows / count;
  const std::int64_t* const end = part.ids + (part.columns ? part.n / part.columns : 0);
  const std::int64_t* const first = std::lower_bound(part.ids, end, index * rows);
  const std::int64_t* const last = std::lower_bound(first, end, (index + 1) * rows);
  part.gradient += (first - part.ids) * part.columns;
  part.n = (last - first) * part.columns;
  part.ids = first;
}

// Each member's part of the arrays of all.
template <class T>
std::vector<OptimizerStep<T>> parts_of(const std::vector<OptimizerStep<T>>& arrays,
                                       const std::vector<Member>& members, Index count,
                                       unsigned char* finite) {
  std::vector<OptimizerStep<T>> parts;
  for (const auto& [index, scale, correction1, correction2] : members)
    for (OptimizerStep<T> part : arrays) {
      if (part.ids)
        select_rows(part, index, count);
      else
        select_member(part, index, count);
      part.scale = scale, part.correction1 = correction1, part.correction2 = correction2;
      part.finite = finite + index;
      parts.push_back(part);
    }
  return parts;
}

// `steps` counts each member's steps: it rises in the same call that updates, so that no signal of
// Python's comes between the two. Returns for each member whether all of its new parameters and
// moments are finite. A dry step computes them, and writes and counts nothing.
py::list optimizer_step(const std::string& kind, const std::vector<Arrays>& all,
                        py::array_t<std::int64_t>& steps, const std::vector<Member>& members,
                        bool dry, double momentum, bool nesterov, double beta1, double beta2,
                        double eps) {
  const OptimizerRule rule{optimizer(kind), 1, momentum, nesterov, beta1, beta2, eps, 1, 1, dry,
                           threads()};
  std::vector<OptimizerStep<float>> f32;
  std::vector<OptimizerStep<double>> f64;
  Kept kept;
  for (const Arrays& arrays : all) {
    if (is_double(std::get<0>(arrays)))
      f64.push_back(checked<double>(rule, arrays, kept));
    else
      f32.push_back(checked<float>(rule, arrays, kept));
  }
  std::vector<unsigned char> finite(static_cast<std::size_t>(steps.size()), 1);
  f32 = parts_of(f32, members, steps.size(), finite.data());
  f64 = parts_of(f64, members, steps.size(), finite.data());
  std::int64_t* const done = steps.mutable_data();
  py::list all_finite(finite.size());  // what comes after the update must not fail
  unlocked([&](const Interrupt&) {
    kernels().f32.optimizer_steps(f32.data(), static_cast<Index>(f32.size()));
    kernels().f64.optimizer_steps(f64.data(), static_cast<Index>(f64.size()));
  });
  if (!dry)
    for (const Member& member : members) ++done[std::get<0>(member)];
  for (std::size_t i = 0; i < finite.size(); ++i) all_finite[i] = py::bool_(finite[i] != 0);
  return all_finite;
}

// First and one-past-last byte that an array may touch, and which array it is.
struct Extent {
  std::uintptr_t first, last;
  std::size_t index;
};
Extent extent(const py::array& a, std::size_t index) {
  auto first = reinterpret_cast<std::uintptr_t>(a.data()), last = first;
  if (a.size() == 0) return {first, first, index};
  for (py::ssize_t i = 0; i < a.ndim(); ++i) {
    const py::ssize_t reach = (a.shape(i) - 1) * a.strides(i);
    (reach < 0 ? first : last) += static_cast<std::uintptr_t>(reach);
  }
  return {first, last + static_cast<std::uintptr_t>(a.itemsize()), index};
}

// Checks the memory of a step's arrays. Returns the places of two arrays that overlap, or of two
// tied parameters that do not have the same memory; None if there are no such two. Places count
// through `parameters`, which are C-contiguous, and then through `gradients`. `firsts` holds, for
// each parameter, the first place of those that it is tied to; its own if it is not tied. Two
// gradients may overlap.
py::object overlap(const py::list& parameters, const std::vector<std::size_t>& firsts,
                   const py::list& gradients) {
  std::vector<Extent> all, written;  // written: each parameter once, without empty ones
  for (std::size_t i = 0; i < firsts.size(); ++i) {
    all.push_back(extent(py::reinterpret_borrow<py::array>(parameters[i]), i));
    const Extent &own = all.back(), &first = all[firsts[i]];
    if (own.first != first.first || own.last != first.last) return py::make_tuple(firsts[i], i);
    if (firsts[i] == i && own.first < own.last) written.push_back(own);
  }
  std::sort(written.begin(), written.end(),
            [](const Extent& a, const Extent& b) { return a.first < b.first; });
  for (std::size_t i = 1; i < written.size(); ++i) {
    const auto [a, b] = std::minmax(written[i - 1].index, written[i].index);
    if (written[i].first < written[i - 1].last) return py::make_tuple(a, b);
  }
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const auto gradient = py::reinterpret_borrow<py::array>(gradients[i]);
    const Extent read = extent(gradient, i);
    if (read.first == read.last) continue;
    auto at = std::upper_bound(written.begin(), written.end(), read.first,
                               [](std::uintptr_t byte, const Extent& e) { return byte < e.last; });
    for (; at != written.end() && at->first < read.last; ++at)
      if (contiguous(gradient) || py::module_::import("numpy")
                                      .attr("shares_memory")(gradient, parameters[at->index])
                                      .cast<bool>())
        return py::make_tuple(at->index, parameters.size() + i);
  }
  return py::none();
}

}  // namespace

void bind_optim(py::module_& m) {
  m.def("make_read_only", &make_read_only, py::arg("arrays"));
  m.def("sums_of_squares", &sums_of_squares, py::arg("values"), py::arg("parts"));
  m.def("optimizer_step", &optimizer_step, py::arg("kind"), py::arg("arrays"),
        py::arg("steps").noconvert(), py::arg("members"), py::arg("dry"), py::kw_only(),
        py::arg("momentum") = 0.0, py::arg("nesterov") = false, py::arg("beta1") = 0.0,
        py::arg("beta2") = 0.0, py::arg("eps") = 0.0);
  m.def("overlap", &overlap, py::arg("parameters"), py::arg("firsts"), py::arg("gradients"));
}

}  // namespace rnnkern

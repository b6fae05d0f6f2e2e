// A conditional random field: its arguments checked.
#include <optional>

#include "shared.h"

namespace rnnkern {
namespace {

// The arrays that all calls read.
template <class T>
class CrfArrays {
 public:
  CrfArrays(const py::object& emissions, const py::object& mask, const py::object& start,
            const py::object& end, const py::object& transitions)
      : emissions_(as_contiguous<T>("emissions", emissions, {"T", "B", "L"})),
        start_(as_contiguous<T>("start_transitions", start, {L()})),
        end_(as_contiguous<T>("end_transitions", end, {L()})),
        transitions_(as_contiguous<T>("transitions", transitions, {L(), L()})),
        steps_(mask, Steps(), B()) {}
  Index Steps() const { return emissions_.shape(0); }
  Index B() const { return emissions_.shape(1); }
  Index L() const { return emissions_.shape(2); }
  const StepLists& steps() const { return steps_; }
  CrfInputs<T> record() const {
    CrfInputs<T> in{};
    in.B = B(), in.L = L(), in.steps = steps_.record(), in.emissions = emissions_.data();
    in.start = start_.data(), in.end = end_.data(), in.transitions = transitions_.data();
    return in;
  }

 private:
  py::array_t<T, py::array::c_style> emissions_, start_, end_, transitions_;
  StepLists steps_;
};

// A copy of the labels, those of steps that are not real being anything.
Ids checked_labels(const py::object& labels, Index steps, Index B, Index L,
                   const StepLists& lists) {
  const py::array given = array_of("labels", labels, "iu", "an array of integers");
  check_shape("labels", given, {steps, B});
  const Ids ids = copied<std::int64_t>(given);
  if (lists.are_all()) {
    check_ids("labels", given, ids, L);
    return ids;
  }
  const StepsOfRows real = lists.record();
  std::vector<double> counts(static_cast<std::size_t>(ids.size()), 0.0);
  for (Index b = 0; b < B; ++b)
    for (Index s = 0; s < real.count[b]; ++s)
      counts[static_cast<std::size_t>(real.steps[b * steps + s] * B + b)] = 1;
  check_ids("labels", given, ids, L, counts.data());
  return ids;
}

template <class T>
py::tuple crf_of(const CrfArrays<T>& in, const py::object& labels, const std::string& reduction,
                 bool gradients) {
  const bool some = !in.steps().are_all(), learns = !labels.is_none();
  const Index L = in.L(), B = in.B(), steps = in.Steps();
  const StepsOfRows real = in.steps().record();
  Index rows = 0, all_steps = 0;
  for (Index b = 0; b < B; ++b) rows += real.count[b] > 0, all_steps += real.count[b];
  const Index divisor = reduction == "mean" ? rows : reduction == "token_mean" ? all_steps : 1;
  const double factor = 1.0 / static_cast<double>(divisor > 0 ? divisor : 1);

  Ids ids;
  if (learns) ids = checked_labels(labels, steps, B, L, in.steps());
  py::array_t<double> log_partition = result<double>({B}), losses;
  if (learns) losses = result<double>({B});
  py::array_t<T> demissions, dstart, dend, dtransitions;
  if (gradients) demissions = result_or_zeros<T>({steps, B, L}, some);
  if (learns) {
    dstart = result<T>({L});
    dend = result<T>({L});
    dtransitions = result<T>({L, L});
  }
  CrfCall<T> call{};
  call.in = in.record(), call.factor = factor;
  call.log_partition = log_partition.mutable_data();
  if (gradients) call.demissions = demissions.mutable_data();
  if (learns) {
    call.labels = ids.data(), call.losses = losses.mutable_data();
    call.dstart = dstart.mutable_data(), call.dend = dend.mutable_data();
    call.dtransitions = dtransitions.mutable_data();
  }
  call.threads = threads();
  const auto& of_type = *kernels().of<T>().modules;
  const Block<char> workspace = block<char>(of_type.crf_workspace(call));
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    of_type.crf(call, workspace.get());
  });
  if (!learns)
    return py::make_tuple(log_partition, gradients ? py::object(demissions) : py::none());
  double loss = 0;
  for (Index b = 0; b < B; ++b) loss += losses.data()[b];
  return py::make_tuple(loss * factor, losses, demissions, dstart, dend, dtransitions);
}

template <class Of>
auto of_dtype(const py::object& emissions, const py::object& mask, const py::object& start,
              const py::object& end, const py::object& transitions, const Of& of) {
  return py::isinstance<py::array_t<double>>(transitions)
             ? of(CrfArrays<double>(emissions, mask, start, end, transitions))
             : of(CrfArrays<float>(emissions, mask, start, end, transitions));
}

// -> (log partitions, marginals or None)
py::tuple crf_marginals(const py::object& emissions, const py::object& mask,
                        const py::object& start, const py::object& end,
                        const py::object& transitions, bool wanted) {
  return of_dtype(emissions, mask, start, end, transitions,
                  [&](const auto& in) { return crf_of(in, py::none(), "sum", wanted); });
}

// -> (loss, the rows' losses, demissions, dstart, dend, dtransitions)
py::tuple crf_loss(const py::object& emissions, const py::object& labels, const py::object& mask,
                   const py::object& start, const py::object& end, const py::object& transitions,
                   const std::string& reduction) {
  return of_dtype(emissions, mask, start, end, transitions,
                  [&](const auto& in) { return crf_of(in, labels, reduction, true); });
}

template <class T>
py::tuple decode_of(const CrfArrays<T>& in) {
  Ids paths = result<std::int64_t>({in.Steps(), in.B()});
  if (!in.steps().are_all()) std::fill_n(paths.mutable_data(), paths.size(), -1);
  py::array_t<double> scores = result<double>({in.B()});
  CrfDecodeCall<T> call{};
  call.in = in.record(), call.paths = paths.mutable_data(), call.scores = scores.mutable_data();
  call.threads = threads();
  const auto& of_type = *kernels().of<T>().modules;
  const Block<char> workspace = block<char>(of_type.crf_decode_workspace(call));
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    of_type.crf_decode(call, workspace.get());
  });
  return py::make_tuple(paths, scores);
}

// -> (paths, scores)
py::tuple crf_decode(const py::object& emissions, const py::object& mask, const py::object& start,
                     const py::object& end, const py::object& transitions) {
  return of_dtype(emissions, mask, start, end, transitions,
                  [](const auto& in) { return decode_of(in); });
}

}  // namespace

void bind_crf(py::module_& m) {
  m.def("crf_marginals", &crf_marginals, py::arg("emissions"), py::arg("mask"), py::arg("start"),
        py::arg("end"), py::arg("transitions"), py::arg("wanted"));
  m.def("crf_loss", &crf_loss, py::arg("emissions"), py::arg("labels"), py::arg("mask"),
        py::arg("start"), py::arg("end"), py::arg("transitions"), py::arg("reduction"));
  m.def("crf_decode", &crf_decode, py::arg("emissions"), py::arg("mask"), py::arg("start"),
        py::arg("end"), py::arg("transitions"));
}

}  // namespace rnnkern

// Threads, instruction sets, what was built, and the activations for tests.
#include <pybind11/stl.h>

#include "../core/threads/cores.h"
#include "../core/threads/grid.h"
#include "../core/threads/runtime.h"
#include "layer.h"
#include "unlocked.h"

namespace rnnkern {
namespace {

std::vector<std::string> available_sets() {
  std::vector<std::string> names;
  for (int i = 0; i < kKernelsCount; ++i)
    if (kKernels[i]->runs_here()) names.emplace_back(kKernels[i]->name);
  return names;
}

// runtime.py has checked that the set is one of those available.
void use_set(const std::string& name) {
  const Kernels* set = find_kernels(name.c_str());
  if (!set || !set->runs_here()) bad_value("instruction set", "an available one", name);
  use_kernels(*set);
}

template <class T>
py::array activation(const std::string& name, py::handle x) {
  const auto in = as_contiguous<T>("x", x, {"n"});
  py::array_t<T> out(in.size());
  const TypedKernels<T>& k = kernels().of<T>();
  (name == "sigmoid" ? k.sigmoid : k.tanh)(in.data(), out.mutable_data(), in.size());
  return out;
}

void check_count(const char* name, Index count, Index most) {
  if (count < 1 || count > most)
    bad_value(name, "from 1 to " + std::to_string(most), std::to_string(count));
}
// What is not known, 0, stays what it is.
void set_caches(double l2_bytes, double l3_bytes, int l3_cores) {
  if (l2_bytes > 0) machine.l2_bytes = l2_bytes;
  if (l3_bytes > 0) machine.l3_bytes = l3_bytes;
  if (l3_cores > 0) machine.l3_cores = l3_cores;
}

// For tests: (0, 1) leaves the choice to the core.
void force_grid(int threads, int row_groups) {
  check_count("row_groups", row_groups, kMostThreads);
  forced_grid = {threads, row_groups};
}

constexpr Index kMostRounds = Index{1} << 40;  // so that the work can be counted

template <class Use>
std::pair<double, double> probed(Index rounds, const char* rounds_name, Index threads,
                                 const Use& use) {
  check_count(rounds_name, rounds, kMostRounds);
  check_count("threads", threads, kMostThreads);
  Probe found{};
  unlocked([&](const Interrupt& interrupt) {
    found = use(rounds, static_cast<int>(threads), interrupt);
  });
  return {found.work, found.sum};
}

}  // namespace

void bind_runtime(py::module_& m) {
  m.attr("__version__") = RNNKERN_VERSION;
  m.attr("compiler") = RNNKERN_COMPILER;
  m.attr("flags") = RNNKERN_FLAGS;
  m.def("instruction_set", [] { return kernels().name; });
  m.def("available_instruction_sets", &available_sets);
  m.def("use_instruction_set", &use_set, py::arg("name"));
  m.def("num_threads", &threads);
  m.def("chosen_num_threads", &chosen_threads);
  m.def("is_forked_child", [] { return forks() > 0; });
  m.def("set_num_threads", &set_threads, py::arg("n"));
  m.def("set_usable_cores", &set_usable_cores, py::arg("n"));
  m.def("caches",
        [] { return py::make_tuple(machine.l2_bytes, machine.l3_bytes, machine.l3_cores); });
  m.def("set_caches", &set_caches, py::arg("l2_bytes"), py::arg("l3_bytes"), py::arg("l3_cores"));
  m.def(
      "alone_for", [] { return 1e-9 * static_cast<double>(alone_for()); },
      "Return for how many seconds, at most, calls of this thread use one thread, since more were "
      "no gain lately.");
  m.def("last_sharing", []() -> py::object {
    const Sharing last = last_sharing();
    if (!last.shared) return py::none();
    return py::make_tuple(last.shared, last.planned, last.threads);
  });
  m.def("force_grid", &force_grid, py::arg("threads"), py::arg("row_groups"));
  m.def("release_memory", &release_cached);
  m.def(
      "activation",
      [](const std::string& name, const py::array& x) {
        return py::isinstance<py::array_t<double>>(x) ? activation<double>(name, x)
                                                      : activation<float>(name, x);
      },
      py::arg("name"), py::arg("x"), "sigmoid or tanh as the cells compute it, for (n,) arrays.");
  m.def(
      "probe_fma",
      [](Index rounds, Index threads) {
        return probed(rounds, "rounds", threads, kernels().f32.probe_fma);
      },
      py::arg("rounds"), py::arg("threads"),
      "Float operations done on registers (a multiply-add is two), and the sum of what came out.");
  m.def(
      "probe_read",
      [](const py::array& values, Index passes, Index threads) {
        const auto in = as_contiguous<float>("values", values, {"n"});
        const float* const data = in.data();
        const Index n = in.size();
        return probed(passes, "passes", threads,
                      [=](Index count, int on, const Interrupt& interrupt) {
                        return kernels().f32.probe_read(data, n, count, on, interrupt);
                      });
      },
      py::arg("values"), py::arg("passes"), py::arg("threads"),
      "Bytes read, and the sum of all that was read.");
}

}  // namespace rnnkern

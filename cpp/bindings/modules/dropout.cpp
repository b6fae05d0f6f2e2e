// Dropout of elements: its arguments checked.
#include "shared.h"

namespace rnnkern {
namespace {

template <class T>
py::array dropout_of(const py::object& x_given, const py::object& places_given, double p,
                     std::uint64_t seed, std::uint64_t step, Index first_row, bool variational) {
  const auto x = as_contiguous<T>("x", x_given, {"T", "B", "C"});
  const Index steps = x.shape(0), B = x.shape(1), C = x.shape(2);
  py::array_t<std::int64_t, py::array::c_style> places;
  if (!places_given.is_none()) {
    const py::array given = array_of("places", places_given, "i", "an array of integers");
    check_shape("places", given, {steps, B});
    places = copied<std::int64_t>(given);
  }
  py::array_t<T> y = result<T>({steps, B, C});
  DropoutCall<T> call{};
  call.steps = steps, call.B = B, call.C = C;
  call.places = places_given.is_none() ? nullptr : places.data();
  call.variational = variational, call.p = p;
  call.seed = seed, call.step = step, call.first_row = first_row;
  call.x = x.data(), call.y = y.mutable_data(), call.threads = threads();
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    kernels().of<T>().modules->dropout(call);
  });
  return y;
}

// x (T, B, C) or its gradient after dropout; `places`: each row's real steps, -1 at others.
py::array dropout(const py::object& x, const py::object& places, double p, std::uint64_t seed,
                  std::uint64_t step, Index first_row, bool variational) {
  return of_floats("x", x) ? dropout_of<float>(x, places, p, seed, step, first_row, variational)
                           : dropout_of<double>(x, places, p, seed, step, first_row, variational);
}

}  // namespace

void bind_dropout(py::module_& m) {
  m.def("dropout", &dropout, py::arg("x"), py::arg("places"), py::arg("p"), py::arg("seed"),
        py::arg("step"), py::arg("first_row"), py::arg("variational"));
}

}  // namespace rnnkern

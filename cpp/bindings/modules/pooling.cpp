// Pooling over time steps: its arguments checked.
#include "shared.h"

namespace rnnkern {
namespace {

py::array_t<bool> real_of(const py::object& mask, Index steps, Index B) {
  if (mask.is_none()) return {};
  return py::array_t<bool>(real_steps(py::none(), mask, steps, B, ""));
}

template <class T>
py::tuple pool_of(const py::object& x_given, const py::object& real_given, bool largest) {
  using Place = typename PoolingCall<T>::Place;
  const auto x = as_contiguous<T>("x", x_given, {"T", "B", "C"});
  const Index steps = x.shape(0), B = x.shape(1), C = x.shape(2);
  const py::array_t<bool> real = real_of(real_given, steps, B);
  py::array_t<T> y = result<T>({B, C});
  py::array_t<Place> places = largest ? result<Place>({B, C}) : py::array_t<Place>();
  PoolingCall<T> call{};
  call.steps = steps, call.B = B, call.C = C;
  call.real = real_given.is_none() ? nullptr : real.data();
  call.x = x.data(), call.y = y.mutable_data();
  call.places = largest ? places.mutable_data() : nullptr;
  call.threads = threads();
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    kernels().of<T>().modules->pool(call);
  });
  return py::make_tuple(y, largest ? py::object(places) : py::none());
}

// The mean (B, C) of the real steps of x (T, B, C), or the largest, and which steps these are.
py::tuple pool(const py::object& x, const py::object& real, bool largest) {
  return of_floats("x", x) ? pool_of<float>(x, real, largest) : pool_of<double>(x, real, largest);
}

template <class T>
py::array pool_gradient_of(const py::object& dy_given, Index steps, const py::object& real_given,
                           const py::object& places_given) {
  using Place = typename PoolingCall<T>::Place;
  const auto dy = as_contiguous<T>("dy", dy_given, {"B", "C"});
  const Index B = dy.shape(0), C = dy.shape(1);
  const py::array_t<bool> real = real_of(real_given, steps, B);
  py::array_t<Place> places;
  if (!places_given.is_none()) {
    const py::array given = array_of("places", places_given, "u", "an array of integers");
    check_shape("places", given, {B, C});
    places = copied<Place>(given);
    for (Index i = 0; i < places.size(); ++i)
      if (static_cast<Index>(places.data()[i]) >= std::max(steps, Index{1}))
        bad_element("places", given, i, "a step");
  }
  py::array_t<T> dx = result<T>({steps, B, C});
  PoolingGradientCall<T> call{};
  call.steps = steps, call.B = B, call.C = C;
  call.real = real_given.is_none() ? nullptr : real.data();
  call.dy = dy.data(), call.places = places_given.is_none() ? nullptr : places.data();
  call.dx = dx.mutable_data(), call.threads = threads();
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    kernels().of<T>().modules->pool_gradient(call);
  });
  return dx;
}

// dx (steps, B, C) of dy (B, C), which goes to `places`, or in equal shares to all real steps.
py::array pool_gradient(const py::object& dy, Index steps, const py::object& real,
                        const py::object& places) {
  return of_floats("dy", dy) ? pool_gradient_of<float>(dy, steps, real, places)
                             : pool_gradient_of<double>(dy, steps, real, places);
}

}  // namespace

void bind_pooling(py::module_& m) {
  m.def("pool", &pool, py::arg("x"), py::arg("real"), py::arg("largest"));
  m.def("pool_gradient", &pool_gradient, py::arg("dy"), py::arg("steps"), py::arg("real"),
        py::arg("places"));
}

}  // namespace rnnkern

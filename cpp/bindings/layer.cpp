#include "layer.h"

#include <algorithm>
#include <atomic>
#include <optional>

#include "../core/runtime.h"
#include "tape.h"
#include "unlocked.h"

namespace rnnkern {

std::vector<Parameter> parameters_of(const Sizes& s) {
  std::vector<Parameter> all;
  const Index GH = s.gates() * s.H;
  for (Index l = 0; l < s.L; ++l)
    for (Index d = 0; d < s.D; ++d) {
      const std::string suffix = "_l" + std::to_string(l) + (d ? "_reverse" : "");
      all.push_back({"weight_ih" + suffix, {GH, s.inputs(l)}});
      all.push_back({"weight_hh" + suffix, {GH, s.H}});
      if (s.bias) {
        all.push_back({"bias_ih" + suffix, {GH}});
        all.push_back({"bias_hh" + suffix, {GH}});
      }
    }
  return all;
}

template <class T>
Parameters<T>::Parameters(const Sizes& sizes, const py::dict& params)
    : D_(sizes.D), per_direction_(sizes.parameters_of_direction()) {
  const std::vector<Parameter> all = parameters_of(sizes);
  for (const Parameter& parameter : all) {
    const std::string name = "params['" + parameter.name + "']";
    if (!params.contains(parameter.name.c_str())) bad_value(name, "an array", "nothing");
    const Shape shape(parameter.shape.begin(), parameter.shape.end());
    const auto array = flat<T>(name, params[parameter.name.c_str()], shape);
    arrays_.push_back(array);
    pointers_.push_back(array.data());
  }
  if (params.size() != all.size())
    bad_value("params", std::to_string(all.size()) + " arrays", std::to_string(params.size()));
}
template class Parameters<float>;
template class Parameters<double>;

namespace {

RowSchedule schedule(const Axes& axes, const py::object& lengths) {
  // No rows, no steps: an empty batch may claim any T.
  if (lengths.is_none()) return RowSchedule(axes.B ? axes.T : 0, axes.B);
  if (!axes.batched) bad_value("lengths", "None with unbatched x", "an array");
  const py::array a = py::array::ensure(lengths);
  if (!a || (a.dtype().kind() != 'i' && a.dtype().kind() != 'u'))
    bad_type("lengths", "an array of integers",
             a ? py::str(a.dtype()) : py::str(py::type::of(lengths)));
  check_shape("lengths", a, {axes.B});
  const auto wide = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>(a);
  std::vector<Index> of(wide.data(), wide.data() + wide.size());
  for (std::size_t i = 0; i < of.size(); ++i)
    if (of[i] < 0 || of[i] > axes.T)
      bad_value("lengths", "values from 0 to T = " + std::to_string(axes.T),
                py::str(a[py::int_(i)]));
  return RowSchedule(axes.B ? axes.T : 0, of);
}

// The initial state's or the last state's gradient's parts, by name; None is zeros.
template <class T>
std::optional<py::array_t<T, py::array::c_style>> state_part(const std::string& name,
                                                             const py::object& value,
                                                             const Shape& shape) {
  if (value.is_none()) return std::nullopt;
  return flat<T>(name, value, shape);
}

// What `Trace` points to: [L * D, T, B] each.
class Traces {
 public:
  Traces(const Sizes& s, const Axes& axes, bool wanted) : of_direction_(axes.T * axes.B) {
    if (!wanted) return;
    for (int i = 0; i < kNorms; ++i) {
      if (i == kOfC && !s.has_c()) continue;
      array_[i] = py::array_t<double>(std::vector<py::ssize_t>{s.L * s.D, axes.T, axes.B});
      data_[i] = array_[i]->mutable_data();
      std::fill_n(data_[i], array_[i]->size(), i == kScale ? 1.0 : 0.0);
    }
  }
  Trace of(Index direction) const {
    const auto at = [&](int i) {
      return data_[i] ? data_[i] + direction * of_direction_ : nullptr;
    };
    return {at(0), at(1), at(2), at(3), at(4)};
  }
  // In the order of Trace, None for what the cell has not; None for all if not wanted.
  py::object arrays() const {
    if (!array_[0]) return py::none();
    py::tuple all(kNorms);
    for (std::size_t i = 0; i < kNorms; ++i)
      all[i] = array_[i] ? py::object(*array_[i]) : py::object(py::none());
    return all;
  }

 private:
  static constexpr int kNorms = 5, kOfC = 2, kScale = 3;
  Index of_direction_;
  std::optional<py::array_t<double>> array_[kNorms];
  double* data_[kNorms] = {};
};

Kind kind_of(const std::string& name) {
  for (int i = 0; i < kKindCount; ++i)
    if (name == kKinds[i].name) return static_cast<Kind>(i);
  bad_value("kind", "a kind of cell", "'" + name + "'");
}

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

}  // namespace

Net::Net(const std::string& kind, Index I, Index H, Index L, bool bias, bool bidirectional,
         bool is_double)
    : sizes_{kind_of(kind), I, H, L, bidirectional ? 2 : 1, bias, is_double}, id_(next_id()) {
  const auto positive = [](const char* name, Index value) {
    if (value < 1) bad_value(name, "at least 1", std::to_string(value));
  };
  positive("input_size", I), positive("hidden_size", H), positive("num_layers", L);
  constexpr Index most_layers = 65536;  // their names alone would fill memory
  if (L > most_layers)
    bad_value("num_layers", "at most " + std::to_string(most_layers), std::to_string(L));
  product_of({8, L, sizes_.D, sizes_.gates(), H, std::max(I, product_of({sizes_.D, H}))});
}

py::list Net::parameter_shapes() const {
  py::list out;
  for (const Parameter& p : parameters_of(sizes_)) {
    py::tuple shape(p.shape.size());
    for (std::size_t i = 0; i < p.shape.size(); ++i) shape[i] = p.shape[i];
    out.append(py::make_tuple(p.name, shape));
  }
  return out;
}

py::tuple Net::forward(const py::dict& params, const py::object& x, const py::object& h0,
                       const py::object& c0, const py::object& lengths, bool batch_first, bool keep,
                       double dropout, std::uint64_t seed, std::uint64_t step) const {
  const Dropout drop{dropout, seed, step};
  return sizes_.is_double ? run<double>(params, x, h0, c0, lengths, batch_first, keep, drop)
                          : run<float>(params, x, h0, c0, lengths, batch_first, keep, drop);
}

py::tuple Net::backward(const py::dict& params, const py::object& tape, const py::object& dy,
                        const py::object& dh, const py::object& dc, double step_value,
                        double step_norm, double value, double norm, bool trace,
                        double flow_penalty) const {
  const Clip clip{step_value, step_norm, value, norm};
  return sizes_.is_double ? run_back<double>(params, tape, dy, dh, dc, clip, trace, flow_penalty)
                          : run_back<float>(params, tape, dy, dh, dc, clip, trace, flow_penalty);
}

template <class T>
py::tuple Net::run(const py::dict& params, const py::object& x_given, const py::object& h_given,
                   const py::object& c_given, const py::object& lengths, bool batch_first,
                   bool keep, const Dropout& dropout) const {
  const Sizes& s = sizes_;
  const Index LD = s.L * s.D, C = s.D * s.H;
  const Parameters<T> weights(s, params);

  const bool batched = typed<T>("x", x_given).ndim() != 2;
  const Shape x_shape = !batched      ? Shape{"T", s.I}
                        : batch_first ? Shape{"B", "T", s.I}
                                      : Shape{"T", "B", s.I};
  const py::array x = channels_last<T>("x", x_given, x_shape);
  const Axes axes{batched, batch_first, batched && batch_first ? x.shape(1) : x.shape(0),
                  !batched      ? 1
                  : batch_first ? x.shape(0)
                                : x.shape(1)};
  const Index steps = axes.B ? std::max<Index>(axes.T, 1) : 1;
  product_of({steps, std::max<Index>(axes.B, 1), LD, 16, padded_units<T>(std::max(s.I, C))});
  const auto h0 = state_part<T>(s.has_c() ? "state[0]" : "state", h_given, axes.state(LD, s.H));
  const auto c0 = state_part<T>("state[1]", c_given, axes.state(LD, s.H));

  auto tape = std::make_unique<TapeOf<T>>();
  tape->layer_id = id_, tape->sizes = s, tape->axes = axes, tape->dropout = dropout;
  tape->rows = schedule(axes, lengths);
  const Schedule rows = tape->rows.view();
  tape->x = x;
  tape->y = axes.make<T>(axes.sequence(C));
  py::array_t<T> h_last = axes.make<T>(axes.state(LD, s.H));
  py::object c_last = py::none();
  if (s.has_c()) c_last = axes.make<T>(axes.state(LD, s.H));
  T* const c_data =
      s.has_c() ? py::reinterpret_borrow<py::array_t<T>>(c_last).mutable_data() : nullptr;

  const Index state_size = axes.B * s.H, Hp = padded_units<T>(s.H);
  for (Index l = 0; l + 1 < s.L; ++l) {
    // Without a tape, two buffers in turns hold the layers' outputs.
    const bool reuse = !keep && l >= 2;
    tape->middle.push_back(reuse ? nullptr : block<T>(rows.T * rows.B * C));
  }
  if (keep) {
    const Index alive = tape->rows.alive_rows(), saved = kKinds[static_cast<int>(s.kind)].saved;
    for (Index i = 0; i < LD; ++i) {
      if (saved) tape->saved.push_back(block<T>(alive * saved * Hp));
      if (s.has_c()) tape->cell.push_back(block<T>(alive * Hp));
    }
    const auto keep_copy = [&](Block<T>& to, const auto& from) {
      if (!from) return;
      to = block<T>(LD * state_size);
      std::copy_n(from->data(), LD * state_size, to.get());
    };
    keep_copy(tape->h0, h0), keep_copy(tape->c0, c0);
  }
  const Block<T> dropped = dropout.p > 0 && s.L > 1 ? block<T>(rows.T * rows.B * C) : nullptr;

  std::vector<Layer<T>> layers(static_cast<std::size_t>(s.L));
  for (Index l = 0; l < s.L; ++l) {
    Layer<T>& layer = layers[static_cast<std::size_t>(l)];
    layer.inputs = s.inputs(l);
    if (l == 0) {
      layer.x = axes.view(static_cast<const T*>(x.data()), x);
    } else {
      const Sequence<T>& below = layers[static_cast<std::size_t>(l) - 1].y;
      layer.x = {below.data, below.step, below.row};
    }
    const Index kept = keep || l + 1 == s.L ? l : l % 2;
    layer.y = kept == l ? tape->output(l) : tape->output(kept);
    for (Index d = 0; d < s.D; ++d) {
      const Index i = l * s.D + d, at = i * state_size;
      Direction<T>& direction = layer.direction[d];
      direction = {};
      weights.fill(direction, l, d);
      direction.h0 = h0 ? h0->data() + at : nullptr;
      direction.c0 = c0 ? c0->data() + at : nullptr;
      direction.h_last = h_last.mutable_data() + at;
      direction.c_last = c_data ? c_data + at : nullptr;
      if (!tape->saved.empty()) direction.saved = tape->saved[static_cast<std::size_t>(i)].get();
      if (!tape->cell.empty()) direction.cells = tape->cell[static_cast<std::size_t>(i)].get();
    }
  }
  ForwardCall<T> call{s.kind,        s.L,     s.D,           s.H,       rows,
                      layers.data(), dropout, dropped.get(), threads(), {}};
  const TypedKernels<T>& use = kernels().of<T>();
  const Block<char> room = block<char>(use.forward_room(call));
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    use.forward(call, room.get());
  });
  const py::array y = tape->y;
  py::object kept = py::none();
  if (keep) {
    y.attr("flags").attr("writeable") = false;  // the tape reads it again
    kept = py::cast(std::unique_ptr<Tape>(std::move(tape)));
  }
  return py::make_tuple(y, h_last, c_last, kept);
}

template <class T>
py::tuple Net::run_back(const py::dict& params, const py::object& tape_given,
                        const py::object& dy_given, const py::object& dh_given,
                        const py::object& dc_given, const Clip& clip, bool trace,
                        double flow_penalty) const {
  const Sizes& s = sizes_;
  const Index LD = s.L * s.D, C = s.D * s.H;
  if (!py::isinstance<Tape>(tape_given))
    bad_type("tape", "a tape of this layer's forward",
             py::str(py::type::of(tape_given).attr("__name__")));
  const auto* tape = dynamic_cast<const TapeOf<T>*>(&tape_given.cast<const Tape&>());
  if (!tape || tape->layer_id != id_)
    bad_value("tape", "a tape of this layer's forward", "one of another layer");
  const Parameters<T> weights(s, params);
  const Axes& axes = tape->axes;
  const Schedule rows = tape->rows.view();
  const Shape state_shape = axes.state(LD, s.H);

  py::array dy;
  Sequence<const T> dy_view{nullptr, 0, 0};
  if (!dy_given.is_none()) {
    dy = channels_last<T>("dy", dy_given, axes.sequence(C));
    dy_view = axes.view(static_cast<const T*>(dy.data()), dy);
  }
  const auto dh = state_part<T>(s.has_c() ? "dstate[0]" : "dstate", dh_given, state_shape);
  const auto dc = state_part<T>("dstate[1]", dc_given, state_shape);

  py::array_t<T> dx = axes.make<T>(axes.sequence(s.I));
  py::array_t<T> dh0 = axes.make<T>(state_shape);
  py::object dc0 = py::none();
  if (s.has_c()) dc0 = axes.make<T>(state_shape);
  T* const dc0_data =
      s.has_c() ? py::reinterpret_borrow<py::array_t<T>>(dc0).mutable_data() : nullptr;
  py::dict gradients;
  std::vector<T*> pointers;
  const Traces traces(s, axes, trace);
  for (const Parameter& parameter : parameters_of(s)) {
    py::array_t<T> array(std::vector<py::ssize_t>(parameter.shape.begin(), parameter.shape.end()));
    gradients[parameter.name.c_str()] = array;
    pointers.push_back(array.mutable_data());
  }
  const bool drops = tape->dropout.p > 0 && s.L > 1;
  const Index between = s.L > 1 ? rows.T * rows.B * C : 0;
  const Block<T> dropped = drops ? block<T>(between) : nullptr;
  const Block<T> turn[2] = {block<T>(between), block<T>(s.L > 2 ? between : 0)};

  std::vector<Layer<T>> layers(static_cast<std::size_t>(s.L));
  std::vector<LayerGradient<T>> layer_gradients(layers.size());
  const Index state_size = axes.B * s.H;
  for (Index l = 0; l < s.L; ++l) {
    Layer<T>& layer = layers[static_cast<std::size_t>(l)];
    LayerGradient<T>& gradient = layer_gradients[static_cast<std::size_t>(l)];
    layer.inputs = s.inputs(l);
    if (l == 0) {
      layer.x = axes.view(static_cast<const T*>(tape->x.data()), tape->x);
      gradient.dx = axes.view(dx.mutable_data(), dx);
    } else {
      const Sequence<T> below = tape->output(l - 1);
      layer.x = {below.data, below.step, below.row};
      gradient.dx = {turn[l % 2].get(), axes.B * C, C};
      if (s.L <= 2) gradient.dx.data = turn[0].get();
    }
    layer.y = tape->output(l);
    gradient.dy = dy_view;
    if (l + 1 < s.L) gradient.dy = {turn[s.L > 2 ? (l + 1) % 2 : 0].get(), axes.B * C, C};
    for (Index d = 0; d < s.D; ++d) {
      const Index i = l * s.D + d, at = i * state_size;
      Direction<T>& direction = layer.direction[d];
      direction = {};
      weights.fill(direction, l, d);
      direction.h0 = tape->h0 ? tape->h0.get() + at : nullptr;
      direction.c0 = tape->c0 ? tape->c0.get() + at : nullptr;
      if (!tape->saved.empty()) direction.saved = tape->saved[static_cast<std::size_t>(i)].get();
      if (!tape->cell.empty()) direction.cells = tape->cell[static_cast<std::size_t>(i)].get();
      T* const* p = pointers.data() + i * s.parameters_of_direction();
      gradient.direction[d] = {p[0],
                               p[1],
                               s.bias ? p[2] : nullptr,
                               s.bias ? p[3] : nullptr,
                               dh ? dh->data() + at : nullptr,
                               dc ? dc->data() + at : nullptr,
                               dh0.mutable_data() + at,
                               dc0_data ? dc0_data + at : nullptr,
                               traces.of(i)};
    }
  }
  BackwardCall<T> call{s.kind,
                       s.L,
                       s.D,
                       s.H,
                       rows,
                       layers.data(),
                       layer_gradients.data(),
                       tape->dropout,
                       dropped.get(),
                       clip,
                       flow_penalty,
                       threads(),
                       {}};
  const TypedKernels<T>& use = kernels().of<T>();
  const Block<char> room = block<char>(use.backward_room(call));
  GradientNorm norm;
  unlocked([&](const Interrupt& interrupt) {
    call.interrupt = interrupt;
    norm = use.backward(call, room.get());
  });
  return py::make_tuple(gradients, dx, dh0, dc0, norm.norm, norm.scale, norm.finite,
                        traces.arrays());
}

void bind_layer(py::module_& m) {
  py::class_<Tape>(m, "Tape", "What a forward keeps for its backward. Reading it copies.")
      .def_property_readonly("gates", &Tape::gates,
                             "For each layer and direction, (T, B, saved, H): LSTM i, f, g, o; "
                             "GRU r, z, n, W_hn h' + b_hn; reset-before GRU r, z, n.")
      .def_property_readonly("cells", &Tape::cells,
                             "For each layer and direction, c of every step (T, B, H); LSTM only.")
      .def_property_readonly("hiddens", &Tape::hiddens,
                             "For each layer, its output of every step (T, B, D*H).");
  py::class_<Net>(m, "Net")
      .def(py::init<const std::string&, Index, Index, Index, bool, bool, bool>(), py::arg("kind"),
           py::arg("input_size"), py::arg("hidden_size"), py::arg("num_layers"), py::arg("bias"),
           py::arg("bidirectional"), py::arg("is_double"))
      .def("parameter_shapes", &Net::parameter_shapes)
      .def("forward", &Net::forward, py::arg("params"), py::arg("x"), py::arg("h0"), py::arg("c0"),
           py::arg("lengths"), py::arg("batch_first"), py::arg("keep"), py::arg("dropout"),
           py::arg("seed"), py::arg("step"))
      .def("backward", &Net::backward, py::arg("params"), py::arg("tape"), py::arg("dy"),
           py::arg("dh"), py::arg("dc"), py::arg("step_value"), py::arg("step_norm"),
           py::arg("value"), py::arg("norm"), py::arg("trace"), py::arg("flow_penalty"));
}

}  // namespace rnnkern

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

// [T, B], empty for none.
std::vector<unsigned char> resets_of(const Axes& axes, const py::object& resets) {
  if (resets.is_none()) return {};
  const py::array a = py::array::ensure(resets);
  if (!a || a.dtype().kind() != 'b')
    bad_type("resets", "an array of booleans",
             a ? py::str(a.dtype()) : py::str(py::type::of(resets)));
  const Index T = axes.T, B = axes.B;
  check_shape("resets", a, !axes.batched ? Shape{T} : axes.batch_first ? Shape{B, T} : Shape{T, B});
  const auto flat = py::array_t<bool, py::array::c_style | py::array::forcecast>(a);
  std::vector<unsigned char> of(static_cast<std::size_t>(T * B));
  for (Index t = 0; t < T; ++t)
    for (Index b = 0; b < B; ++b)
      of[static_cast<std::size_t>(t * B + b)] =
          flat.data()[axes.batch_first ? b * T + t : t * B + b];
  return of;
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
  Traces(const Sizes& s, const Axes& axes, bool wanted)
      : B_(axes.B), of_direction_(axes.T * axes.B) {
    if (!wanted) return;
    for (int i = 0; i < kNorms; ++i) {
      if (i == kOfC && !s.has_c()) continue;
      array_[i] = py::array_t<double>(std::vector<py::ssize_t>{s.L * s.D, axes.T, axes.B});
      data_[i] = array_[i]->mutable_data();
      std::fill_n(data_[i], array_[i]->size(), i == kScale ? 1.0 : 0.0);
    }
  }
  Trace of(Index direction, Index step) const {
    const Index offset = direction * of_direction_ + step * B_;
    const auto at = [&](int i) { return data_[i] ? data_[i] + offset : nullptr; };
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
  Index B_, of_direction_;
  std::optional<py::array_t<double>> array_[kNorms];
  double* data_[kNorms] = {};
};

Kind kind_of(const std::string& name) {
  for (int i = 0; i < kKindCount; ++i)
    if (name == kKinds[i].name) return static_cast<Kind>(i);
  bad_value("kind", "a kind of cell", "'" + name + "'");
}

// A sequence cut into segments of `length` steps, the last maybe shorter; 0: one of them all.
struct Segments {
  Index T, length, count;
  Segments(Index steps, Index segment)
      : T(steps),
        length(segment ? std::min(segment, std::max<Index>(T, 1)) : T),
        count(length ? std::max<Index>(1, (T + length - 1) / length) : 1) {}
  Index first(Index i) const { return i * length; }
  Schedule of(const Schedule& s, Index i) const {
    return part_of(s, first(i), std::min(length, T - first(i)));
  }
};

template <class T>
Sequence<T> from_step(Sequence<T> s, Index step) {
  if (s.data) s.data += step * s.step;
  return s;
}
Dropout from_step(Dropout dropout, Index step) {
  dropout.first = step;
  return dropout;
}
template <class T>
Sequence<const T> read_only(const Sequence<T>& s) {
  return {s.data, s.step, s.row};
}

// The parts of a state, or of its gradient; null: none, or zeros.
template <class T>
struct States {
  T *h, *c;
  States at(Index offset) const { return {h ? h + offset : nullptr, c ? c + offset : nullptr}; }
};
template <class T>
T* data_of(const py::object& array) {
  return array.is_none() ? nullptr : py::reinterpret_borrow<py::array_t<T>>(array).mutable_data();
}

// All directions' weights in panels, for calls that use them more than once.
template <class T>
class Packed {
 public:
  Packed(const TypedKernels<T>& use, const Sizes& s, const Parameters<T>& weights, bool wanted) {
    for (Index l = 0; wanted && l < s.L; ++l) {  // one direction: two are never cut
      Direction<T> d{};
      weights.fill(d, l, 0);
      blocks_.push_back(block<char>(use.packed_bytes(s.kind, s.inputs(l), s.H)));
      use.pack(s.kind, d, s.inputs(l), s.H, blocks_.back().get());
    }
  }
  const T* of(Index layer) const {
    if (blocks_.empty()) return nullptr;
    return reinterpret_cast<const T*>(blocks_[static_cast<std::size_t>(layer)].get());
  }

 private:
  std::vector<Block<char>> blocks_;
};

// The layers of a call over B rows: from x, through a record, from a state to a state.
template <class T>
void fill(std::vector<Layer<T>>& layers, const Sizes& s, const Parameters<T>& weights,
          const Packed<T>& packed, const Sequence<const T>& x, const Record<T>& record, Index B,
          const States<T>& before, const States<T>& after) {
  for (Index l = 0; l < s.L; ++l) {
    const auto i = static_cast<std::size_t>(l);
    Layer<T>& layer = layers[i];
    layer = {
        s.inputs(l), l == 0 ? x : read_only(record.out[i - 1]), record.h[i], record.out[i], {}};
    for (Index d = 0; d < s.D; ++d) {
      const Index j = l * s.D + d;
      Direction<T>& direction = layer.direction[d];
      weights.fill(direction, l, d);
      const States<T> first = before.at(j * B * s.H), last = after.at(j * B * s.H);
      direction.h0 = first.h, direction.c0 = first.c;
      direction.h_last = last.h, direction.c_last = last.c;
      const auto kept = [&](const std::vector<Block<T>>& blocks) {
        return blocks.empty() ? nullptr : blocks[static_cast<std::size_t>(j)].get();
      };
      direction.saved = kept(record.saved), direction.cells = kept(record.cell);
      direction.packed = packed.of(l);
    }
  }
}

// The questions of a loop of calls, each of which may be too short to ask any.
class Questions {
 public:
  explicit Questions(const Interrupt& caller) : caller_(caller), next_(now() + kBetween) {}
  Interrupt interrupt() { return {asked, this}; }
  bool go_on() {
    if (!over_ && now() >= next_) asked(this);
    return !over_;
  }

 private:
  static constexpr auto kBetween = static_cast<Nanoseconds>(1e9 * kSecondsBetweenQuestions);
  static bool asked(void* context) {
    auto& self = *static_cast<Questions*>(context);
    self.over_ = self.over_ || self.caller_.asked(self.caller_.context);
    self.next_ = now() + kBetween;
    return self.over_;
  }
  Interrupt caller_;
  Nanoseconds next_;
  bool over_ = false;
};

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

}  // namespace

Net::Net(const std::string& kind, Index I, Index H, Index L, bool bias, bool bidirectional,
         bool residual, bool is_double)
    : sizes_{kind_of(kind), I, H, L, bidirectional ? 2 : 1, bias, residual, is_double},
      id_(next_id()) {
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
                       const py::object& c0, const py::object& lengths, const py::object& resets,
                       bool batch_first, bool keep, Index segment, double dropout,
                       std::uint64_t seed, std::uint64_t step) const {
  const Dropout drop{dropout, seed, step};
  return sizes_.is_double
             ? run<double>(params, x, h0, c0, lengths, resets, batch_first, keep, segment, drop)
             : run<float>(params, x, h0, c0, lengths, resets, batch_first, keep, segment, drop);
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
                   const py::object& c_given, const py::object& lengths, const py::object& resets,
                   bool batch_first, bool keep, Index segment, const Dropout& dropout) const {
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
  tape->resets = resets_of(axes, resets);
  tape->x = x, tape->segment = segment;
  const Schedule rows = tape->schedule();
  const Segments segments(rows.T, segment);
  const py::array_t<T> y = axes.make<T>(axes.sequence(C));
  const Sequence<T> y_view = axes.view(const_cast<T*>(y.data()), y);
  py::array_t<T> h_last = axes.make<T>(axes.state(LD, s.H));
  py::object c_last = py::none();
  if (s.has_c()) c_last = axes.make<T>(axes.state(LD, s.H));

  // The state before each segment of a tape; without one, before and after the only one.
  const Index state_size = tape->state_size();
  const auto first_state = [&](Block<T>& to, const auto& from) {
    if (!keep || (!from && segments.count == 1)) return;
    to = block<T>(segments.count * state_size);
    if (from)
      std::copy_n(from->data(), state_size, to.get());
    else
      std::fill_n(to.get(), state_size, T(0));
  };
  first_state(tape->h, h0);
  if (s.has_c()) first_state(tape->c, c0);
  const States<T> initial{h0 ? const_cast<T*>(h0->data()) : nullptr,
                          c0 ? const_cast<T*>(c0->data()) : nullptr};
  const States<T> last{h_last.mutable_data(), data_of<T>(c_last)};
  const auto before = [&](Index i) {
    return i == 0 ? initial : States<T>{tape->h.get(), tape->c.get()}.at(i * state_size);
  };

  const bool whole = keep && segment == 0;
  Record<T> record(s, segments.length, rows.B, tape->rows.alive_rows(), whole);
  const Block<T> dropped =
      dropout.p > 0 && s.L > 1 ? block<T>(segments.length * rows.B * C) : nullptr;
  const TypedKernels<T>& use = kernels().of<T>();
  const Packed<T> packed(use, s, weights, segments.count > 1);
  std::vector<Layer<T>> layers(static_cast<std::size_t>(s.L));
  const auto prepare = [&](Index i) {
    record.set_y(from_step(y_view, segments.first(i)));
    const auto x_view = axes.view(static_cast<const T*>(x.data()), x);
    fill(layers, s, weights, packed, from_step(x_view, segments.first(i)), record, rows.B,
         before(i), i + 1 == segments.count ? last : before(i + 1));
    return ForwardCall<T>{s.kind,
                          s.residual,
                          s.L,
                          s.D,
                          s.H,
                          segments.of(rows, i),
                          layers.data(),
                          from_step(dropout, segments.first(i)),
                          dropped.get(),
                          threads(),
                          {}};
  };
  const Block<char> room = block<char>(use.forward_room(prepare(0)));
  unlocked([&](const Interrupt& interrupt) {
    Questions questions(interrupt);
    for (Index i = 0; i < segments.count && questions.go_on(); ++i) {
      ForwardCall<T> call = prepare(i);
      call.interrupt = questions.interrupt();
      use.forward(call, room.get());
    }
  });
  py::object kept = py::none();
  if (keep) {
    if (whole) {
      if (!s.residual) {
        y.attr("flags").attr("writeable") = false;  // the tape reads it again
        tape->y = y;
      }
      tape->record.emplace(std::move(record));
    }
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
  const Schedule rows = tape->schedule();
  const Segments segments(rows.T, tape->segment);
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
  const States<T> d_state{dh0.mutable_data(), data_of<T>(dc0)};
  py::dict gradients;
  std::vector<T*> pointers;
  const Traces traces(s, axes, trace);
  for (const Parameter& parameter : parameters_of(s)) {
    py::array_t<T> array(std::vector<py::ssize_t>(parameter.shape.begin(), parameter.shape.end()));
    gradients[parameter.name.c_str()] = array;
    pointers.push_back(array.mutable_data());
  }
  const Index state_size = tape->state_size(), between = segments.length * rows.B * C;
  const bool drops = tape->dropout.p > 0 && s.L > 1;
  const Block<T> dropped = drops ? block<T>(between) : nullptr;
  // Two buffers in turns hold the gradients between layers.
  const Block<T> turn[2] = {block<T>(s.L > 1 ? between : 0), block<T>(s.L > 2 ? between : 0)};

  // With segments, forward is run again, from the state before each, into a record of one.
  const bool again = tape->segment != 0;
  std::optional<Record<T>> own;
  Block<T> y_again, scale;
  const Block<T> last_again = block<T>(again ? 2 * state_size : 0);
  if (again) {
    own.emplace(s, segments.length, rows.B, segments.length * rows.B, true);
    y_again = block<T>(between);
    own->set_y({y_again.get(), rows.B * C, C});
    scale = block<T>(LD * rows.B);
  }
  const Record<T>& record = again ? *own : *tape->record;
  const TypedKernels<T>& use = kernels().of<T>();
  const Packed<T> packed(use, s, weights, segments.count > 1);
  std::vector<Layer<T>> layers(static_cast<std::size_t>(s.L));
  std::vector<LayerGradient<T>> layer_gradients(static_cast<std::size_t>(s.L));

  const auto prepare_forward = [&](Index i) {
    const auto x_view = axes.view(static_cast<const T*>(tape->x.data()), tape->x);
    const States<T> last{last_again.get(), s.has_c() ? last_again.get() + state_size : nullptr};
    fill(layers, s, weights, packed, from_step(x_view, segments.first(i)), record, rows.B,
         States<T>{tape->h.get(), tape->c.get()}.at(i * state_size), last);
    return ForwardCall<T>{s.kind,
                          s.residual,
                          s.L,
                          s.D,
                          s.H,
                          segments.of(rows, i),
                          layers.data(),
                          from_step(tape->dropout, segments.first(i)),
                          dropped.get(),
                          threads(),
                          {}};
  };
  const auto prepare = [&](Index i) {
    const bool first = i + 1 == segments.count;  // of the calls
    const States<T> given{dh ? const_cast<T*>(dh->data()) : nullptr,
                          dc ? const_cast<T*>(dc->data()) : nullptr};
    prepare_forward(i);
    for (Index l = 0; l < s.L; ++l) {
      LayerGradient<T>& gradient = layer_gradients[static_cast<std::size_t>(l)];
      const auto in_turn = [&](Index n) {
        return Sequence<T>{turn[s.L > 2 ? n % 2 : 0].get(), rows.B * C, C};
      };
      gradient.dx =
          l == 0 ? from_step(axes.view(dx.mutable_data(), dx), segments.first(i)) : in_turn(l);
      gradient.dy = from_step(dy_view, segments.first(i));
      if (l + 1 < s.L) gradient.dy = read_only(in_turn(l + 1));
      for (Index d = 0; d < s.D; ++d) {
        const Index j = l * s.D + d, at = j * rows.B * s.H;
        Direction<T>& direction = layers[static_cast<std::size_t>(l)].direction[d];
        direction.packed = nullptr;
        const States<T> after = (first ? given : d_state).at(at), handed_back = d_state.at(at);
        T* const* p = pointers.data() + j * s.parameters_of_direction();
        gradient.direction[d] = {p[0],
                                 p[1],
                                 s.bias ? p[2] : nullptr,
                                 s.bias ? p[3] : nullptr,
                                 after.h,
                                 after.c,
                                 handed_back.h,
                                 handed_back.c,
                                 traces.of(j, segments.first(i)),
                                 again ? scale.get() + j * rows.B : nullptr};
      }
    }
    return BackwardCall<T>{s.kind,
                           s.residual,
                           s.L,
                           s.D,
                           s.H,
                           segments.of(rows, i),
                           layers.data(),
                           layer_gradients.data(),
                           from_step(tape->dropout, segments.first(i)),
                           dropped.get(),
                           clip,
                           flow_penalty,
                           !first,
                           i > 0,
                           threads(),
                           {}};
  };
  const Block<char> room = block<char>(
      std::max(again ? use.forward_room(prepare_forward(0)) : 0, use.backward_room(prepare(0))));
  GradientNorm norm;
  unlocked([&](const Interrupt& interrupt) {
    Questions questions(interrupt);
    for (Index i = segments.count - 1; i >= 0 && questions.go_on(); --i) {
      if (again) {
        ForwardCall<T> forward = prepare_forward(i);
        forward.interrupt = questions.interrupt();
        use.forward(forward, room.get());
      }
      BackwardCall<T> call = prepare(i);
      call.interrupt = questions.interrupt();
      norm = use.backward(call, room.get());
    }
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
      .def(py::init<const std::string&, Index, Index, Index, bool, bool, bool, bool>(),
           py::arg("kind"), py::arg("input_size"), py::arg("hidden_size"), py::arg("num_layers"),
           py::arg("bias"), py::arg("bidirectional"), py::arg("residual"), py::arg("is_double"))
      .def("parameter_shapes", &Net::parameter_shapes)
      .def("forward", &Net::forward, py::arg("params"), py::arg("x"), py::arg("h0"), py::arg("c0"),
           py::arg("lengths"), py::arg("resets"), py::arg("batch_first"), py::arg("keep"),
           py::arg("segment"), py::arg("dropout"), py::arg("seed"), py::arg("step"))
      .def("backward", &Net::backward, py::arg("params"), py::arg("tape"), py::arg("dy"),
           py::arg("dh"), py::arg("dc"), py::arg("step_value"), py::arg("step_norm"),
           py::arg("value"), py::arg("norm"), py::arg("trace"), py::arg("flow_penalty"));
}

}  // namespace rnnkern

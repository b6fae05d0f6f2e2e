#include "layer.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <optional>

#include "../core/runtime.h"
#include "tape.h"
#include "unlocked.h"

namespace rnnkern {

template <class T>
Parameters<T>::Parameters(const Sizes& sizes, const std::vector<Parameter>& all,
                          const py::dict& params)
    : D_(sizes.D), per_direction_(sizes.parameters_of_direction()) {
  const py::dtype dtype = py::dtype::of<T>();
  arrays_.reserve(all.size()), data_.reserve(all.size()), sizes_.reserve(all.size());
  for (const Parameter& parameter : all) {
    // Held from here on: without a lock on the interpreter, another thread may replace it
    // meanwhile.
    py::object given;
    if (params.contains(parameter.name)) given = params[parameter.name];
    if (given && plain(given, dtype, parameter.shape.data(), parameter.shape.size())) {
      arrays_.push_back(py::reinterpret_borrow<py::array_t<T>>(given));
    } else {
      const std::string name = "params['" + std::string(parameter.name) + "']";
      if (!given) bad_value(name, "an array", "nothing");
      arrays_.push_back(flat<T>(name, given, {parameter.shape.begin(), parameter.shape.end()}));
    }
    data_.push_back(arrays_.back().data());
    Index size = 1;
    for (const Index axis : parameter.shape) size *= axis;
    sizes_.push_back(size / std::max<Index>(sizes.members, 1));
  }
  if (params.size() != all.size())
    bad_value("params", std::to_string(all.size()) + " arrays", std::to_string(params.size()));
}
template class Parameters<float>;
template class Parameters<double>;

namespace {

// The rows' lengths as they are now; none: all rows have T steps.
std::optional<std::vector<Index>> lengths_of(const Axes& axes, const py::object& lengths) {
  if (lengths.is_none()) return std::nullopt;
  if (!axes.batched) bad_value("lengths", "None with unbatched x", "an array");
  const py::array a = py::array::ensure(lengths);
  const char kind = a ? a.dtype().kind() : '?';
  if (kind != 'i' && kind != 'u')
    bad_type("lengths", "an array of integers",
             a ? py::str(a.dtype()) : py::str(py::type::of(lengths)));
  check_shape("lengths", a, {axes.B});
  const auto wide = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>(a);
  std::vector<Index> of(wide.data(), wide.data() + wide.size());
  for (std::size_t i = 0; i < of.size(); ++i)
    if (of[i] < 0 || of[i] > axes.T)
      bad_value(
          "lengths", "values from 0 to T = " + std::to_string(axes.T),
          kind == 'u' ? std::to_string(static_cast<std::uint64_t>(of[i])) : std::to_string(of[i]));
  return of;
}

using Flags = py::array_t<bool, py::array::c_style | py::array::forcecast>;

// The resets as the caller gave them, C-contiguous.
std::optional<Flags> resets_of(const Axes& axes, const py::object& resets) {
  if (resets.is_none()) return std::nullopt;
  const py::array a = py::array::ensure(resets);
  if (!a || a.dtype().kind() != 'b')
    bad_type("resets", "an array of booleans",
             a ? py::str(a.dtype()) : py::str(py::type::of(resets)));
  const Index T = axes.T, B = axes.B;
  check_shape("resets", a, !axes.batched ? Shape{T} : axes.batch_first ? Shape{B, T} : Shape{T, B});
  return Flags(a);
}

// A tape's schedule and resets. The loops over steps run without the interpreter's lock.
template <class T>
void set_rows(TapeOf<T>& tape, const py::object& lengths_given, const py::object& resets_given) {
  const Axes& axes = tape.axes;
  const Index steps = tape.steps(), B = axes.B;
  const auto lengths = lengths_of(axes, lengths_given);
  const auto resets = resets_of(axes, resets_given);
  tape.rows = RowSchedule(steps, B);
  if (!lengths && !resets) return;
  const auto* const flags =
      resets ? reinterpret_cast<const unsigned char*>(resets->data()) : nullptr;
  unlocked([&](const Interrupt& interrupt) {
    ThrottledPoll poll(interrupt);
    if (lengths) tape.rows.assign(steps, *lengths, poll);
    if (!flags) return;
    tape.resets.reserve(static_cast<std::size_t>(steps * B));
    for (Index t = 0; t < steps; ++t)
      for (Index b = 0; b < B; ++b) {
        tape.resets.push_back(flags[axes.batch_first ? b * axes.T + t : t * B + b] != 0);
        if (!poll.go_on(1)) return;
      }
  });
}

// The initial state's or the last state's gradient's parts, by name; None is zeros.
template <class T>
std::optional<py::array_t<T, py::array::c_style>> state_part(const std::string& name,
                                                             const py::object& value,
                                                             const Shape& shape) {
  if (value.is_none()) return std::nullopt;
  return flat<T>(name, value, shape);
}

// What `Trace` points to: [L * D, T, B] each, in an ensemble [E, L * D, T, B].
class Traces {
 public:
  Traces(const Sizes& s, const Axes& axes, bool wanted)
      : B_(axes.B), of_direction_(axes.T * axes.B), of_member_(s.L * s.D * of_direction_) {
    if (!wanted) return;
    for (int i = 0; i < kNorms; ++i) {
      if (i == kOfC && !s.has_c()) continue;
      std::vector<py::ssize_t> shape{s.L * s.D, axes.T, axes.B};
      if (axes.members) shape.insert(shape.begin(), axes.members);
      array_[i] = py::array_t<double>(shape);
      data_[i] = array_[i]->mutable_data();
      size_ = array_[i]->size();
    }
  }
  // Sets what backward does not write: the places behind the rows' ends.
  void set_padding(const Schedule& rows, ThrottledPoll& poll) const {
    constexpr Index at_once = kWorkBetweenLooks;
    for (int i = 0; i < kNorms && rows.count; ++i)
      for (Index j = 0; data_[i] && j < size_ && poll.go_on(at_once); j += at_once)
        std::fill_n(data_[i] + j, std::min(at_once, size_ - j), i == kScale ? 1.0 : 0.0);
  }
  Trace of(Index member, Index direction, Index step) const {
    const Index offset = member * of_member_ + direction * of_direction_ + step * B_;
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
  Index B_, of_direction_, of_member_, size_ = 0;
  std::optional<py::array_t<double>> array_[kNorms];
  double* data_[kNorms] = {};
};

std::vector<Parameter> parameters_of(const Sizes& s) {
  std::vector<Parameter> all;
  const Index GH = s.gates() * s.H;
  for (Index l = 0; l < s.L; ++l)
    for (Index d = 0; d < s.D; ++d) {
      const std::string suffix = "_l" + std::to_string(l) + (d ? "_reverse" : "");
      const auto add = [&](const char* name, std::vector<Index> shape) {
        if (s.members) shape.insert(shape.begin(), s.members);
        all.push_back({py::str(name + suffix), std::move(shape)});
      };
      add("weight_ih", {GH, s.inputs(l)});
      add("weight_hh", {GH, s.H});
      if (!s.bias) continue;
      add("bias_ih", {GH});
      add("bias_hh", {GH});
    }
  return all;
}

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
    return steps_of(s, first(i), std::min(length, T - first(i)));
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

// All layers' weights in panels, for calls that use them more than once.
template <class T>
class Packed {
 public:
  Packed(const TypedKernels<T>& use, const Sizes& s, const Parameters<T>& weights, Index members,
         bool wanted)
      : use_(use), s_(s), weights_(weights), L_(s.L) {
    for (Index i = 0; wanted && i < members * s.L; ++i)  // one direction: two are never cut
      blocks_.push_back(block<char>(use.packed_bytes(s.kind, s.inputs(i % s.L), s.H)));
  }
  void pack(ThrottledPoll& poll) const {
    for (std::size_t i = 0; i < blocks_.size() && poll.go_on(); ++i) {
      const Index layer = static_cast<Index>(i) % L_;
      Direction<T> d{};
      weights_.fill(d, layer, 0, static_cast<Index>(i) / L_);
      use_.pack(s_.kind, d, s_.inputs(layer), s_.H, threads(), poll.interrupt(), blocks_[i].get());
    }
  }
  const T* of(Index member, Index layer) const {
    if (blocks_.empty()) return nullptr;
    return reinterpret_cast<const T*>(blocks_[static_cast<std::size_t>(member * L_ + layer)].get());
  }

 private:
  const TypedKernels<T>& use_;
  const Sizes& s_;
  const Parameters<T>& weights_;
  Index L_;
  std::vector<Block<char>> blocks_;
};

// A member's layers in a call: from x, through a record, from a state to a state, each
// [L * D, members, B, H].
template <class T>
struct Member {
  const Sizes& s;
  const Parameters<T>& weights;
  const Packed<T>& packed;
  Index member, members, B;

  Index state(Index direction) const { return (direction * members + member) * B * s.H; }

  void fill(Layer<T>* layers, const Sequence<const T>& x, const Record<T>& record,
            const States<T>& before, const States<T>& after) const {
    for (Index l = 0; l < s.L; ++l) {
      const auto i = static_cast<std::size_t>(l);
      const Sequence<const T> input = l == 0 ? x : read_only(record.out[i - 1]);
      layers[l] = {s.inputs(l), input, record.h[i], record.out[i], {}};
      for (Index d = 0; d < s.D; ++d) {
        const Index j = l * s.D + d;
        Direction<T>& direction = layers[l].direction[d];
        weights.fill(direction, l, d, member);
        const States<T> first = before.at(state(j)), last = after.at(state(j));
        direction.h0 = first.h, direction.c0 = first.c;
        direction.h_last = last.h, direction.c_last = last.c;
        const auto kept = [&](const std::vector<Block<T>>& blocks) {
          return blocks.empty() ? nullptr : blocks[static_cast<std::size_t>(j)].get();
        };
        direction.saved = kept(record.saved), direction.cells = kept(record.cell);
        direction.packed = packed.of(member, l);
      }
    }
  }
};

// One call, or one for each member of an ensemble, side by side.
template <class Call, class T>
class Calls {
 public:
  Calls(const Sizes& s, Index members)
      : ensemble_(s.members != 0),
        L_(s.L),
        threads_(threads()),
        calls_(static_cast<std::size_t>(members)),
        layers_(static_cast<std::size_t>(members * s.L)) {}

  Call& of(Index member) { return calls_[static_cast<std::size_t>(member)]; }
  Layer<T>* layers(Index member) { return layers_.data() + member * L_; }
  int threads_of_one() const { return ensemble_ ? 1 : threads_; }
  Index rooms(Index of_one) const {
    return ensemble_ ? of_one * std::min<Index>(threads_, count()) : of_one;
  }
  void forward(const TypedKernels<T>& use, const Interrupt& interrupt, void* rooms) {
    for (Call& call : calls_) call.interrupt = interrupt;
    if (!ensemble_) return use.forward(calls_[0], rooms);
    use.forward_members(calls_.data(), count(), threads_, rooms);
  }
  void backward(const TypedKernels<T>& use, const Interrupt& interrupt, void* rooms,
                GradientNorm* norms) {
    for (Call& call : calls_) call.interrupt = interrupt;
    if (!ensemble_)
      *norms = use.backward(calls_[0], rooms);
    else
      use.backward_members(calls_.data(), count(), threads_, rooms, norms);
  }

 private:
  Index count() const { return static_cast<Index>(calls_.size()); }
  bool ensemble_;
  Index L_;
  int threads_;
  std::vector<Call> calls_;
  std::vector<Layer<T>> layers_;
};

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

}  // namespace

Net::Net(const std::string& kind, Index I, Index H, Index L, bool bias, bool bidirectional,
         bool residual, bool is_double, Index members)
    : sizes_{kind_of(kind), I, H, L, bidirectional ? 2 : 1, bias, residual, is_double, members},
      id_(next_id()) {
  const auto positive = [](const char* name, Index value) {
    if (value < 1) bad_value(name, "at least 1", std::to_string(value));
  };
  positive("input_size", I), positive("hidden_size", H), positive("num_layers", L);
  constexpr Index most_layers = 65536;  // their names alone would fill memory
  if (L > most_layers)
    bad_value("num_layers", "at most " + std::to_string(most_layers), std::to_string(L));
  product_of({8, std::max<Index>(members, 1), L, sizes_.D, sizes_.gates(), H,
              std::max(I, product_of({sizes_.D, H}))});
  parameters_ = parameters_of(sizes_);
}

py::list Net::parameter_shapes() const {
  py::list out;
  for (const Parameter& p : parameters_) {
    const std::size_t first = sizes_.members ? 1 : 0;
    py::tuple shape(p.shape.size() - first);  // of one member
    for (std::size_t i = 0; i < shape.size(); ++i) shape[i] = p.shape[first + i];
    out.append(py::make_tuple(p.name, shape));
  }
  return out;
}

py::tuple Net::forward(const py::dict& params, const py::object& x, const py::object& h0,
                       const py::object& c0, const py::object& lengths, const py::object& resets,
                       bool batch_first, bool keep, Index segment, double dropout,
                       const std::vector<std::uint64_t>& seeds, std::uint64_t step) const {
  std::vector<Dropout> drops;
  for (const std::uint64_t seed : seeds) drops.push_back({dropout, seed, step});
  return sizes_.is_double
             ? run<double>(params, x, h0, c0, lengths, resets, batch_first, keep, segment, drops)
             : run<float>(params, x, h0, c0, lengths, resets, batch_first, keep, segment, drops);
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
                   bool batch_first, bool keep, Index segment,
                   const std::vector<Dropout>& dropouts) const {
  const Sizes& s = sizes_;
  const Index LD = s.L * s.D, C = s.D * s.H;
  const Parameters<T> weights(s, parameters_, params);

  if (s.members && batch_first) bad_value("batch_first", "False with an ensemble", "True");
  const py::array given = typed<T>("x", x_given);
  const bool batched = s.members || given.ndim() != 2;
  const bool shared = given.ndim() == 3;  // by all members
  const Shape x_shape = s.members && !shared ? Shape{"T", s.members, "B", s.I}
                        : !batched           ? Shape{"T", s.I}
                        : batch_first        ? Shape{"B", "T", s.I}
                                             : Shape{"T", "B", s.I};
  const PinnedArray<const T> x(channels_last<T>("x", x_given, x_shape));
  const Axes axes{batched, batch_first, x.shape[batched && batch_first ? 1 : 0],
                  !batched ? 1 : x.shape[batch_first ? 0 : x.axes - 2], s.members};
  const Index steps = axes.B ? std::max<Index>(axes.T, 1) : 1;
  const Index E = std::max<Index>(s.members, 1);
  product_of({E, steps, std::max<Index>(axes.B, 1), LD, 16, padded_units<T>(std::max(s.I, C))});
  const auto h0 = state_part<T>(s.has_c() ? "state[0]" : "state", h_given, axes.state(LD, s.H));
  const auto c0 = state_part<T>("state[1]", c_given, axes.state(LD, s.H));

  auto tape = std::make_unique<TapeOf<T>>();
  tape->layer_id = id_, tape->sizes = s, tape->axes = axes, tape->dropouts = dropouts;
  tape->x = x, tape->segment = segment;
  set_rows(*tape, lengths, resets);
  const Schedule rows = tape->schedule();
  const Segments segments(rows.T, segment);
  const py::array_t<T> y = axes.make<T>(axes.sequence(C));
  const PinnedArray<T> y_pinned(y);
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

  const bool whole = keep && segment == 0, drops = dropouts[0].p > 0 && s.L > 1;
  const Index between = segments.length * rows.B * C;
  const Block<T> dropped = block<T>(drops ? E * between : 0);
  const TypedKernels<T>& use = kernels().of<T>();
  const Packed<T> packed(use, s, weights, E, segments.count > 1);
  std::vector<Record<T>> records;
  for (Index e = 0; e < E; ++e)
    records.emplace_back(s, segments.length, rows.B, tape->rows.alive_rows(), whole);
  Calls<ForwardCall<T>, T> calls(s, E);
  const auto prepare = [&](Index i) {
    for (Index e = 0; e < E; ++e) {
      Record<T>& record = records[static_cast<std::size_t>(e)];
      const auto x_view = axes.view(x, e);
      const auto y_view = axes.view(y_pinned, e);
      record.set_y(from_step(y_view, segments.first(i)));
      Member<T>{s, weights, packed, e, E, rows.B}.fill(
          calls.layers(e), from_step(x_view, segments.first(i)), record, before(i),
          i + 1 == segments.count ? last : before(i + 1));
      calls.of(e) = {s.kind,
                     s.residual,
                     s.L,
                     s.D,
                     s.H,
                     segments.of(rows, i),
                     calls.layers(e),
                     from_step(dropouts[static_cast<std::size_t>(e)], segments.first(i)),
                     drops ? dropped.get() + e * between : nullptr,
                     calls.threads_of_one(),
                     {}};
    }
  };
  prepare(0);
  const Block<char> room = block<char>(calls.rooms(use.forward_room(calls.of(0))));
  unlocked([&](const Interrupt& interrupt) {
    ThrottledPoll poll(interrupt);
    packed.pack(poll);
    for (Index i = 0; i < segments.count && poll.go_on(); ++i) {
      if (segments.count > 1) prepare(i);  // a single one is already
      calls.forward(use, poll.interrupt(), room.get());
    }
  });
  py::object kept = py::none();
  if (keep) {
    if (whole) {
      if (!s.residual) {
        // The tape reads it again.
        py::detail::array_proxy(y.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
        tape->y = y;
      }
      tape->records = std::move(records);
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
  const auto* tape = dynamic_cast<const TapeOf<T>*>(
      &constructed<Tape>("tape", tape_given, "a tape of this layer's forward"));
  if (!tape || tape->layer_id != id_)
    bad_value("tape", "a tape of this layer's forward", "one of another layer");
  const Parameters<T> weights(s, parameters_, params);
  const Axes& axes = tape->axes;
  const Schedule rows = tape->schedule();
  const Segments segments(rows.T, tape->segment);
  const Shape state_shape = axes.state(LD, s.H);
  const Index E = tape->members();

  PinnedArray<const T> dy;
  if (!dy_given.is_none())
    dy = PinnedArray<const T>(channels_last<T>("dy", dy_given, axes.sequence(C)));
  const auto dh = state_part<T>(s.has_c() ? "dstate[0]" : "dstate", dh_given, state_shape);
  const auto dc = state_part<T>("dstate[1]", dc_given, state_shape);

  Shape dx_shape = axes.sequence(s.I);
  const py::array_t<T> dx = axes.make<T>(dx_shape);
  const PinnedArray<T> dx_pinned(dx);
  py::array_t<T> dh0 = axes.make<T>(state_shape);
  py::object dc0 = py::none();
  if (s.has_c()) dc0 = axes.make<T>(state_shape);
  const States<T> given{dh ? const_cast<T*>(dh->data()) : nullptr,
                        dc ? const_cast<T*>(dc->data()) : nullptr};
  const States<T> d_state{dh0.mutable_data(), data_of<T>(dc0)};
  py::dict gradients;
  std::vector<T*> pointers;
  std::vector<Index> sizes;
  const Traces traces(s, axes, trace);
  for (const Parameter& parameter : parameters_) {
    py::array_t<T> array = result<T>(parameter.shape);
    gradients[parameter.name] = array;
    pointers.push_back(array.mutable_data());
    sizes.push_back(array.size() / E);
  }
  const Index state_size = tape->state_size(), between = segments.length * rows.B * C;
  const bool drops = tape->dropouts[0].p > 0 && s.L > 1;
  const Block<T> dropped = block<T>(drops ? E * between : 0);
  // Two buffers in turns hold the gradients between layers.
  const Block<T> turn[2] = {block<T>(s.L > 1 ? E * between : 0),
                            block<T>(s.L > 2 ? E * between : 0)};

  // With segments, forward is run again, from the state before each, into records of one.
  const bool again = tape->segment != 0;
  std::vector<Record<T>> own;
  const Block<T> y_again = block<T>(again ? E * between : 0);
  const Block<T> last_again = block<T>(again ? 2 * state_size : 0);
  const Block<T> scale = block<T>(again ? LD * E * rows.B : 0);
  for (Index e = 0; again && e < E; ++e) {
    own.emplace_back(s, segments.length, rows.B, segments.length * rows.B, true);
    own.back().set_y({y_again.get() + e * between, rows.B * C, C});
  }
  const std::vector<Record<T>>& records = again ? own : tape->records;
  const TypedKernels<T>& use = kernels().of<T>();
  const Packed<T> packed(use, s, weights, E, segments.count > 1);
  Calls<ForwardCall<T>, T> forward(s, E);
  Calls<BackwardCall<T>, T> backward(s, E);
  std::vector<LayerGradient<T>> layer_gradients(static_cast<std::size_t>(E * s.L));
  std::vector<GradientNorm> norms(static_cast<std::size_t>(E));

  const auto prepare = [&](Index i) {
    const Index step = segments.first(i);
    const bool first = i + 1 == segments.count;  // of the calls
    const States<T> last{last_again.get(), s.has_c() ? last_again.get() + state_size : nullptr};
    for (Index e = 0; e < E; ++e) {
      const Member<T> member{s, weights, packed, e, E, rows.B};
      const auto x_view = axes.view(tape->x, e);
      member.fill(backward.layers(e), from_step(x_view, step), records[static_cast<std::size_t>(e)],
                  States<T>{tape->h.get(), tape->c.get()}.at(i * state_size), last);
      std::copy_n(backward.layers(e), s.L, forward.layers(e));
      LayerGradient<T>* const of_layers = layer_gradients.data() + e * s.L;
      for (Index l = 0; l < s.L; ++l) {
        LayerGradient<T>& gradient = of_layers[l];
        const auto in_turn = [&](Index n) {
          return Sequence<T>{turn[s.L > 2 ? n % 2 : 0].get() + e * between, rows.B * C, C};
        };
        gradient.dx = l == 0 ? from_step(axes.view(dx_pinned, e), step) : in_turn(l);
        gradient.dy = {nullptr, 0, 0};
        if (l + 1 < s.L)
          gradient.dy = read_only(in_turn(l + 1));
        else if (dy.data)
          gradient.dy = from_step(axes.view(dy, e), step);
        for (Index d = 0; d < s.D; ++d) {
          const Index j = l * s.D + d;
          backward.layers(e)[l].direction[d].packed = nullptr;
          const States<T> after = (first ? given : d_state).at(member.state(j));
          const States<T> handed_back = d_state.at(member.state(j));
          const auto parameter = [&](Index n) -> T* {
            if (n >= s.parameters_of_direction()) return nullptr;
            const auto p = static_cast<std::size_t>(j * s.parameters_of_direction() + n);
            return pointers[p] + e * sizes[p];
          };
          gradient.direction[d] = {parameter(0),
                                   parameter(1),
                                   parameter(2),
                                   parameter(3),
                                   after.h,
                                   after.c,
                                   handed_back.h,
                                   handed_back.c,
                                   traces.of(e, j, step),
                                   again ? scale.get() + (j * E + e) * rows.B : nullptr};
        }
      }
      const Dropout dropout = from_step(tape->dropouts[static_cast<std::size_t>(e)], step);
      T* const room = drops ? dropped.get() + e * between : nullptr;
      const Schedule part = segments.of(rows, i);
      const int threads = forward.threads_of_one();
      forward.of(e) = {s.kind,  s.residual, s.L,     s.D, s.H, part, forward.layers(e),
                       dropout, room,       threads, {}};
      backward.of(e) = {s.kind,    s.residual, s.L,  s.D,  s.H,          part,   backward.layers(e),
                        of_layers, dropout,    room, clip, flow_penalty, !first, i > 0,
                        threads,   {}};
    }
  };
  prepare(0);
  const Block<char> room = block<char>(std::max(forward.rooms(use.forward_room(forward.of(0))),
                                                backward.rooms(use.backward_room(backward.of(0)))));
  unlocked([&](const Interrupt& interrupt) {
    ThrottledPoll poll(interrupt);
    packed.pack(poll);
    traces.set_padding(rows, poll);
    for (Index i = segments.count - 1; i >= 0 && poll.go_on(); --i) {
      if (segments.count > 1) prepare(i);  // a single one is already
      if (again) forward.forward(use, poll.interrupt(), room.get());
      backward.backward(use, poll.interrupt(), room.get(), norms.data());
    }
  });
  if (!s.members)
    return py::make_tuple(gradients, dx, dh0, dc0, norms[0].norm, norms[0].scale, norms[0].finite,
                          traces.arrays());
  py::array_t<double> norm(E), factor(E);
  py::array_t<bool> finite(E);
  for (Index e = 0; e < E; ++e) {
    const GradientNorm& of = norms[static_cast<std::size_t>(e)];
    norm.mutable_data()[e] = of.norm, factor.mutable_data()[e] = of.scale;
    finite.mutable_data()[e] = of.finite;
  }
  return py::make_tuple(gradients, dx, dh0, dc0, norm, factor, finite, traces.arrays());
}

namespace {

// The tape of an instance; null where its constructor has not run.
Tape* tape_in(PyObject* self) {
  const auto* held = reinterpret_cast<const py::detail::instance*>(self);
  return static_cast<Tape*>(held->simple_layout ? held->simple_value_holder[0] : nullptr);
}

// A tape keeps the caller's x, which may be an object that refers to the tape: Python's garbage
// collector must see the reference.
void collect_cycles(PyHeapTypeObject* heap_type) {
  PyTypeObject& type = heap_type->ht_type;
  type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    const Tape* const tape = tape_in(self);
    return tape ? tape->traverse(visit, arg) : 0;
  };
  type.tp_clear = [](PyObject* self) {
    if (Tape* const tape = tape_in(self)) tape->clear();
    return 0;
  };
}

}  // namespace

void bind_layer(py::module_& m) {
  auto tape = py::class_<Tape>(m, "Tape", py::custom_type_setup(collect_cycles),
                               "What a forward keeps for its backward. Reading it copies.");
  refuse_pickling(tape);
  tape.def_property_readonly("gates", method_of(&Tape::gates),
                             "For each layer and direction, (T, B, saved, H): LSTM i, f, g, o; "
                             "GRU r, z, n, W_hn h' + b_hn; reset-before GRU r, z, n.")
      .def_property_readonly("cells", method_of(&Tape::cells),
                             "For each layer and direction, c of every step (T, B, H); LSTM only.")
      .def_property_readonly("hiddens", method_of(&Tape::hiddens),
                             "For each layer, h of every step (T, B, D*H).");
  auto net = py::class_<Net>(m, "Net");
  refuse_pickling(net);
  net.def(py::init<const std::string&, Index, Index, Index, bool, bool, bool, bool, Index>(),
          py::arg("kind"), py::arg("input_size"), py::arg("hidden_size"), py::arg("num_layers"),
          py::arg("bias"), py::arg("bidirectional"), py::arg("residual"), py::arg("is_double"),
          py::arg("members"))
      .def("parameter_shapes", method_of(&Net::parameter_shapes))
      .def("forward", method_of(&Net::forward), py::arg("params"), py::arg("x"), py::arg("h0"),
           py::arg("c0"), py::arg("lengths"), py::arg("resets"), py::arg("batch_first"),
           py::arg("keep"), py::arg("segment"), py::arg("dropout"), py::arg("seeds"),
           py::arg("step"))
      .def("backward", method_of(&Net::backward), py::arg("params"), py::arg("tape"), py::arg("dy"),
           py::arg("dh"), py::arg("dc"), py::arg("step_value"), py::arg("step_norm"),
           py::arg("value"), py::arg("norm"), py::arg("trace"), py::arg("flow_penalty"));
}

}  // namespace rnnkern

#include "layer.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>

#include "modules/shared.h"
#include "tape.h"
#include "unlocked.h"

namespace rnnkern {

template <class T>
PinnedParameters<T>::PinnedParameters(const std::vector<NamedParameter>& all,
                                      const py::dict& params) {
  const py::dtype dtype = py::dtype::of<T>();
  owners_.reserve(all.size()), data_.reserve(all.size());
  for (const NamedParameter& parameter : all) {
    // Held from here on: without a lock on the interpreter, another thread may replace it
    // meanwhile.
    py::object given;
    if (params.contains(parameter.name)) given = params[parameter.name];
    if (given && is_plain_ndarray(given, dtype, parameter.shape.data(), parameter.shape.size())) {
      owners_.push_back(py::reinterpret_borrow<py::array_t<T>>(given));
    } else {
      const std::string name = "params['" + std::string(parameter.name) + "']";
      if (!given) bad_value(name, "an array", "nothing");
      owners_.push_back(
          as_contiguous<T>(name, given, {parameter.shape.begin(), parameter.shape.end()}));
    }
    data_.push_back(owners_.back().data());
    sizes_.push_back(1);
    for (const Index size : parameter.shape) sizes_.back() *= size;
  }
  if (params.size() != all.size())
    bad_value("params", std::to_string(all.size()) + " arrays", std::to_string(params.size()));
}
template <class T>
PinnedArray<const char> PinnedParameters<T>::bytes(std::size_t i) const {
  return bytes_of(data_[i], sizes_[i]);
}
template class PinnedParameters<float>;
template class PinnedParameters<double>;

std::string state_name(const std::string& name, const Sizes& sizes, Index k) {
  return sizes.states() == 1 ? name : name + "[" + std::to_string(k) + "]";
}

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

// A copy of flags of steps and rows, C-contiguous.
std::optional<Flags> flags_of(const Axes& axes, const char* name, const py::object& flags) {
  if (flags.is_none()) return std::nullopt;
  const py::array a = py::array::ensure(flags);
  if (!a || a.dtype().kind() != 'b')
    bad_type(name, "an array of booleans", a ? py::str(a.dtype()) : py::str(py::type::of(flags)));
  const Index T = axes.T, B = axes.B;
  check_shape(name, a, !axes.batched ? Shape{T} : axes.batch_first ? Shape{B, T} : Shape{T, B});
  return Flags(a.attr("copy")("C"));
}

// The same as bytes [T + 1, B], each 0 or 1; 0 from a row's length on. A poll that ends it leaves
// them incomplete.
std::vector<unsigned char> by_step(const Axes& axes, const Flags& flags, const Index* lengths,
                                   ThrottledPoll& poll) {
  const auto* const given = reinterpret_cast<const unsigned char*>(flags.data());
  const Index steps = axes.B ? axes.T : 0;
  std::vector<unsigned char> to;
  to.reserve(static_cast<std::size_t>((steps + 1) * axes.B));
  for (Index t = 0; t <= steps; ++t)
    for (Index b = 0; b < axes.B; ++b) {
      const bool alive = t < (lengths ? lengths[b] : steps);
      const Index place = axes.batch_first ? b * axes.T + t : t * axes.B + b;
      to.push_back(alive && given[place] != 0);
      if (!poll.go_on(1)) return to;
    }
  return to;
}

// Which rows a call computes at which step, as given.
struct GivenRows {
  const py::object &lengths, &mask, &resets;
};

// A tape's schedule and resets. The loops over steps run without the interpreter's lock.
template <class T>
void set_rows(TapeOf<T>& tape, const GivenRows& given) {
  const Axes& axes = tape.axes;
  const Index steps = tape.steps(), B = axes.B;
  if (!given.lengths.is_none() && !given.mask.is_none())
    bad_value("mask", "None with lengths", "an array");
  const auto lengths = lengths_of(axes, given.lengths);
  const auto mask = flags_of(axes, "mask", given.mask);
  const auto resets = flags_of(axes, "resets", given.resets);
  TapeRecord<T>& record = tape.record;
  record.B = B, record.rows = RowSchedule(steps, B);
  if (!lengths && !mask && !resets) return;
  unlocked([&](const Interrupt& interrupt) {
    ThrottledPoll poll(interrupt);
    if (lengths) record.rows.assign(steps, *lengths, poll);
    if (resets) record.resets = by_step(axes, *resets, lengths ? lengths->data() : nullptr, poll);
    if (!mask || !poll.go_on()) return;
    const std::vector<unsigned char> real = by_step(axes, *mask, nullptr, poll);
    if (poll.go_on()) record.set_mask(steps, real, poll);
  });
}

// The arrays of a state, or of its gradient, that a call reads: None is a fresh state, or zeros.
template <class T>
class GivenStates {
 public:
  // given: None, or a tuple of an array or None for each state.
  GivenStates(const std::string& name, const Sizes& s, const Axes& axes, const py::object& given) {
    if (given.is_none()) return;
    const auto parts = given.cast<py::tuple>();
    for (Index k = 0; k < s.states(); ++k) {
      const py::object part = parts[static_cast<std::size_t>(k)];
      if (part.is_none()) continue;
      owners_[k] =
          as_contiguous<T>(state_name(name, s, k), part, axes.state(s.L * s.D, s.width(k)));
      states_.part[k] = owners_[k].data();
    }
  }
  const States<const T>& states() const { return states_; }

 private:
  py::array_t<T, py::array::c_style> owners_[kMostStates];
  States<const T> states_;
};

// New arrays for the states, or their gradients, that a call writes.
template <class T>
class NewStates {
 public:
  NewStates(const Sizes& s, const Axes& axes) : arrays_(static_cast<std::size_t>(s.states())) {
    for (Index k = 0; k < s.states(); ++k) {
      py::array_t<T> array = axes.make<T>(axes.state(s.L * s.D, s.width(k)));
      states_.part[k] = array.mutable_data();
      arrays_[static_cast<std::size_t>(k)] = std::move(array);
    }
  }
  const States<T>& states() const { return states_; }
  const py::tuple& arrays() const { return arrays_; }

 private:
  py::tuple arrays_;
  States<T> states_;
};

// What `Trace` points to: [L * D, T, B] each, in an ensemble [E, L * D, T, B].
class Traces {
 public:
  Traces(const Sizes& s, const Axes& axes, bool wanted) {
    if (!wanted) return;
    for (int i = 0; i < kNorms; ++i) {
      if (i == kOfDcBefore && s.carried() == 0) continue;
      std::vector<py::ssize_t> shape{s.L * s.D, axes.T, axes.B};
      if (axes.members) shape.insert(shape.begin(), axes.members);
      array_[i] = py::array_t<double>(shape);
      data_[i] = array_[i]->mutable_data();
      size_ = array_[i]->size();
    }
  }
  // Sets what backward does not write: the places behind the rows' ends.
  void set_padding(const Schedule& rows, const Interrupt& interrupt) const {
    constexpr Index at_once = kWorkBetweenPolls;
    ThrottledPoll poll(interrupt);
    for (int i = 0; i < kNorms && rows.count; ++i)
      for (Index j = 0; data_[i] && j < size_ && poll.go_on(at_once); j += at_once)
        std::fill_n(data_[i] + j, std::min(at_once, size_ - j), i == kScale ? 1.0 : 0.0);
  }
  Trace whole() const {
    Trace trace;
    trace.dh = data_[kOfDh], trace.dh_before = data_[kOfDhBefore];
    trace.dc_before = data_[kOfDcBefore], trace.scale = data_[kScale];
    trace.clipped = data_[kClipped];
    return trace;
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
  static constexpr int kOfDh = 0, kOfDhBefore = 1, kOfDcBefore = 2, kScale = 3, kClipped = 4;
  static constexpr int kNorms = 5;
  Index size_ = 0;
  std::optional<py::array_t<double>> array_[kNorms];
  double* data_[kNorms] = {};
};

Kind kind_of(const std::string& name) {
  for (int i = 0; i < kKindCount; ++i)
    if (name == kKinds[i].name) return static_cast<Kind>(i);
  bad_value("kind", "a kind of cell", "'" + name + "'");
}

bool has_heads(const KindInfo& info) {
  for (const ParameterInfo* p = info.parameters; p->name; ++p)
    if (p->columns == Extent::head) return true;
  return false;
}

CellConstants constants_of(const CellOptions& options) {
  CellConstants constants{};
  constants.cell_clip = options.cell_clip, constants.projection_clip = options.projection_clip;
  constants.forward_clip = options.forward_clip;
  for (const double clip : {options.cell_clip, options.projection_clip, options.forward_clip})
    if (!(clip > 0)) bad_value("clip", "a number > 0", std::to_string(clip));
  constexpr std::size_t most = std::size(CellConstants{}.activations);
  if (options.activations.size() > most)
    bad_value("activations", "at most " + std::to_string(most),
              std::to_string(options.activations.size()));
  Activation* to = constants.activations;
  for (const auto& [name, alpha, beta] : options.activations) {
    const auto found = std::find(std::begin(kActivationNames), std::end(kActivationNames), name);
    if (found == std::end(kActivationNames))
      bad_value("activations", "a name of ONNX's list", "'" + name + "'");
    *to++ = {static_cast<ActivationKind>(found - std::begin(kActivationNames)), alpha, beta};
  }
  constexpr Index most_heads = std::numeric_limits<int>::max();
  if (options.heads < 1 || options.heads > most_heads)
    bad_value("heads", "from 1 to " + std::to_string(most_heads), std::to_string(options.heads));
  constants.heads = static_cast<int>(options.heads), constants.exp_forget = options.exp_forget;
  const auto precision =
      std::find(std::begin(kPrecisionNames), std::end(kPrecisionNames), options.precision);
  if (precision == std::end(kPrecisionNames))
    bad_value("precision", "a name of kPrecisionNames", "'" + options.precision + "'");
  constants.precision = static_cast<Precision>(precision - std::begin(kPrecisionNames));
  for (std::size_t i = 0; i < options.noise.size(); ++i) {
    constants.noise[i] = options.noise[i];
    if (!(0 <= options.noise[i] && options.noise[i] < 1))
      bad_value("noise", "probabilities from 0 to below 1", std::to_string(options.noise[i]));
  }
  return constants;
}

[[noreturn]] void stale(const std::string& name) {
  throw std::runtime_error(name +
                           ": expected the values that forward read, got others (change arrays "
                           "after backward, or call forward again)");
}

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

// The axes of a call with this x, which has the right dtype.
template <class T>
std::pair<Axes, PinnedArray<const T>> axes_and_x(const Sizes& s, const py::object& x_given,
                                                 bool batch_first) {
  if (s.members && batch_first) bad_value("batch_first", "False with an ensemble", "True");
  const py::array given = typed<T>("x", x_given);
  const bool batched = s.members || given.ndim() != 2;
  const bool shared = given.ndim() == 3;  // by all members
  const Shape shape = s.members && !shared ? Shape{"T", s.members, "B", s.I}
                      : !batched           ? Shape{"T", s.I}
                      : batch_first        ? Shape{"B", "T", s.I}
                                           : Shape{"T", "B", s.I};
  PinnedArray<const T> x(channels_last<T>("x", x_given, shape));
  const Axes axes{batched, batch_first, x.shape[batched && batch_first ? 1 : 0],
                  !batched ? 1 : x.shape[batch_first ? 0 : x.axes - 2], s.members};
  return {axes, std::move(x)};
}

// Numbers of rows as the core reads them: (T, B, 1), and so on, of T.
template <class T>
py::array numbers_of(const Sizes& s, const py::object& given, Index n, bool batch_first) {
  const Ids ids = checked_input(given, n);
  const Shape shape = s.members && ids.ndim() == 3 ? Shape{"T", s.members, "B"}
                      : s.members                  ? Shape{"T", "B"}
                      : ids.ndim() == 1            ? Shape{"T"}
                      : batch_first                ? Shape{"B", "T"}
                                                   : Shape{"T", "B"};
  check_shape("x", ids, shape);
  std::vector<Index> sizes(ids.shape(), ids.shape() + ids.ndim());
  sizes.push_back(1);
  py::array_t<T> numbers = result<T>(sizes);
  std::transform(ids.data(), ids.data() + ids.size(), numbers.mutable_data(),
                 [](std::int64_t id) { return static_cast<T>(id); });
  return std::move(numbers);
}

}  // namespace

LayerStack::LayerStack(const std::string& kind, Index I, Index H, Index P, Index L, bool bias,
                       bool bidirectional, bool reverse, bool residual, bool is_double,
                       Index members, const CellOptions& options)
    : is_double_(is_double), id_(next_id()) {
  sizes_.kind = kind_of(kind), sizes_.constants = constants_of(options);
  sizes_.I = I, sizes_.H = H, sizes_.P = P, sizes_.L = L, sizes_.D = bidirectional ? 2 : 1;
  sizes_.bias = bias, sizes_.peephole = options.peephole, sizes_.residual = residual;
  sizes_.members = members, sizes_.reverse = reverse;
  const auto positive = [](const char* name, Index value) {
    if (value < 1) bad_value(name, "at least 1", std::to_string(value));
  };
  positive("input_size", I), positive("hidden_size", H), positive("num_layers", L);
  positive("outputs", P);
  if (is_double && sizes_.constants.precision != Precision::full)
    bad_value("precision", "'full' for float64", "'" + options.precision + "'");
  if (reverse && bidirectional) bad_value("reverse", "False with bidirectional", "True");
  if (sizes_.has(projection_matrix) ? P >= H : P != H)
    bad_value("outputs", sizes_.has(projection_matrix) ? "less than hidden_size" : "hidden_size",
              std::to_string(P));
  if (sizes_.info().reads_x && I != H)
    bad_value("input_size", "hidden_size = " + std::to_string(H) + " (x acts unit by unit)",
              std::to_string(I));
  if (sizes_.info().reads_x && bidirectional && L > 1)
    bad_value("bidirectional",
              "False with num_layers=" + std::to_string(L) +
                  " (the layers above the first would have 2 * hidden_size inputs)",
              "True");
  if (has_heads(sizes_.info()) ? H % options.heads : options.heads != 1)
    bad_value("heads", has_heads(sizes_.info()) ? "a divisor of hidden_size" : "1",
              std::to_string(options.heads));
  constexpr Index most_layers = 65536;  // their names alone would fill memory
  if (L > most_layers)
    bad_value("num_layers", "at most " + std::to_string(most_layers), std::to_string(L));
  product_of({8, sizes_.count(), L, sizes_.D, sizes_.info().gates, H,
              std::max({I, H, product_of({sizes_.D, H})})});
  for (const Parameter& p : parameters_of(sizes_)) {
    std::vector<Index> shape = p.shape;
    if (members) shape.insert(shape.begin(), members);
    parameters_.push_back({py::str(p.name), std::move(shape)});
  }
}

namespace {

template <class T>
CallPlan plan_of(const Sizes& s, Index steps, Index rows, Index threads) {
  std::vector<Layer<T>> layers(static_cast<std::size_t>(s.L));
  for (Index l = 0; l < s.L; ++l) layers[static_cast<std::size_t>(l)].inputs = s.inputs(l);
  ForwardCall<T> call{};
  call.kind = s.kind, call.constants = s.constants, call.residual = s.residual;
  call.L = s.L, call.D = s.D, call.H = s.H, call.P = s.P, call.reverse = s.reverse;
  call.rows.T = steps, call.rows.B = rows;
  call.layers = layers.data(), call.threads = static_cast<int>(threads);
  const TypedKernels<T>& use = kernels().of<T>();
  const int side_by_side = s.members ? use.threads_of_forwards(call, s.count()) : 0;
  if (side_by_side == 0) return use.plan(call);
  call.threads = 1;
  CallPlan of_member = use.plan(call);
  of_member.threads = side_by_side, of_member.shared = "members";
  return of_member;
}

}  // namespace

py::tuple LayerStack::plan(Index steps, Index rows, Index threads) const {
  const CallPlan found =
      (is_double_ ? plan_of<double> : plan_of<float>)(sizes_, steps, rows, threads);
  return py::make_tuple(found.threads, found.shared, found.forward_chunk, found.backward_chunk);
}

py::list LayerStack::parameter_shapes() const {
  py::list out;
  for (const NamedParameter& p : parameters_) {
    const std::size_t first = sizes_.members ? 1 : 0;
    py::tuple shape(p.shape.size() - first);  // of one member
    for (std::size_t i = 0; i < shape.size(); ++i) shape[i] = p.shape[first + i];
    out.append(py::make_tuple(p.name, shape));
  }
  return out;
}

py::tuple LayerStack::state_names() const {
  py::tuple names(static_cast<std::size_t>(sizes_.states()));
  for (std::size_t k = 0; k < names.size(); ++k) names[k] = sizes_.info().states[k].name;
  return names;
}

template <class T>
std::shared_ptr<const PackedWeights<T>> LayerStack::packed(const py::dict& params,
                                                           const py::object& table) const {
  const PinnedParameters<T> parameters(parameters_, params);
  py::array_t<T> rows;
  Index folded = 0;
  if (!table.is_none()) {
    constexpr Index most = Index{1} << std::numeric_limits<T>::digits;  // numbers that T holds
    rows = as_contiguous<T>("embedding", table, {"N", sizes_.I});
    folded = rows.shape(0);
    if (folded < 1 || folded > most)
      bad_value("embedding", "from 1 to " + std::to_string(most) + " rows", std::to_string(folded));
    if (sizes_.info().reads_x)
      bad_value("embedding", "a cell that does not read x itself", sizes_.info().name);
    product_of({folded, sizes_.info().gates, padded_row<T>(sizes_.H), sizes_.count(), sizes_.D});
  }
  auto weights = std::make_shared<PackedWeights<T>>(kernels().of<T>(), sizes_, folded);
  const T* const data = folded ? rows.data() : nullptr;
  unlocked([&](const Interrupt& interrupt) {
    ThrottledPoll poll(interrupt);
    weights->pack(parameters.data(), poll, data);
  });
  return weights;
}

Packed LayerStack::pack(const py::dict& params, const py::object& table) const {
  if (is_double_) return {id_, nullptr, packed<double>(params, table)};
  return {id_, packed<float>(params, table), nullptr};
}

py::tuple LayerStack::forward(const py::object& weights, const py::object& x,
                              const py::object& state, const py::object& lengths,
                              const py::object& mask, const py::object& resets, bool batch_first,
                              int wanted, bool samples_all, Index segment,
                              const py::tuple& dropout) const {
  if (wanted < 0 || wanted > static_cast<int>(Wanted::tape))
    bad_value("wanted", "from 0 to 3", std::to_string(wanted));
  ForwardOptions options;
  options.batch_first = batch_first, options.wanted = static_cast<Wanted>(wanted);
  options.samples_all = samples_all, options.segment = segment;
  const auto [p, seeds, step, first_row, training] =
      dropout.cast<std::tuple<double, std::vector<std::uint64_t>, std::uint64_t, Index, bool>>();
  for (const std::uint64_t seed : seeds) {
    Dropout& of = options.dropouts.emplace_back();
    of.p = p, of.seed = seed, of.step = step, of.first_row = first_row, of.training = training;
  }
  if (static_cast<Index>(options.dropouts.size()) != sizes_.count())
    bad_value("dropout", std::to_string(sizes_.count()) + " seeds",
              std::to_string(options.dropouts.size()));
  return is_double_
             ? run_forward<double>(weights, x, state, lengths, mask, resets, std::move(options))
             : run_forward<float>(weights, x, state, lengths, mask, resets, std::move(options));
}

py::tuple LayerStack::backward(const py::dict& params, const py::object& tape, const py::object& dy,
                               const py::object& dstate, const std::array<double, 4>& clip,
                               bool trace, double flow_penalty) const {
  const Clip clips{clip[0], clip[1], clip[2], clip[3]};
  return is_double_ ? run_backward<double>(params, tape, dy, dstate, clips, trace, flow_penalty)
                    : run_backward<float>(params, tape, dy, dstate, clips, trace, flow_penalty);
}

namespace {

// The weights of a call, pinned: a dict of parameters, or packed ones.
template <class T>
class GivenWeights {
 public:
  GivenWeights(const std::vector<NamedParameter>& all, std::uint64_t layer_id,
               const py::object& given) {
    if (PyDict_Check(given.ptr())) {
      parameters_.emplace(all, py::reinterpret_borrow<py::dict>(given));
      return;
    }
    const auto& packed =
        constructed<Packed>("weights", given, "a dict of arrays or packed weights");
    if (packed.layer_id != layer_id) bad_value("weights", "this layer's", "those of another layer");
    packed_ = packed.of<T>();
  }
  void fill(ForwardArguments<T>& arguments) const {
    if (parameters_) arguments.parameters = parameters_->data();
    arguments.packed = packed_.get();
  }
  const PackedWeights<T>* packed() const { return packed_.get(); }
  const PinnedParameters<T>& parameters() const {
    if (!parameters_) bad_value("weights", "a dict of parameters for a tape", "packed ones");
    return *parameters_;
  }

 private:
  std::optional<PinnedParameters<T>> parameters_;
  std::shared_ptr<const PackedWeights<T>> packed_;
};

// The arrays that each layer's h goes to; of the last one y, unless layers are residual.
template <class T>
py::list hidden_arrays(const Sizes& s, const Axes& axes, const py::array_t<T>& y,
                       ForwardArguments<T>& arguments) {
  py::list arrays;
  for (Index l = 0; l < s.L; ++l) {
    const bool is_y = l + 1 == s.L && !s.residual;
    const py::array_t<T> h = is_y ? y : axes.make<T>(axes.sequence(s.channels()));
    arguments.hiddens.push_back(axes.view(PinnedArray<T>(h)));
    arrays.append(h);
  }
  return arrays;
}

}  // namespace

template <class T>
py::tuple LayerStack::run_forward(const py::object& weights, const py::object& x_given,
                                  const py::object& state, const py::object& lengths,
                                  const py::object& mask, const py::object& resets,
                                  ForwardOptions options) const {
  const GivenWeights<T> given(parameters_, id_, weights);
  const Sizes& s = given.packed() ? given.packed()->sizes() : sizes_;
  const Index folded = given.packed() ? given.packed()->folded() : 0;
  const py::object x_read =
      folded ? numbers_of<T>(s, x_given, folded, options.batch_first) : x_given;
  const auto found = axes_and_x<T>(s, x_read, options.batch_first);
  const Axes& axes = found.first;
  const PinnedArray<const T>& x = found.second;
  const Index steps = axes.B ? std::max<Index>(axes.T, 1) : 1;
  product_of({s.count(), steps, std::max<Index>(axes.B, 1), s.L * s.D, 16,
              padded_row<T>(std::max({s.I, s.H, s.channels()}))});
  const GivenStates<T> first("state", s, axes, state);

  auto tape = std::make_unique<TapeOf<T>>();
  tape->layer_id = id_, tape->axes = axes, tape->x = x.owner;
  tape->record.sizes = s, tape->record.segment = options.segment;
  tape->record.dropouts = std::move(options.dropouts), tape->record.x = axes.view(x);
  if (options.wanted == Wanted::tape)  // before anything else may run the caller's Python
    tape->caller_x = bytes_of(py::reinterpret_borrow<py::array>(x_given), x);
  set_rows(*tape, GivenRows{lengths, mask, resets});
  if (options.wanted == Wanted::tape) {
    tape->samples_all = options.samples_all;
    tape->samples.take(tape->sampled(given.parameters()));
  }

  ForwardArguments<T> arguments;
  const bool last_outputs = arguments.last_outputs = options.wanted == Wanted::last_outputs;
  const py::array_t<T> y =
      axes.make<T>(last_outputs ? axes.one_step(s.channels()) : axes.sequence(s.channels()));
  const NewStates<T> last(s, axes);
  given.fill(arguments);
  const PinnedArray<T> pinned_y(y);
  arguments.y = last_outputs ? axes.view_step(pinned_y) : axes.view(pinned_y);
  arguments.first = first.states(), arguments.last = last.states();
  arguments.keep = options.wanted == Wanted::tape;
  py::object more = py::none();
  if (options.wanted == Wanted::hiddens) more = hidden_arrays(s, axes, y, arguments);
  ForwardRun<T> run(tape->record, arguments);
  unlocked([&](const Interrupt& interrupt) { run.run(interrupt); });
  run.finish();
  if (!arguments.keep) return py::make_tuple(y, last.arrays(), more);
  if (options.segment == 0 && !s.residual && !tape->record.mask.moves()) {
    // The tape reads it again.
    py::detail::array_proxy(y.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    tape->y = y;
  }
  return py::make_tuple(y, last.arrays(), py::cast(std::unique_ptr<Tape>(std::move(tape))));
}

template <class T>
py::tuple LayerStack::run_backward(const py::dict& params, const py::object& tape_given,
                                   const py::object& dy_given, const py::object& dstate,
                                   const Clip& clip, bool trace, double flow_penalty) const {
  const Sizes& s = sizes_;
  const auto* tape = dynamic_cast<const TapeOf<T>*>(
      &constructed<Tape>("tape", tape_given, "a tape of this layer's forward"));
  if (!tape || tape->layer_id != id_)
    bad_value("tape", "a tape of this layer's forward", "one of another layer");
  const PinnedParameters<T> parameters(parameters_, params);
  if (const Index i = tape->samples.changed(tape->sampled(parameters)); i >= 0)
    stale(i == 0 ? "x" : "params['" + std::string(parameters_[i - 1].name) + "']");
  const Axes& axes = tape->axes;
  PinnedArray<const T> dy;
  if (!dy_given.is_none())
    dy = PinnedArray<const T>(channels_last<T>("dy", dy_given, axes.sequence(s.channels())));
  const GivenStates<T> last("dstate", s, axes, dstate);

  const py::array_t<T> dx = axes.make<T>(axes.sequence(s.I));
  const NewStates<T> first(s, axes);
  const Traces traces(s, axes, trace);
  py::dict gradients;
  BackwardArguments<T> arguments;
  for (const NamedParameter& parameter : parameters_) {
    py::array_t<T> array = result<T>(parameter.shape);
    gradients[parameter.name] = array;
    arguments.gradients.push_back(array.mutable_data());
  }
  arguments.parameters = parameters.data();
  arguments.dy = axes.view(dy), arguments.dx = axes.view(PinnedArray<T>(dx));
  arguments.last = last.states(), arguments.first = first.states();
  arguments.trace = traces.whole(), arguments.trace_steps = axes.T;
  arguments.clip = clip, arguments.flow_penalty = flow_penalty;
  BackwardRun<T> run(tape->record, arguments);
  unlocked([&](const Interrupt& interrupt) {
    traces.set_padding(tape->record.rows.view(), interrupt);
    run.run(interrupt);
  });

  const std::vector<GradientNorm>& norms = run.norms();
  if (!s.members)
    return py::make_tuple(gradients, dx, first.arrays(), norms[0].norm, norms[0].scale,
                          norms[0].finite, traces.arrays());
  py::array_t<double> norm(s.members), factor(s.members);
  py::array_t<bool> finite(s.members);
  for (std::size_t e = 0; e < norms.size(); ++e) {
    norm.mutable_data()[e] = norms[e].norm, factor.mutable_data()[e] = norms[e].scale;
    finite.mutable_data()[e] = norms[e].finite;
  }
  return py::make_tuple(gradients, dx, first.arrays(), norm, factor, finite, traces.arrays());
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
  tape.def_property_readonly("nbytes", method_of(&Tape::nbytes), "Memory that it keeps, x apart.")
      .def_property_readonly("gates", method_of(&Tape::gates),
                             "For each layer and direction, (T, B, saved, H): LSTM i, f, g, o; "
                             "GRU r, z, n, W_hn h' + b_hn; reset-before GRU r, z, n; minGRU z, g; "
                             "others as `saved` of their cell in rnnkern.reference says.")
      .def_property_readonly("cells", method_of(&Tape::cells),
                             "For each layer and direction, c of every step (T, B, H), or of "
                             "several states besides h (T, B, states, H); [] without any.")
      .def_property_readonly("hiddens", method_of(&Tape::hiddens),
                             "For each layer, h of every step (T, B, D*P).")
      .def_property_readonly("real_steps", method_of(&Tape::real_steps),
                             "Where each row has a step (T, B).");
  auto packed = py::class_<Packed>(m, "Packed", "A layer's weights, packed for its calls.");
  refuse_pickling(packed);
  auto stack = py::class_<LayerStack>(m, "LayerStack");
  refuse_pickling(stack);
  stack
      .def(py::init([](const std::string& kind, Index I, Index H, Index P, Index L, bool bias,
                       bool bidirectional, bool reverse, bool residual, bool is_double,
                       Index members, bool peephole, double cell_clip, double projection_clip,
                       double forward_clip,
                       std::vector<std::tuple<std::string, double, double>> activations,
                       const std::array<double, kNoises>& noise, Index heads, bool exp_forget,
                       std::string precision) {
             CellOptions options{};
             options.peephole = peephole, options.cell_clip = cell_clip;
             options.projection_clip = projection_clip, options.forward_clip = forward_clip;
             options.activations = std::move(activations), options.noise = noise;
             options.heads = heads, options.exp_forget = exp_forget;
             options.precision = std::move(precision);
             return std::make_unique<LayerStack>(kind, I, H, P, L, bias, bidirectional, reverse,
                                                 residual, is_double, members, options);
           }),
           py::arg("kind"), py::arg("input_size"), py::arg("hidden_size"), py::arg("outputs"),
           py::arg("num_layers"), py::arg("bias"), py::arg("bidirectional"), py::arg("reverse"),
           py::arg("residual"), py::arg("is_double"), py::arg("members"), py::arg("peephole"),
           py::arg("cell_clip"), py::arg("projection_clip"), py::arg("forward_clip"),
           py::arg("activations"), py::arg("noise"), py::arg("heads"), py::arg("exp_forget"),
           py::arg("precision"))
      .def("parameter_shapes", method_of(&LayerStack::parameter_shapes))
      .def("state_names", method_of(&LayerStack::state_names))
      .def("plan", method_of(&LayerStack::plan), py::arg("steps"), py::arg("rows"),
           py::arg("threads"))
      .def("pack", method_of(&LayerStack::pack), py::arg("params"), py::arg("table") = py::none())
      .def("forward", method_of(&LayerStack::forward), py::arg("weights"), py::arg("x"),
           py::arg("state"), py::arg("lengths"), py::arg("mask"), py::arg("resets"),
           py::arg("batch_first"), py::arg("wanted"), py::arg("samples_all"), py::arg("segment"),
           py::arg("dropout"))
      .def("backward", method_of(&LayerStack::backward), py::arg("params"), py::arg("tape"),
           py::arg("dy"), py::arg("dstate"), py::arg("clip"), py::arg("trace"),
           py::arg("flow_penalty"));
}

}  // namespace rnnkern

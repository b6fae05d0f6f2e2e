#include "network.h"

#include <algorithm>
#include <optional>
#include <type_traits>

#include "stack/masked.h"
#include "stack/steps.h"

namespace rnnkern {

bool Sizes::has(Role role) const {
  for (const ParameterInfo* p = info().parameters; p->name; ++p)
    if (p->role == role) return true;
  return false;
}

Index Sizes::states() const {
  Index n = 0;
  while (info().states[n].name) ++n;
  return n;
}

Index Sizes::extent(Extent of, Index layer) const {
  switch (of) {
    case Extent::gates:
      return info().gates * H;
    case Extent::hidden:
      return H;
    case Extent::outputs:
      return P;
    case Extent::inputs:
      return inputs(layer);
    case Extent::head:
      return P / constants.heads;
    case Extent::one:
      break;
  }
  return 1;
}

bool Sizes::clips_projection() const {
  return has(projection_matrix) && constants.projection_clip < __builtin_inf();
}

std::vector<Parameter> parameters_of(const Sizes& s) {
  std::vector<Parameter> all;
  for (Index layer = 0; layer < s.L; ++layer)
    for (Index direction = 0; direction < s.D; ++direction)
      for (const ParameterInfo* p = s.info().parameters; p->name; ++p) {
        if (p->needs == Needs::bias ? !s.bias : p->needs == Needs::peephole && !s.peephole)
          continue;
        const Index rows = p->times * s.extent(p->rows, layer),
                    columns = s.extent(p->columns, layer);
        const std::string suffix = "_l" + std::to_string(layer) + (direction ? "_reverse" : "");
        Parameter one{p->name + suffix, p->role, layer, direction, {rows}, rows * columns};
        if (p->columns != Extent::one) one.shape.push_back(columns);
        all.push_back(std::move(one));
      }
  return all;
}

namespace {

template <class T>
T* offset(T* data, Index by) {
  return data ? data + by : nullptr;
}

// A sequence cut into segments of `length` steps, the last maybe shorter; 0: one of them all. They
// are numbered as a forward takes them.
struct Segments {
  Index T, length, count;
  bool reverse;
  Segments(Index steps, Index segment, bool from_end)
      : T(steps),
        length(segment ? std::min(segment, std::max<Index>(T, 1)) : T),
        count(length ? std::max<Index>(1, (T + length - 1) / length) : 1),
        reverse(from_end) {}
  Index first(Index i) const { return (reverse ? count - 1 - i : i) * length; }
  Index longest() const { return reverse ? count - 1 : 0; }
  Index shortest() const { return reverse ? 0 : count - 1; }
  Schedule of(const Schedule& s, Index i) const {
    return steps_of(s, first(i), std::min(length, T - first(i)));
  }
};

}  // namespace

template <class T>
Record<T>::Record(const Sizes& s, Index steps, Index B, Index alive, bool keep, bool apart,
                  const std::vector<Sequence<T>>& hiddens)
    : own_last_h_((keep && (s.residual || apart)) || (!hiddens.empty() && s.residual)) {
  const Index C = s.channels(), Hp = padded_row<T>(s.H);
  const auto sequence = [&] {
    blocks_.push_back(block<T>(steps * B * C));
    return Sequence<T>{blocks_.back().get(), B * C, C};
  };
  for (Index l = 0; l < s.L; ++l) {
    const bool last = l + 1 == s.L, sums = s.residual && l > 0;
    if (!hiddens.empty()) {
      h.push_back(hiddens[static_cast<std::size_t>(l)]);
    } else if (!keep && l >= 2) {
      h.push_back(h[static_cast<std::size_t>(l) - 2]);
    } else {
      h.push_back(last && !own_last_h_ ? Sequence<T>{} : sequence());
    }
    out.push_back(own_last_h_ && sums && !last ? sequence() : h.back());
  }
  if (!keep) return;
  for (Index i = 0; i < s.L * s.D; ++i) {
    if (s.info().saved) saved.push_back(block<T>(alive * s.info().saved * Hp));
    if (s.carried()) carried.push_back(block<T>(alive * s.carried() * Hp));
    if (s.clips_projection()) projected.push_back(block<T>(alive * padded_row<T>(s.P)));
    if (s.has(input_gain)) moments.push_back(block<T>(alive * kMoments));
  }
}

template <class T>
std::size_t Record<T>::bytes() const {
  std::size_t sum = 0;
  for (const auto* blocks : {&saved, &carried, &projected, &moments, &blocks_})
    for (const Block<T>& one : *blocks) sum += one.get_deleter().bytes;
  return sum;
}

template <class T>
std::size_t TapeRecord<T>::bytes() const {
  std::size_t sum = 0;
  for (const Record<T>& record : records) sum += record.bytes();
  for (const Block<T>& state : states)
    if (state) sum += state.get_deleter().bytes;
  if (real_x) sum += real_x.get_deleter().bytes;
  return sum;
}

template <class T>
void Record<T>::set_y(const Sequence<T>& y) {
  out.back() = y;
  if (!own_last_h_) h.back() = y;
}

namespace {

// A stack's parameters, by layer, direction and member.
template <class T>
class Weights {
 public:
  Weights(const Sizes& s, ParameterArrays<const T> arrays)
      : parameters_(parameters_of(s)), arrays_(std::move(arrays)) {
    of_direction_ = parameters_.size() / static_cast<std::size_t>(s.L * s.D);
    D_ = s.D;
  }
  void fill(Direction<T>& to, Index layer, Index direction, Index member) const {
    for_each(layer, direction, [&](const Parameter& p, std::size_t i) {
      to.parameters[p.role] = arrays_[i] + member * p.size;
    });
  }
  // The same of arrays of gradients.
  void fill(DirectionGradient<T>& to, const ParameterArrays<T>& gradients, Index layer,
            Index direction, Index member) const {
    for_each(layer, direction, [&](const Parameter& p, std::size_t i) {
      to.parameters[p.role] = gradients[i] + member * p.size;
    });
  }

 private:
  template <class Use>
  void for_each(Index layer, Index direction, const Use& use) const {
    const std::size_t first = static_cast<std::size_t>(layer * D_ + direction) * of_direction_;
    for (std::size_t i = first; i < first + of_direction_; ++i) use(parameters_[i], i);
  }
  std::vector<Parameter> parameters_;
  ParameterArrays<const T> arrays_;
  std::size_t of_direction_;
  Index D_;
};

}  // namespace

template <class T>
PackedWeights<T>::PackedWeights(const TypedKernels<T>& kernels, const Sizes& s, Index folded)
    : kernels_(kernels), sizes_(s), call_sizes_(s), folded_(folded) {
  for (Index i = 0; i < s.count() * s.L * s.D; ++i)
    blocks_.push_back(
        block<char>(kernels.packed_bytes(s.kind, s.constants, s.inputs(i / s.D % s.L), s.H, s.P)));
  if (!folded) return;
  call_sizes_.I = 1;
  for (Index i = 0; i < s.count() * s.D; ++i)
    products_.push_back(block<T>(folded * s.info().gates * padded_row<T>(s.H)));
}

template <class T>
void PackedWeights<T>::pack(const ParameterArrays<const T>& parameters, ThrottledPoll& poll,
                            const T* table) {
  const Sizes& s = sizes_;
  const Weights<T> weights(s, parameters);
  std::size_t next = 0;
  Block<T> rounded;
  const T* rows = table;
  if (folded_ && s.constants.precision == Precision::bf16_products) {
    rounded = block<T>(folded_ * s.I);
    kernels_.round_to_bf16(table, folded_ * s.I, rounded.get());
    rows = rounded.get();
  }
  for (std::size_t i = 0; i < blocks_.size() && poll.go_on(); ++i) {
    const Index n = static_cast<Index>(i), layer = n / s.D % s.L;
    Direction<T> d{};
    weights.fill(d, layer, n % s.D, n / s.D / s.L);
    kernels_.pack(s.kind, s.constants, d, s.inputs(layer), s.H, s.P, threads(), poll.interrupt(),
                  blocks_[i].get());
    if (folded_ && layer == 0 && poll.go_on())
      kernels_.fold(s.constants, blocks_[i].get(), rows, folded_, s.I, threads(), poll.interrupt(),
                    products_[next++].get());
  }
}

template <class T>
const T* PackedWeights<T>::of(Index member, Index layer, Index direction) const {
  const Index i = (member * sizes_.L + layer) * sizes_.D + direction;
  return reinterpret_cast<const T*>(blocks_[static_cast<std::size_t>(i)].get());
}

namespace {

// The calls of a run: one, or one for each member of an ensemble, side by side or in turn.
template <class Call, class T>
class Calls {
 public:
  explicit Calls(const Sizes& s)
      : ensemble_(s.members != 0),
        L_(s.L),
        threads_(threads()),
        side_by_side_(0),
        calls_(static_cast<std::size_t>(s.count())),
        layers_(static_cast<std::size_t>(s.count() * s.L)) {
    for (Index e = 0; e < s.count(); ++e) {
      Call& call = of(e);
      call.kind = s.kind, call.constants = s.constants, call.residual = s.residual;
      call.L = s.L, call.D = s.D, call.H = s.H, call.P = s.P;
      call.reverse = s.reverse;
      call.layers = layers(e);
      call.threads = threads_;
    }
  }
  Call& of(Index member) { return calls_[static_cast<std::size_t>(member)]; }
  Layer<T>* layers(Index member) { return layers_.data() + member * L_; }
  // Once the calls have their rows: how members share the threads.
  void arrange(const TypedKernels<T>& use) {
    if (!ensemble_) return;
    calls_[0].threads = threads_;
    if constexpr (std::is_same_v<Call, ForwardCall<T>>)
      side_by_side_ = use.threads_of_forwards(calls_[0], count());
    else
      side_by_side_ = use.threads_of_backwards(calls_[0], count());
    for (Call& call : calls_) call.threads = side_by_side_ > 0 ? 1 : threads_;
  }
  Index workspaces(Index of_one) const { return of_one * std::max(1, side_by_side_); }
  void forward(const TypedKernels<T>& use, ThrottledPoll& poll, void* workspaces) {
    for (Call& call : calls_) call.interrupt = poll.interrupt();
    if (side_by_side_ > 0)
      return use.forward_members(calls_.data(), count(), side_by_side_, workspaces);
    for (const Call& call : calls_)
      if (poll.go_on()) use.forward(call, workspaces);
  }
  void backward(const TypedKernels<T>& use, ThrottledPoll& poll, void* workspaces,
                GradientNorm* norms) {
    for (Call& call : calls_) call.interrupt = poll.interrupt();
    if (side_by_side_ > 0)
      return use.backward_members(calls_.data(), count(), side_by_side_, workspaces, norms);
    for (const Call& call : calls_)
      if (poll.go_on()) *norms++ = use.backward(call, workspaces);
  }

 private:
  Index count() const { return static_cast<Index>(calls_.size()); }
  bool ensemble_;
  Index L_;
  int threads_;
  int side_by_side_;  // threads with members of their own; 0: a single call, or members in turn
  std::vector<Call> calls_;
  std::vector<Layer<T>> layers_;
};

// The part of a state of all layers and members that belongs to a direction of one member.
struct StateOffset {
  const Sizes& s;
  Index B;
  Index operator()(Index state, Index direction, Index member) const {
    return (direction * s.count() + member) * B * s.width(state);
  }
};

// A member's layers in a call: from x, through a record, from states to states.
template <class T>
void fill_layers(const Sizes& s, const Weights<T>& weights, const PackedWeights<T>* packed,
                 Index member, Index B, const Sequence<const T>& x, const Record<T>& record,
                 const States<const T>& before, const States<T>& after, Layer<T>* layers) {
  const StateOffset offset_of{s, B};
  const auto kept = [](const std::vector<Block<T>>& blocks, Index i) {
    return blocks.empty() ? nullptr : blocks[static_cast<std::size_t>(i)].get();
  };
  for (Index l = 0; l < s.L; ++l) {
    const auto i = static_cast<std::size_t>(l);
    layers[l].inputs = s.inputs(l);
    layers[l].x = l == 0 ? x : read_only(record.out[i - 1]);
    layers[l].y = record.h[i], layers[l].out = record.out[i];
    for (Index d = 0; d < s.D; ++d) {
      const Index j = l * s.D + d;
      Direction<T>& direction = layers[l].direction[d];
      direction = {};
      if (packed)
        direction.packed = packed->of(member, l, d);
      else
        weights.fill(direction, l, d, member);
      for (Index k = 0; k < s.states(); ++k) {
        direction.first[k] = offset(before.part[k], offset_of(k, j, member));
        direction.last[k] = offset(after.part[k], offset_of(k, j, member));
      }
      direction.saved = kept(record.saved, j), direction.carried = kept(record.carried, j);
      direction.projected = kept(record.projected, j);
      direction.moments = kept(record.moments, j);
    }
  }
}

}  // namespace

// ---- forward -----------------------------------------------------------------------------------

template <class T>
struct ForwardRun<T>::Plan {
  TapeRecord<T>& tape;
  const ForwardArguments<T>& given;
  const Sizes& s;
  const Index E;
  const Schedule rows;
  const Segments segments;
  const bool keeps, keeps_all;  // for backward; all of it, and not just states
  RealSteps<T> x;
  const MemberSequence<T> y;
  const States<const T> first;
  const States<T> last;
  const PackedWeights<T>* packed;  // the caller's, this run's own of several segments, or null
  const TypedKernels<T>& use;
  const Weights<T> weights;
  std::optional<PackedWeights<T>> own_packed;
  const Index between;  // elements between two layers of a member
  const Block<T> dropped;
  std::vector<Record<T>> records;
  Calls<ForwardCall<T>, T> calls;
  Block<char> workspace;

  Plan(TapeRecord<T>& to, const ForwardArguments<T>& arguments)
      : tape(to),
        given(arguments),
        s(to.sizes),
        E(s.count()),
        rows(to.schedule()),
        segments(rows.T, to.segment, s.reverse),
        keeps(arguments.keep),
        keeps_all(arguments.keep && to.segment == 0),
        x(to, to.x, s.I),
        y(arguments.y),
        first(arguments.first),
        last(arguments.last),
        packed(arguments.packed),
        use(packed ? packed->kernels() : kernels().of<T>()),
        weights(s, arguments.parameters),
        between(segments.length * rows.B * s.channels()),
        dropped(block<T>(to.drops() ? E * between : 0)),
        calls(s) {
    tape.x = x.sequence();
    if (!packed && segments.count > 1) packed = &own_packed.emplace(use, s);
    for (Index k = 0; k < s.states(); ++k) keep_first_state(k);
    for (Index e = 0; e < E; ++e) {
      std::vector<Sequence<T>> hiddens;
      hiddens.reserve(given.hiddens.size());
      for (const MemberSequence<T>& h : given.hiddens) hiddens.push_back(h.of(e));
      records.emplace_back(s, segments.length, rows.B, tape.rows.alive_rows(), keeps_all,
                           tape.mask.moves(), hiddens);
    }
    // A shorter segment may use more threads.
    Index size = 0;
    const auto fit = [&](Index segment) {
      prepare(segment);
      size = std::max(size, calls.workspaces(use.forward_workspace(calls.of(0))));
    };
    if (segments.count > 1) fit(segments.shortest());
    fit(segments.longest());
    workspace = block<char>(size);
  }

  // The tape's copy of a first state; a fresh one needs none without segments.
  void keep_first_state(Index k) {
    if (!keeps || (!first.part[k] && segments.count == 1)) return;
    const Index size = tape.state_size(k);
    tape.states[k] = block<T>(segments.count * size);
    if (first.part[k])
      std::copy_n(first.part[k], size, tape.states[k].get());
    else
      std::fill_n(tape.states[k].get(), size, s.fresh<T>(k));
  }

  // The states before segment i; before the first the caller's.
  States<const T> before(Index i) const {
    if (i == 0) return first;
    States<const T> states;
    for (Index k = 0; k < s.states(); ++k)
      states.part[k] = tape.states[k].get() + i * tape.state_size(k);
    return states;
  }
  States<T> after(Index i) const {
    if (i + 1 == segments.count) return last;
    States<T> states;
    for (Index k = 0; k < s.states(); ++k)
      states.part[k] = tape.states[k].get() + (i + 1) * tape.state_size(k);
    return states;
  }

  // The calls of segment i.
  void prepare(Index i) {
    const Index step = segments.first(i);
    for (Index e = 0; e < E; ++e) {
      Record<T>& record = records[static_cast<std::size_t>(e)];
      record.set_y(from_step(y.of(e), step));
      fill_layers(s, weights, packed, e, rows.B, from_step(tape.x.of(e), step), record, before(i),
                  after(i), calls.layers(e));
      ForwardCall<T>& call = calls.of(e);
      call.rows = segments.of(rows, i), call.last_outputs = given.last_outputs;
      call.dropout = from_step(tape.dropouts[static_cast<std::size_t>(e)], step);
      call.dropped = tape.drops() ? dropped.get() + e * between : nullptr;
    }
    calls.arrange(use);
  }

  // After all segments: y and the layers' h, which stand at the real steps' own places, or of y in
  // the tape. An output of the last real step alone stays where it is.
  void spread(ThrottledPoll& poll) const {
    if (!tape.mask.moves() || given.last_outputs || !y.first.data) return;
    for (Index e = 0; e < E; ++e) {
      const Record<T>& record = records[static_cast<std::size_t>(e)];
      const Sequence<T> to = y.of(e);
      const bool from_tape = keeps_all && !s.residual;
      tape.mask.spread(s.channels(), from_tape ? record.h.back() : to, to, T(0), poll);
      for (const MemberSequence<T>& h : given.hiddens)
        if (h.first.data != y.first.data)
          tape.mask.spread(s.channels(), h.of(e), h.of(e), T(0), poll);
    }
  }
};

template <class T>
ForwardRun<T>::ForwardRun(TapeRecord<T>& tape, const ForwardArguments<T>& arguments)
    : plan_(std::make_unique<Plan>(tape, arguments)) {}
template <class T>
ForwardRun<T>::~ForwardRun() = default;

template <class T>
void ForwardRun<T>::run(const Interrupt& interrupt) {
  Plan& plan = *plan_;
  ThrottledPoll poll(interrupt);
  if (plan.own_packed) plan.own_packed->pack(plan.given.parameters, poll);
  plan.x.gather(poll);
  for (Index i = 0; i < plan.segments.count && poll.go_on(); ++i) {
    if (plan.segments.count > 1) plan.prepare(i);  // a single one is already
    plan.calls.forward(plan.use, poll, plan.workspace.get());
  }
  plan.spread(poll);
  cut_states(plan.tape, plan.last);
}

template <class T>
void ForwardRun<T>::finish() {
  if (plan_->keeps_all) plan_->tape.records = std::move(plan_->records);
  plan_->tape.real_x = plan_->x.release();
}

// ---- backward ----------------------------------------------------------------------------------

template <class T>
struct BackwardRun<T>::Plan {
  const TapeRecord<T>& tape;
  const Sizes& s;
  const BackwardArguments<T>& to;
  const Index E;
  const Schedule rows;
  const Segments segments;
  const bool again;  // with segments, forward runs again, from the states before each
  const RealSteps<T> dy;
  const LastGradients<T> last;
  const TypedKernels<T>& use;
  const Weights<T> weights;
  std::optional<PackedWeights<T>> packed;  // for several segments
  const Index between;                     // elements between two layers of a member
  const Block<T> dropped;
  const Block<T> turn[2];  // the gradients between layers, in turns
  const Block<T> y_again, scale;
  Block<T> last_again[kMostStates];
  std::vector<Record<T>> own;  // of one segment
  Calls<ForwardCall<T>, T> forward;
  Calls<BackwardCall<T>, T> backward;
  std::vector<LayerGradient<T>> layer_gradients;
  std::vector<GradientNorm> norms;
  Block<char> workspace;

  Plan(const TapeRecord<T>& from, const BackwardArguments<T>& arguments)
      : tape(from),
        s(from.sizes),
        to(arguments),
        E(s.count()),
        rows(from.schedule()),
        segments(rows.T, from.segment, s.reverse),
        again(from.segment != 0),
        dy(from, arguments.dy, s.channels()),
        last(from, arguments.last),
        use(kernels().of<T>()),
        weights(s, arguments.parameters),
        between(segments.length * rows.B * s.channels()),
        dropped(block<T>(from.drops() ? E * between : 0)),
        turn{block<T>(s.L > 1 ? E * between : 0), block<T>(s.L > 2 ? E * between : 0)},
        y_again(block<T>(again ? E * between : 0)),
        scale(block<T>(again ? s.L * s.D * E * rows.B : 0)),
        forward(s),
        backward(s),
        layer_gradients(static_cast<std::size_t>(E * s.L)),
        norms(static_cast<std::size_t>(E)) {
    if (segments.count > 1) packed.emplace(use, s);
    for (Index k = 0; again && k < s.states(); ++k) last_again[k] = block<T>(tape.state_size(k));
    for (Index e = 0; again && e < E; ++e) {
      own.emplace_back(s, segments.length, rows.B, segments.length * rows.B, true);
      own.back().set_y({y_again.get() + e * between, rows.B * s.channels(), s.channels()});
    }
    Index size = 0;
    const auto fit = [&](Index segment) {
      prepare(segment);
      size = std::max({size, forward.workspaces(use.forward_workspace(forward.of(0))),
                       backward.workspaces(use.backward_workspace(backward.of(0)))});
    };
    if (segments.count > 1) fit(segments.shortest());
    fit(segments.longest());
    workspace = block<char>(size);
  }

  // The calls of segment i, of which the last is the first to run.
  void prepare(Index i) {
    const Index step = segments.first(i);
    States<const T> before;
    States<T> after;
    for (Index k = 0; k < s.states(); ++k) {
      before.part[k] = offset<const T>(tape.states[k].get(), i * tape.state_size(k));
      after.part[k] = last_again[k].get();
    }
    const std::vector<Record<T>>& records = again ? own : tape.records;
    for (Index e = 0; e < E; ++e) {
      const auto x = from_step(tape.x.of(e), step);
      const Record<T>& record = records[static_cast<std::size_t>(e)];
      fill_layers(s, weights, packed ? &*packed : nullptr, e, rows.B, x, record, before, after,
                  forward.layers(e));
      fill_layers<T>(s, weights, nullptr, e, rows.B, x, record, before, after, backward.layers(e));
      for (Index l = 0; l < s.L; ++l) fill_gradient(i, e, l);
      ForwardCall<T>& call = forward.of(e);
      BackwardCall<T>& back = backward.of(e);
      call.rows = back.rows = segments.of(rows, i);
      call.dropout = back.dropout = from_step(tape.dropouts[static_cast<std::size_t>(e)], step);
      call.dropped = back.dropped = tape.drops() ? dropped.get() + e * between : nullptr;
      back.gradients = layer_gradients.data() + e * s.L;
      back.clip = to.clip, back.flow_penalty = to.flow_penalty;
      back.accumulate = i + 1 < segments.count, back.defer_finalize = i > 0;
    }
    forward.arrange(use), backward.arrange(use);
  }

  // Where a member's layer reads and writes gradients in segment i.
  void fill_gradient(Index i, Index e, Index l) {
    const Index step = segments.first(i), C = s.channels();
    const bool first_to_run = i + 1 == segments.count;
    LayerGradient<T>& gradient = layer_gradients[static_cast<std::size_t>(e * s.L + l)];
    const auto in_turn = [&](Index n) {
      return Sequence<T>{turn[s.L > 2 ? n % 2 : 0].get() + e * between, rows.B * C, C};
    };
    gradient.dx = l == 0 ? from_step(to.dx.of(e), step) : in_turn(l);
    gradient.dy = l + 1 < s.L ? read_only(in_turn(l + 1)) : from_step(dy.sequence().of(e), step);
    const StateOffset offset_of{s, rows.B};
    for (Index d = 0; d < s.D; ++d) {
      const Index j = l * s.D + d;
      DirectionGradient<T>& direction = gradient.direction[d];
      direction = {};
      weights.fill(direction, to.gradients, l, d, e);
      for (Index k = 0; k < s.states(); ++k) {
        const Index at = offset_of(k, j, e);
        direction.first[k] = to.first.part[k] + at;
        direction.last[k] = first_to_run ? offset(last.states().part[k], at) : direction.first[k];
      }
      direction.trace = trace_of(e, j, step);
      direction.scale = again ? scale.get() + (j * E + e) * rows.B : nullptr;
    }
  }

  Trace trace_of(Index e, Index direction, Index step) const {
    const Index at = ((e * s.L * s.D + direction) * to.trace_steps + step) * rows.B;
    Trace trace = to.trace;
    for (double** values :
         {&trace.dh, &trace.dh_before, &trace.dc_before, &trace.scale, &trace.clipped})
      *values = offset(*values, at);
    return trace;
  }

  // After all segments: dx and the trace, which stand at the real steps' own places.
  void spread(ThrottledPoll& poll) const {
    if (!tape.mask.moves()) return;
    for (Index e = 0; e < E; ++e) {
      const Sequence<T> dx = to.dx.of(e);
      tape.mask.spread(s.I, dx, dx, T(0), poll);
      for (Index j = 0; j < s.L * s.D; ++j) {
        const Trace trace = trace_of(e, j, 0);
        for (double* values :
             {trace.dh, trace.dh_before, trace.dc_before, trace.scale, trace.clipped}) {
          const Sequence<double> all{values, rows.B, 1};
          if (values) tape.mask.spread(1, all, all, values == trace.scale ? 1.0 : 0.0, poll);
        }
      }
    }
  }
};

template <class T>
BackwardRun<T>::BackwardRun(const TapeRecord<T>& tape, const BackwardArguments<T>& arguments)
    : plan_(std::make_unique<Plan>(tape, arguments)) {}
template <class T>
BackwardRun<T>::~BackwardRun() = default;

template <class T>
void BackwardRun<T>::run(const Interrupt& interrupt) {
  Plan& plan = *plan_;
  ThrottledPoll poll(interrupt);
  if (plan.packed) plan.packed->pack(plan.to.parameters, poll);
  plan.dy.gather(poll);
  for (Index i = plan.segments.count - 1; i >= 0 && poll.go_on(); --i) {
    if (plan.segments.count > 1) plan.prepare(i);  // a single one is already
    if (plan.again) plan.forward.forward(plan.use, poll, plan.workspace.get());
    plan.backward.backward(plan.use, poll, plan.workspace.get(), plan.norms.data());
  }
  plan.spread(poll);
}

template <class T>
const std::vector<GradientNorm>& BackwardRun<T>::norms() const {
  return plan_->norms;
}

template struct Record<float>;
template struct Record<double>;
template struct TapeRecord<float>;
template struct TapeRecord<double>;
template class PackedWeights<float>;
template class PackedWeights<double>;
template class ForwardRun<float>;
template class ForwardRun<double>;
template class BackwardRun<float>;
template class BackwardRun<double>;

}  // namespace rnnkern

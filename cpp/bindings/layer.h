// A stack of layers as the bindings see it: its sizes, its parameters' names and shapes, and its
// two calls on arrays.
#pragma once

#include <array>
#include <memory>
#include <tuple>

#include "../core/stack/network.h"
#include "arrays.h"
#include "samples.h"

namespace rnnkern {

// A parameter's name as Python's dicts have it, and its shape, in an ensemble with its members.
struct NamedParameter {
  py::str name;
  std::vector<Index> shape;
};

// The parameter arrays of a call, validated and pinned.
template <class T>
class PinnedParameters {
 public:
  PinnedParameters(const std::vector<NamedParameter>& all, const py::dict& params);
  const ParameterArrays<const T>& data() const { return data_; }
  PinnedArray<const char> bytes(std::size_t i) const;

 private:
  std::vector<py::array_t<T>> owners_;
  ParameterArrays<const T> data_;
  std::vector<Index> sizes_;  // elements
};

// A layer's weights, packed once for any number of calls and streams; see PackedWeights.
struct Packed {
  std::uint64_t layer_id;
  std::shared_ptr<const PackedWeights<float>> f32;  // one of these two
  std::shared_ptr<const PackedWeights<double>> f64;
  template <class T>
  const std::shared_ptr<const PackedWeights<T>>& of() const;
};
template <>
inline const std::shared_ptr<const PackedWeights<float>>& Packed::of() const {
  return f32;
}
template <>
inline const std::shared_ptr<const PackedWeights<double>>& Packed::of() const {
  return f64;
}

// What a forward hands out besides the last states: outputs, of each row's own last step alone, and
// h of all layers too, or outputs and a tape.
enum class Wanted { outputs, last_outputs, hiddens, tape };

// The options of a forward besides its arrays.
struct ForwardOptions {
  bool batch_first = false;
  Wanted wanted = Wanted::outputs;
  bool samples_all = false;  // of the arrays that backward reads again: all elements, or few
  Index segment = 0;         // steps between the states that a tape keeps; 0: it keeps all
  std::vector<Dropout> dropouts;
};

// What Cell of layers/base.py holds besides its kind: infinity and an empty list are off.
struct CellOptions {
  bool peephole;
  double cell_clip, projection_clip, forward_clip;
  std::vector<std::tuple<std::string, double, double>> activations;  // name, alpha, beta
  std::array<double, kNoises> noise;  // probabilities, in the order of Noise
  Index heads;
  bool exp_forget;
  std::string precision;  // a name of kPrecisionNames
};

class LayerStack {
 public:
  LayerStack(const std::string& kind, Index I, Index H, Index P, Index L, bool bias,
             bool bidirectional, bool reverse, bool residual, bool is_double, Index members,
             const CellOptions& options);

  const Sizes& sizes() const { return sizes_; }
  bool is_double() const { return is_double_; }
  const std::vector<NamedParameter>& parameters() const { return parameters_; }
  py::list parameter_shapes() const;
  py::tuple state_names() const;

  // How a call is divided among at most `threads` threads, for tests: CallPlan's fields.
  py::tuple plan(Index steps, Index rows, Index threads) const;

  // table: None, or [any, I] the rows that x of calls is numbers of; see PackedWeights.
  Packed pack(const py::dict& params, const py::object& table) const;

  // weights: a dict of parameters, or `pack` of one.
  // wanted: see Wanted.
  // dropout: (p, seeds of the members, training step, the row of a larger batch that row 0 is,
  // whether cells draw their noise).
  // -> (y, last states, tape, list of h or None)
  py::tuple forward(const py::object& weights, const py::object& x, const py::object& state,
                    const py::object& lengths, const py::object& mask, const py::object& resets,
                    bool batch_first, int wanted, bool samples_all, Index segment,
                    const py::tuple& dropout) const;

  // clip: (step_value, step_norm, value, norm).
  // -> (gradients by name, dx, dstate, norm, scale, finite, trace or None)
  py::tuple backward(const py::dict& params, const py::object& tape, const py::object& dy,
                     const py::object& dstate, const std::array<double, 4>& clip, bool trace,
                     double flow_penalty) const;

 private:
  template <class T>
  std::shared_ptr<const PackedWeights<T>> packed(const py::dict& params,
                                                 const py::object& table) const;
  template <class T>
  py::tuple run_forward(const py::object& weights, const py::object& x, const py::object& state,
                        const py::object& lengths, const py::object& mask, const py::object& resets,
                        ForwardOptions options) const;
  template <class T>
  py::tuple run_backward(const py::dict& params, const py::object& tape, const py::object& dy,
                         const py::object& dstate, const Clip& clip, bool trace,
                         double flow_penalty) const;

  Sizes sizes_{};
  bool is_double_;
  std::vector<NamedParameter> parameters_;  // in the order of parameters_of
  std::uint64_t id_;                        // a tape knows its layer by it
};

// The name of state k of a cell in error messages: "state", or "state[1]" of several.
std::string state_name(const std::string& name, const Sizes& sizes, Index k);

void bind_layer(py::module_& m);
void bind_stream(py::module_& m);
void bind_optim(py::module_& m);
void bind_attention(py::module_& m);
void bind_crf(py::module_& m);
void bind_cross_entropy(py::module_& m);
void bind_dropout(py::module_& m);
void bind_embedding(py::module_& m);
void bind_layer_norm(py::module_& m);
void bind_linear(py::module_& m);
void bind_pointwise_loss(py::module_& m);
void bind_pooling(py::module_& m);
void bind_runtime(py::module_& m);
void bind_xla(py::module_& m);

}  // namespace rnnkern

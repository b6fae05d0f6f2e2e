// A stack of layers as the bindings see it: its sizes, its parameters' names and shapes, and the
// way from checked arrays to a call of the core.
#pragma once

#include "../core/dispatch.h"
#include "../core/schedule.h"
#include "arrays.h"

namespace rnnkern {

struct Sizes {
  Kind kind;
  Index I, H, L, D;
  bool bias, residual, is_double;
  Index members;  // of an ensemble; 0: a layer alone

  Index gates() const { return kKinds[static_cast<int>(kind)].gates; }
  bool has_c() const { return kKinds[static_cast<int>(kind)].states == 2; }
  Index inputs(Index layer) const { return layer == 0 ? I : D * H; }
  Index parameters_of_direction() const { return bias ? 4 : 2; }
};

struct Parameter {
  py::str name;
  std::vector<Index> shape;  // in an ensemble with its axis of members
};

// The parameter arrays of a call, kept alive, as pointers.
template <class T>
class Parameters {
 public:
  Parameters(const Sizes& sizes, const std::vector<Parameter>& all, const py::dict& params);
  // Sets the weights of a layer's direction, of one member; biases to null where there are none.
  void fill(Direction<T>& d, Index layer, Index direction, Index member) const {
    const auto of = [&](Index index) -> const T* {
      if (index >= per_direction_) return nullptr;
      const auto i = static_cast<std::size_t>((layer * D_ + direction) * per_direction_ + index);
      return data_[i] + member * sizes_[i];
    };
    d.w_ih = of(0), d.w_hh = of(1), d.b_ih = of(2), d.b_hh = of(3);
  }

 private:
  Index D_, per_direction_;
  std::vector<py::array_t<T>> arrays_;
  std::vector<const T*> data_;  // pinned: an array object's header is the caller's to change
  std::vector<Index> sizes_;    // of one member's
};

// A stack of layers of one kind: its sizes, and its two calls.
class Net {
 public:
  Net(const std::string& kind, Index I, Index H, Index L, bool bias, bool bidirectional,
      bool residual, bool is_double, Index members);

  const Sizes& sizes() const { return sizes_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  py::list parameter_shapes() const;

  // -> (y, h_last, c_last or None, tape or None). segment: the steps between the states that a tape
  // keeps; 0: it keeps all that backward wants.
  py::tuple forward(const py::dict& params, const py::object& x, const py::object& h0,
                    const py::object& c0, const py::object& lengths, const py::object& resets,
                    bool batch_first, bool keep, Index segment, double dropout,
                    const std::vector<std::uint64_t>& seeds, std::uint64_t step) const;

  // -> (gradients by name, dx, dh0, dc0 or None, norm, scale, finite, trace or None)
  py::tuple backward(const py::dict& params, const py::object& tape, const py::object& dy,
                     const py::object& dh, const py::object& dc, double step_value,
                     double step_norm, double value, double norm, bool trace,
                     double flow_penalty) const;

 private:
  template <class T>
  py::tuple run(const py::dict& params, const py::object& x_given, const py::object& h_given,
                const py::object& c_given, const py::object& lengths, const py::object& resets,
                bool batch_first, bool keep, Index segment,
                const std::vector<Dropout>& dropouts) const;
  template <class T>
  py::tuple run_back(const py::dict& params, const py::object& tape_given,
                     const py::object& dy_given, const py::object& dh_given,
                     const py::object& dc_given, const Clip& clip, bool trace,
                     double flow_penalty) const;

  Sizes sizes_;
  std::vector<Parameter> parameters_;  // in the order of Parameters
  std::uint64_t id_;                   // a tape knows its layer by it
};

void bind_layer(py::module_& m);
void bind_stream(py::module_& m);
void bind_optim(py::module_& m);
void bind_modules(py::module_& m);
void bind_runtime(py::module_& m);

}  // namespace rnnkern

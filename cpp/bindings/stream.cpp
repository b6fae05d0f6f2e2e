// One step, or a block of steps, at a time: weights packed once, the state inside. The state is
// held twice, and a call that is done makes the one that it wrote the current one: a call that
// fails or is interrupted leaves no trace.
#include <algorithm>
#include <atomic>

#include "../core/runtime.h"
#include "layer.h"
#include "unlocked.h"

namespace rnnkern {
namespace {

// What stands between Python and a typed stream.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual py::object run(const py::object& x, const py::object& out, bool one_step) = 0;
  virtual py::tuple state() const = 0;
  virtual void set_state(const py::object& h, const py::object& c) = 0;
  virtual void reset() = 0;
};

template <class T>
class StreamOf final : public Stream {
 public:
  StreamOf(const Sizes& sizes, const py::dict& params, Index B)
      : sizes_(sizes), B_(B), kernels_(rnnkern::kernels()), use_(kernels_.of<T>()) {
    const Parameters<T> weights(sizes, params);
    product_of({B, sizes.H, 8 * static_cast<Index>(sizeof(T))});
    const Index state = B * sizes.H;
    layers_.resize(static_cast<std::size_t>(sizes.L));
    for (Index l = 0; l < sizes.L; ++l) {
      packed_.push_back(block<char>(use_.packed_bytes(sizes.kind, sizes.inputs(l), sizes.H)));
      for (States& states : states_) {
        states.h.push_back(block<T>(state));
        states.c.push_back(block<T>(sizes.has_c() ? state : 0));
      }
      Direction<T>& d = layers_[static_cast<std::size_t>(l)].direction[0];
      d = {};
      weights.fill(d, l, 0);
      use_.pack(sizes.kind, d, sizes.inputs(l), sizes.H, packed_.back().get());
      d = {};
      d.packed = reinterpret_cast<const T*>(packed_.back().get());
      layers_[static_cast<std::size_t>(l)].inputs = sizes.inputs(l);
    }
    reset();
  }

  void reset() override {
    const Busy busy(in_use_);
    const Index n = B_ * sizes_.H;
    for (const auto& part : states_[now_].h) std::fill_n(part.get(), n, T(0));
    if (!sizes_.has_c()) return;
    for (const auto& part : states_[now_].c) std::fill_n(part.get(), n, T(0));
  }

  py::tuple state() const override {
    const Busy busy(in_use_);
    const auto copy = [&](const std::vector<Block<T>>& parts) -> py::object {
      py::array_t<T> out(std::vector<py::ssize_t>{sizes_.L, B_, sizes_.H});
      for (std::size_t l = 0; l < parts.size(); ++l)
        std::copy_n(parts[l].get(), B_ * sizes_.H,
                    out.mutable_data() + static_cast<Index>(l) * B_ * sizes_.H);
      return out;
    };
    const States& states = states_[now_];
    return py::make_tuple(copy(states.h), sizes_.has_c() ? copy(states.c) : py::none());
  }

  void set_state(const py::object& h, const py::object& c) override {
    const Shape shape{sizes_.L, B_, sizes_.H};
    const auto new_h = flat<T>(sizes_.has_c() ? "state[0]" : "state", h, shape);
    py::array_t<T, py::array::c_style> new_c;
    if (sizes_.has_c()) new_c = flat<T>("state[1]", c, shape);
    const Busy busy(in_use_);
    const States& states = states_[now_];
    for (std::size_t l = 0; l < states.h.size(); ++l) {
      const Index n = B_ * sizes_.H, from = static_cast<Index>(l) * n;
      std::copy_n(new_h.data() + from, n, states.h[l].get());
      if (sizes_.has_c()) std::copy_n(new_c.data() + from, n, states.c[l].get());
    }
  }

  py::object run(const py::object& x_given, const py::object& out, bool one_step) override {
    const Busy busy(in_use_);
    const Shape x_shape = one_step ? Shape{B_, sizes_.I} : Shape{"T", B_, sizes_.I};
    const py::array x = channels_last<T>("x", x_given, x_shape);
    const Index T_ = one_step ? 1 : x.shape(0);
    const Shape y_shape = one_step ? Shape{B_, sizes_.H} : Shape{T_, B_, sizes_.H};
    py::array y;
    T* to;
    if (out.is_none()) {
      py::array_t<T> fresh =
          one_step ? py::array_t<T>({B_, sizes_.H}) : py::array_t<T>({T_, B_, sizes_.H});
      to = fresh.mutable_data();
      y = std::move(fresh);
    } else {
      y = typed<T>("out", out);
      to = writable<T>("out", y, y_shape);
      refuse_overlap("out", y, "x", x);
    }
    if (T_ == 0 || B_ == 0) return std::move(y);

    const auto stride = [&](py::ssize_t axis) {
      return x.strides(axis) / static_cast<py::ssize_t>(sizeof(T));
    };
    Sequence<const T> input{static_cast<const T*>(x.data()), one_step ? 0 : stride(0),
                            stride(one_step ? 0 : 1)};
    for (Index l = 0; l < sizes_.L; ++l) {
      Layer<T>& layer = layers_[static_cast<std::size_t>(l)];
      T* at = to;
      if (l + 1 < sizes_.L) at = middle(l % 2, product_of({T_, B_, sizes_.H}));
      layer.x = input;
      layer.y = {at, B_ * sizes_.H, sizes_.H};
      const auto i = static_cast<std::size_t>(l);
      Direction<T>& d = layer.direction[0];
      d.h0 = states_[now_].h[i].get(), d.h_last = states_[1 - now_].h[i].get();
      if (sizes_.has_c()) d.c0 = states_[now_].c[i].get(), d.c_last = states_[1 - now_].c[i].get();
      input = {at, B_ * sizes_.H, sizes_.H};
    }
    ForwardCall<T> call{
        sizes_.kind,    sizes_.L, 1,       sizes_.H,  {T_, B_, nullptr, nullptr, nullptr},
        layers_.data(), {},       nullptr, threads(), {}};
    grow(room_, room_size_, use_.forward_room(call));
    // Giving up and taking back the GIL costs more than the smallest calls.
    constexpr double flops_worth_a_release = 2e5;
    const double flops = 2.0 * static_cast<double>(T_ * B_ * sizes_.L * sizes_.gates() * sizes_.H) *
                         static_cast<double>(sizes_.I + sizes_.H);
    if (flops > flops_worth_a_release) {
      unlocked([&](const Interrupt& interrupt) {
        call.interrupt = interrupt;
        use_.forward(call, room_.get());
      });
    } else {
      use_.forward(call, room_.get());
    }
    now_ = 1 - now_;
    return std::move(y);
  }

 private:
  // A stream's state has one user at a time: another thread is told so, not raced.
  class Busy {
   public:
    explicit Busy(std::atomic<bool>& flag) : flag_(flag) {
      if (flag_.exchange(true, std::memory_order_acquire))
        throw std::runtime_error("stream: in use by another thread");
    }
    ~Busy() { flag_.store(false, std::memory_order_release); }
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;

   private:
    std::atomic<bool>& flag_;
  };

  template <class E>
  static void grow(Block<E>& room, Index& size, Index wanted) {
    if (wanted <= size && room) return;
    room = block<E>(wanted);
    size = wanted;
  }
  T* middle(Index which, Index wanted) {
    grow(middle_[which], middle_size_[which], wanted);
    return middle_[which].get();
  }

  Sizes sizes_;
  Index B_;
  const Kernels& kernels_;  // those that packed the weights, whatever is in use later
  const TypedKernels<T>& use_;
  std::vector<Layer<T>> layers_;
  std::vector<Block<char>> packed_;
  struct States {
    std::vector<Block<T>> h, c;  // [L][B, H]; c of no elements without a cell state
  };
  States states_[2];
  int now_ = 0;  // the one that is current
  Block<char> room_;
  Index room_size_ = 0;
  Block<T> middle_[2];
  Index middle_size_[2] = {0, 0};
  mutable std::atomic<bool> in_use_{false};
};

}  // namespace

void bind_stream(py::module_& m) {
  py::class_<Stream>(m, "Stream")
      .def(py::init([](const Net& net, const py::dict& params, Index batch_size) {
             if (batch_size < 1) bad_value("batch_size", "at least 1", std::to_string(batch_size));
             const Sizes& sizes = net.sizes();
             if (sizes.D != 1)
               bad_value("stream", "a layer of one direction", "a bidirectional one");
             if (sizes.is_double)
               return std::unique_ptr<Stream>(new StreamOf<double>(sizes, params, batch_size));
             return std::unique_ptr<Stream>(new StreamOf<float>(sizes, params, batch_size));
           }),
           py::arg("net"), py::arg("params"), py::arg("batch_size"))
      .def(
          "step",
          [](Stream& s, const py::object& x, const py::object& out) { return s.run(x, out, true); },
          py::arg("x"), py::arg("out") = py::none())
      .def(
          "run",
          [](Stream& s, const py::object& x, const py::object& out) {
            return s.run(x, out, false);
          },
          py::arg("x"), py::arg("out") = py::none())
      .def("state", &Stream::state)
      .def("set_state", &Stream::set_state, py::arg("h"), py::arg("c"))
      .def("reset", &Stream::reset);
}

}  // namespace rnnkern

// One step, or a block of steps, at a time: weights packed once, the state inside. The state is
// held twice, and a call that is done makes the one that it wrote the current one: a call that
// fails or is interrupted leaves no trace.
#include <algorithm>
#include <atomic>

#include "../core/stack/mask.h"
#include "../core/threads/runtime.h"
#include "layer.h"
#include "modules/shared.h"
#include "unlocked.h"

namespace rnnkern {
namespace {

// The interface between Python and a typed stream.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual py::object run(py::handle x, py::handle out, py::handle mask, bool one_step) = 0;
  virtual py::tuple state() const = 0;
  virtual void set_state(const py::tuple& state) = 0;
  virtual py::tuple row_state(const py::object& rows) const = 0;
  virtual void set_row_state(const py::object& rows, const py::tuple& state) = 0;
  virtual void reset(const py::object& rows) = 0;
};

template <class T>
class StreamOf final : public Stream {
 public:
  StreamOf(std::shared_ptr<const PackedWeights<T>> packed, Index B)
      : packed_(std::move(packed)),
        sizes_(packed_->sizes()),
        use_(packed_->kernels()),
        B_(B),
        flops_of_step_(flops_of_step(sizes_) * static_cast<double>(B)) {
    const Sizes& sizes = sizes_;
    product_of({B, sizes.H, 8 * static_cast<Index>(sizeof(T))});
    call_.kind = sizes.kind, call_.constants = sizes.constants, call_.residual = sizes.residual;
    call_.L = sizes.L, call_.D = 1, call_.H = sizes.H, call_.P = sizes.P;
    call_.rows = {0, B, nullptr, nullptr, nullptr};
    for (Index l = 0; l < sizes.L; ++l) {
      for (States& states : states_)
        for (Index k = 0; k < sizes.states(); ++k)
          states.of[k].push_back(block<T>(B * sizes.width(k)));
      for (int now = 0; now < 2; ++now) {
        Layer<T> layer{};
        layer.inputs = sizes.inputs(l);
        Direction<T>& d = layer.direction[0];
        d.packed = packed_->of(0, l, 0);
        for (Index k = 0; k < sizes.states(); ++k) {
          d.first[k] = states_[now].of[k].back().get();
          d.last[k] = states_[1 - now].of[k].back().get();
        }
        layers_[now].push_back(layer);
      }
    }
    set_fresh(0, B);
    // Room for small blocks is there from the start: who must not wait for memory need not warm up.
    constexpr Index rows_at_once = 128;
    call_.layers = layers_[now_].data();
    prepare(std::max<Index>(1, rows_at_once / B), threads());
    if (packed_->folded()) grow(numbers_, numbers_size_, std::max(rows_at_once, B));
  }

  void reset(const py::object& rows) override {
    if (rows.is_none()) {
      const Busy busy(in_use_);
      set_fresh(0, B_);
      return;
    }
    const std::vector<Index> listed = rows_of(rows);
    const Busy busy(in_use_);
    for (const Index row : listed) set_fresh(row, 1);
  }

  py::tuple state() const override {
    const Busy busy(in_use_);
    py::tuple all(static_cast<std::size_t>(sizes_.states()));
    for (Index k = 0; k < sizes_.states(); ++k) {
      const Index n = B_ * sizes_.width(k);
      py::array_t<T> out(std::vector<py::ssize_t>{sizes_.L, B_, sizes_.width(k)});
      const auto& parts = states_[now_].of[k];
      for (std::size_t l = 0; l < parts.size(); ++l)
        std::copy_n(parts[l].get(), n, out.mutable_data() + static_cast<Index>(l) * n);
      all[static_cast<std::size_t>(k)] = std::move(out);
    }
    return all;
  }

  void set_state(const py::tuple& given) override {
    py::array_t<T, py::array::c_style> arrays[kMostStates];
    for (Index k = 0; k < sizes_.states(); ++k)
      arrays[k] =
          as_contiguous<T>(state_name("state", sizes_, k), given[static_cast<std::size_t>(k)],
                           {sizes_.L, B_, sizes_.width(k)});
    const Busy busy(in_use_);
    for (Index k = 0; k < sizes_.states(); ++k) {
      const Index n = B_ * sizes_.width(k);
      const auto& parts = states_[now_].of[k];
      for (std::size_t l = 0; l < parts.size(); ++l)
        std::copy_n(arrays[k].data() + static_cast<Index>(l) * n, n, parts[l].get());
    }
  }

  py::tuple row_state(const py::object& rows) const override {
    const std::vector<Index> listed = rows_of(rows);
    const Busy busy(in_use_);
    py::tuple all(static_cast<std::size_t>(sizes_.states()));
    for (Index k = 0; k < sizes_.states(); ++k) {
      const Index width = sizes_.width(k);
      py::array_t<T> out(
          std::vector<py::ssize_t>{sizes_.L, static_cast<Index>(listed.size()), width});
      T* to = out.mutable_data();
      for (const Block<T>& part : states_[now_].of[k])
        for (const Index row : listed) to = std::copy_n(part.get() + row * width, width, to);
      all[static_cast<std::size_t>(k)] = std::move(out);
    }
    return all;
  }

  void set_row_state(const py::object& rows, const py::tuple& given) override {
    const std::vector<Index> listed = rows_of(rows);
    std::vector<Index> sorted = listed;
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end())
      bad_value("rows", "each row once", std::to_string(*twice) + " twice");
    py::array_t<T, py::array::c_style> arrays[kMostStates];
    for (Index k = 0; k < sizes_.states(); ++k)
      arrays[k] =
          as_contiguous<T>(state_name("state", sizes_, k), given[static_cast<std::size_t>(k)],
                           {sizes_.L, static_cast<Index>(listed.size()), sizes_.width(k)});
    const Busy busy(in_use_);
    for (Index k = 0; k < sizes_.states(); ++k) {
      const T* from = arrays[k].data();
      const Index width = sizes_.width(k);
      for (const Block<T>& part : states_[now_].of[k])
        for (const Index row : listed)
          std::copy_n(from, width, part.get() + row * width), from += width;
    }
  }

  py::object run(py::handle x_given, py::handle out, py::handle mask, bool one_step) override {
    // All that may run the caller's Python comes before.
    const py::array given = packed_->folded() ? ids(x_given, one_step) : input(x_given, one_step);
    const Index steps = one_step ? 1 : given.shape(0);
    const auto stride = [&](py::ssize_t axis) {
      return given.strides(axis) / static_cast<py::ssize_t>(sizeof(T));
    };
    Sequence<const T> x{static_cast<const T*>(given.data()), one_step ? 0 : stride(0),
                        packed_->folded() ? 1 : stride(one_step ? 0 : 1)};
    py::array y = output(out, one_step, steps);
    T* const to = static_cast<T*>(y.mutable_data());
    if (!out.is_none()) refuse_overlap("out", y, "x", given);
    py::object real;
    if (!mask.is_none()) real = mask_array(mask, one_step, steps);
    const Busy busy(in_use_);
    const bool masked =
        real && !all_steps_are_real(py::reinterpret_borrow<py::array>(real), steps * B_);
    if (packed_->folded()) x = numbers_of(given, steps);
    if (steps == 0) return std::move(y);

    // Giving up and taking back the GIL costs more than the smallest calls, and so does a thread.
    constexpr double flops_worth_a_release = 2e5;
    const bool small = flops_of_step_ * static_cast<double>(steps) <= flops_worth_a_release;
    const Sequence<T> outputs{to, B_ * sizes_.P, sizes_.P};
    const auto compute = [&](const Interrupt& interrupt) {
      call_.interrupt = interrupt;
      if (masked)
        forward_masked(steps, small ? 1 : threads(), x, outputs);
      else
        forward(x, outputs);
    };
    call_.layers = layers_[now_].data();
    call_.from_end = now_ == 1;
    call_.rows.order = call_.rows.count = call_.rows.offset = nullptr;
    if (!masked) prepare(steps, small ? 1 : threads());
    if (small)
      compute({});
    else
      unlocked(compute);
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

  void forward(const Sequence<const T>& x, const Sequence<T>& y) {
    layers_[now_].front().x = x;
    Layer<T>& last = layers_[now_].back();
    last.y = last.out = y;
    use_.run_forward(room_.get());
  }

  // Over the real steps alone: see StepMask. At a single step, rows at rest are not computed.
  void forward_masked(Index steps, int threads, const Sequence<const T>& x, const Sequence<T>& y) {
    ThrottledPoll poll(call_.interrupt);
    mask_.assign(steps, B_, flags_.data(), nullptr, poll);
    if (!poll.go_on()) return;
    rows_.assign(mask_.steps(), mask_.lengths(), poll);
    if (!poll.go_on()) return;
    prepare(mask_.steps(), threads);
    call_.rows = rows_.view();
    if (!mask_.moves()) return forward(x, y);
    const Index I = sizes_.I;
    grow(real_x_, real_x_size_, mask_.steps() * B_ * I);
    const Sequence<T> real{real_x_.get(), B_ * I, I};
    mask_.gather(I, x, real, poll);
    if (!poll.go_on()) return;
    forward({real.data, real.time_stride, real.row_stride}, y);
    mask_.spread(sizes_.P, y, y, T(0), poll);
  }

  // A mask, checked and C-contiguous.
  py::array mask_array(py::handle mask, bool one_step, Index steps) const {
    const bool is_ndarray = Py_TYPE(mask.ptr()) == reinterpret_cast<PyTypeObject*>(
                                                       py::detail::npy_api::get().PyArray_Type_);
    if (is_ndarray && one_step && is_plain_ndarray(mask, bool_dtype_, {B_}))
      return py::reinterpret_borrow<py::array>(mask);
    if (!is_ndarray && py::isinstance<py::array>(mask) &&
        py::isinstance(mask, py::module_::import("numpy.ma").attr("MaskedArray")))
      bad_type("mask", "an array without a mask", "MaskedArray");
    const py::array given = py::array::ensure(mask);
    if (!given || given.dtype().kind() != 'b')
      bad_type("mask", "an array of booleans",
               given ? py::str(given.dtype()) : py::str(py::type::of(mask).attr("__name__")));
    check_shape("mask", given, one_step ? Shape{Axis(B_)} : Shape{steps, B_});
    return py::array(given.attr("copy")("C"));
  }

  // Copies a mask to `flags_`. Whether it marks all steps.
  bool all_steps_are_real(const py::array& given, Index count) {
    const auto* const bytes = static_cast<const unsigned char*>(given.data());
    flags_.resize(static_cast<std::size_t>(count));
    bool all = true;
    for (std::size_t i = 0; i < flags_.size(); ++i) {
      flags_[i] = bytes[i] != 0;
      all = all && flags_[i];
    }
    return all;
  }

  // Row numbers, from a mask of rows or from numbers; a copy.
  std::vector<Index> rows_of(const py::object& rows) const {
    const py::array given = py::array::ensure(rows);
    const char kind = given ? given.dtype().kind() : '?';
    const bool mask = kind == 'b';
    const bool nothing = kind == 'f' && given.size() == 0 && !py::isinstance<py::array>(rows);
    if (!nothing && !mask && kind != 'i' && kind != 'u')
      bad_type("rows", "an array of booleans or integers",
               given ? py::str(given.dtype()) : py::str(py::type::of(rows).attr("__name__")));
    if (given.ndim() != 1 || (mask && given.shape(0) != B_))
      bad_value("rows", "shape " + text({mask ? Axis(B_) : Axis("n")}), shape_of(given));
    std::vector<Index> listed;
    if (mask) {
      const py::array_t<bool, py::array::c_style> masked(given);
      for (Index b = 0; b < B_; ++b)
        if (masked.data()[b]) listed.push_back(b);
      return listed;
    }
    const py::array_t<std::int64_t, py::array::c_style | py::array::forcecast> wide(given);
    listed.assign(wide.data(), wide.data() + wide.size());
    for (const Index row : listed)
      if (row < 0 || row >= B_)
        bad_value(
            "rows", "values from 0 to " + std::to_string(B_ - 1),
            kind == 'u' ? std::to_string(static_cast<std::uint64_t>(row)) : std::to_string(row));
    return listed;
  }

  static double flops_of_step(const Sizes& s) {
    const auto times = [](Index a, Index b) {
      return static_cast<double>(a) * static_cast<double>(b);
    };
    const Index rows = s.info().gates * s.H;
    double sum = s.has(projection_matrix) ? times(s.L * s.P, s.H) : 0;
    for (Index l = 0; l < s.L; ++l)
      sum += times(rows, s.inputs(l)) +
             (s.has(recurrent_matrix) ? times(rows, s.P / s.constants.heads) : 0);
    return 2 * sum;
  }

  // So many rows of the current state.
  void set_fresh(Index first, Index rows) {
    for (Index k = 0; k < sizes_.states(); ++k)
      for (const auto& part : states_[now_].of[k])
        std::fill_n(part.get() + first * sizes_.width(k), rows * sizes_.width(k),
                    sizes_.fresh<T>(k));
  }

  // What the package's other calls do with arguments that are no plain arrays.
  static py::object check(const char* name) {
    return py::module_::import("rnnkern.checks").attr(name);
  }

  py::array input(py::handle x, bool one_step) const {
    constexpr Index any = -1;
    const Index I = sizes_.I;
    if (one_step ? is_plain_ndarray(x, dtype_, {B_, I}) : is_plain_ndarray(x, dtype_, {any, B_, I}))
      return py::reinterpret_borrow<py::array>(x);
    return channels_last<T>("x", check("as_array")("x", x, dtype_),
                            one_step ? Shape{B_, I} : Shape{"T", B_, I});
  }

  // Numbers of rows of the table, C-contiguous.
  py::array ids(py::handle x, bool one_step) const {
    constexpr Index any = -1;
    if (one_step ? is_plain_ndarray(x, id_dtype_, {B_}) : is_plain_ndarray(x, id_dtype_, {any, B_}))
      return py::reinterpret_borrow<py::array>(x);
    const Ids own = copied<std::int64_t>(
        array_of("x", check("unmasked")("x", x).cast<py::object>(), "iu", "an array of integers"));
    check_shape("x", own, one_step ? Shape{Axis(B_)} : Shape{Axis("T"), Axis(B_)});
    return own;
  }
  // Those ids as the core reads them.
  Sequence<const T> numbers_of(const py::array& given, Index steps) {
    grow(numbers_, numbers_size_, steps * B_);
    const auto* const id = static_cast<const std::int64_t*>(given.data());
    for (Index i = 0; i < steps * B_; ++i) {
      const std::int64_t own = id[i];
      if (own < 0 || own >= packed_->folded())
        bad_element("x", given, i, "an integer from 0 to " + std::to_string(packed_->folded() - 1));
      numbers_[static_cast<std::size_t>(i)] = static_cast<T>(own);
    }
    return {numbers_.get(), B_, 1};
  }

  // Where the last layer's outputs go: the caller's array, or a new one.
  py::array output(py::handle out, bool one_step, Index steps) const {
    const Index P = sizes_.P;
    if (out.is_none())
      return one_step ? new_ndarray(dtype_, {B_, P}) : new_ndarray(dtype_, {steps, B_, P});
    constexpr int writeable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    if (one_step ? is_plain_ndarray(out, dtype_, {B_, P}, writeable)
                 : is_plain_ndarray(out, dtype_, {steps, B_, P}, writeable))
      return py::reinterpret_borrow<py::array>(out);
    py::array y = typed<T>("out", check("unmasked")("out", out));
    writable<T>("out", y, one_step ? Shape{B_, P} : Shape{steps, B_, P});
    return y;
  }

  // Room, and what stands between the layers, for calls of so many steps on so many threads.
  void prepare(Index steps, int threads) {
    if (steps == prepared_steps_ && threads == call_.threads) return;
    prepared_steps_ = -1;  // until all is there
    const Index P = sizes_.P, between = sizes_.L > 1 ? product_of({steps, B_, P}) : 0;
    for (std::size_t l = 1; l < layers_[0].size(); ++l) {
      const std::size_t turn = l % 2;
      if (l <= 2) grow(middle_[turn], middle_size_[turn], between);
      T* const at = middle_[turn].get();
      for (std::vector<Layer<T>>& layers : layers_) {
        layers[l - 1].y = layers[l - 1].out = {at, B_ * P, P};
        layers[l].x = {at, B_ * P, P};
      }
    }
    call_.rows.T = steps;
    call_.threads = threads;
    grow(room_, room_size_, use_.forward_workspace(call_));
    use_.prepare_forward(call_, room_.get());
    prepared_steps_ = steps;
  }

  template <class E>
  static void grow(Block<E>& workspace, Index& size, Index wanted) {
    if (wanted <= size && workspace) return;
    workspace = block<E>(wanted);
    size = wanted;
  }

  std::shared_ptr<const PackedWeights<T>> packed_;
  const Sizes& sizes_;
  const TypedKernels<T>& use_;  // those that packed the weights, whatever is in use later
  Index B_;
  const py::dtype dtype_ = py::dtype::of<T>(), bool_dtype_ = py::dtype::of<bool>(),
                  id_dtype_ = py::dtype::of<std::int64_t>();
  struct States {
    std::vector<Block<T>> of[kMostStates];  // [L][B, width] each
  };
  States states_[2];
  int now_ = 0;                      // the one that is current
  std::vector<Layer<T>> layers_[2];  // [L] from the state of that number to the other
  ForwardCall<T> call_{};            // as the last call was
  Index prepared_steps_ = -1;
  double flops_of_step_;
  Block<char> room_;
  Index room_size_ = 0;
  Block<T> middle_[2];
  Index middle_size_[2] = {0, 0};
  std::vector<unsigned char> flags_;  // [T, B] of the mask at hand
  StepMask mask_;
  RowSchedule rows_;
  Block<T> real_x_;  // [T, B, I] where the mask moves steps
  Index real_x_size_ = 0;
  Block<T> numbers_;  // [T, B] of folded rows
  Index numbers_size_ = 0;
  mutable std::atomic<bool> in_use_{false};
};

template <class T>
std::unique_ptr<Stream> stream_of(const std::shared_ptr<const PackedWeights<T>>& weights, Index B) {
  if (weights->sizes().D != 1)
    bad_value("stream", "a layer of one direction", "a bidirectional one");
  if (weights->sizes().reverse)
    bad_value("stream", "a layer that goes forward in time", "one with reverse=True");
  if (weights->sizes().members) bad_value("stream", "a layer alone", "an ensemble");
  return std::make_unique<StreamOf<T>>(weights, B);
}

// step and run as CPython itself calls methods: pybind11's way there costs as much as a small step.
// Arguments that come in an unusual way go to Python's own parser, which also words the errors.
template <bool one_step>
PyObject* advance(PyObject* self, PyObject* const* given, Py_ssize_t positional, PyObject* names) {
  try {
    static PyObject* const out_name = PyUnicode_InternFromString("out");
    static PyObject* const mask_name = PyUnicode_InternFromString("mask");
    const Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    PyObject *x = nullptr, *out = Py_None, *mask = Py_None;
    bool usual = positional == 1 || positional == 2;
    if (usual) {
      x = given[0];
      if (positional == 2) out = given[1];
    }
    for (Py_ssize_t i = 0; i < named && usual; ++i) {
      PyObject* const name = PyTuple_GET_ITEM(names, i);
      usual = name == mask_name || (name == out_name && positional == 1);
      (name == mask_name ? mask : out) = given[positional + i];
    }
    if (!usual) {
      py::tuple args(positional);
      for (Py_ssize_t i = 0; i < positional; ++i) args[i] = py::handle(given[i]);
      py::dict by_name;
      for (Py_ssize_t i = 0; i < named; ++i)
        by_name[PyTuple_GET_ITEM(names, i)] = py::handle(given[positional + i]);
      const char* known[] = {"x", "out", "mask", nullptr};
      out = mask = Py_None;
      if (!PyArg_ParseTupleAndKeywords(args.ptr(), by_name.ptr(),
                                       one_step ? "O|O$O:step" : "O|O$O:run",
                                       const_cast<char**>(known), &x, &out, &mask))
        return nullptr;
    }
    return constructed<Stream>("self", self).run(x, out, mask, one_step).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (abi::__forced_unwind&) {
    throw;
  } catch (...) {
    py::detail::try_translate_exceptions();
  }
  return nullptr;
}

constexpr char step_doc[] = R"(step($self, /, x, out=None, *, mask=None)
--

Take one step.

Parameters
----------
x : ndarray, shape (B, I)
    The step's input, of the layer's dtype. CPU tensors (DLPack) and buffers of that dtype are
    read where they are. Masked arrays are refused. Of a layer that was frozen with an embedding
    integers (B,), the numbers of its rows.
out : ndarray, shape (B, P), optional
    Where to put the output: C-contiguous, writable, not overlapping `x`. With it, the step
    allocates nothing.
mask : ndarray of bool, shape (B,), optional
    True for the rows that have a step. The others rest: their state stays as it is, their x is not
    read, their output is zero, and nothing is computed for them.

Returns
-------
ndarray, shape (B, P)
    The last layer's output; `out` if it was given.

Raises
------
TypeError, ValueError
    If an argument has another dtype, shape or layout; the state is then as before.

Examples
--------
>>> import numpy as np, rnnkern as rk
>>> stream = rk.RNN(2, 4, seed=0).stream(batch_size=3)
>>> stream.step(np.ones((3, 2), np.float32)).shape
(3, 4)
>>> y = stream.step(np.ones((3, 2), np.float32), mask=np.array([True, False, True]))
>>> y.any(axis=1)
array([ True, False,  True])
)";

constexpr char run_doc[] = R"(run($self, /, x, out=None, *, mask=None)
--

Take a block of steps.

Time is always the first axis, also if the layer has batch_first=True.

Parameters
----------
x : ndarray, shape (T, B, I)
    The inputs, as in `step`, integers (T, B) with an embedding; T may be 0.
out : ndarray, shape (T, B, P), optional
    As in `step`.
mask : ndarray of bool, shape (T, B), optional
    The steps that each row has, as in calling a layer; rows rest at the others.

Returns
-------
ndarray, shape (T, B, P)

Raises
------
TypeError, ValueError
    As in `step`.

Examples
--------
>>> import numpy as np, rnnkern as rk
>>> stream = rk.RNN(2, 4, seed=0).stream()
>>> stream.run(np.zeros((10, 1, 2), np.float32)).shape
(10, 1, 4)
)";

template <bool one_step>
PyMethodDef method(const char* name, const char* doc) {
  const auto function =
      reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&advance<one_step>));
  return {name, function, METH_FASTCALL | METH_KEYWORDS, doc};
}

}  // namespace

void bind_stream(py::module_& m) {
  auto stream = py::class_<Stream>(m, "Stream")
                    .def(py::init([](py::handle weights, Index batch_size) {
                           const auto& packed = constructed<Packed>("weights", weights);
                           if (batch_size < 1)
                             bad_value("batch_size", "at least 1", std::to_string(batch_size));
                           return packed.f32 ? stream_of(packed.f32, batch_size)
                                             : stream_of(packed.f64, batch_size);
                         }),
                         py::arg("weights"), py::arg("batch_size"));
  refuse_pickling(stream);
  auto* const stream_type = reinterpret_cast<PyTypeObject*>(stream.ptr());
  static PyMethodDef methods[] = {method<true>("step", step_doc), method<false>("run", run_doc)};
  for (PyMethodDef& one : methods)
    stream.attr(one.ml_name) =
        py::reinterpret_steal<py::object>(PyDescr_NewMethod(stream_type, &one));
  m.def("stream_state", method_of(&Stream::state), py::arg("stream"));
  m.def("set_stream_state", method_of(&Stream::set_state), py::arg("stream"), py::arg("state"));
  m.def("stream_row_state", method_of(&Stream::row_state), py::arg("stream"), py::arg("rows"));
  m.def("set_stream_row_state", method_of(&Stream::set_row_state), py::arg("stream"),
        py::arg("rows"), py::arg("state"));
  m.def("reset_stream", method_of(&Stream::reset), py::arg("stream"), py::arg("rows"));
}

}  // namespace rnnkern

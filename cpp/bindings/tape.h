// What forward hands to backward, and how the caller's axes lie.
#pragma once

#include <algorithm>

#include "layer.h"

namespace rnnkern {

// H rounded up to whole cache lines, as the core pads its rows.
template <class T>
inline Index padded_units(Index H) {
  const Index line = kLineBytes / static_cast<Index>(sizeof(T));
  return (H + line - 1) / line * line;
}

// What forward hands to backward.
class Tape {
 public:
  virtual ~Tape() = default;
  virtual py::list gates() const = 0;
  virtual py::list cells() const = 0;
  virtual py::list hiddens() const = 0;
};

// How the caller's axes lie: (T, B, C), (B, T, C) with batch_first, or (T, C) for one row.
struct Axes {
  bool batched, batch_first;
  Index T, B;

  Shape sequence(Index C) const {
    if (!batched) return {T, C};
    return batch_first ? Shape{B, T, C} : Shape{T, B, C};
  }
  Shape state(Index layers, Index H) const {
    return batched ? Shape{layers, B, H} : Shape{layers, H};
  }
  template <class T_>
  py::array_t<T_> make(const Shape& shape) const {
    std::vector<py::ssize_t> sizes;
    for (const Axis& axis : shape) sizes.push_back(axis.size);
    return py::array_t<T_>(sizes);
  }
  // Element strides of steps and rows.
  template <class T_>
  Sequence<T_> view(T_* data, const py::array& a) const {
    const auto stride = [&](py::ssize_t axis) {
      return a.strides(axis) / static_cast<py::ssize_t>(sizeof(T_));
    };
    if (!batched) return {data, stride(0), 0};
    return batch_first ? Sequence<T_>{data, stride(1), stride(0)}
                       : Sequence<T_>{data, stride(0), stride(1)};
  }
};

template <class T>
struct TapeOf final : Tape {
  std::uint64_t layer_id = 0;
  Sizes sizes{};
  Axes axes{};
  RowSchedule rows;
  Dropout dropout{};
  py::array x, y;
  std::vector<Block<T>> middle;       // [L - 1] outputs of the layers below the last, [T, B, D*H]
  std::vector<Block<T>> saved, cell;  // [L * D] as Direction says
  Block<T> h0, c0;                    // [L * D, B, H] copies of the caller's initial state

  Sequence<T> output(Index layer) const {
    if (layer + 1 == sizes.L) return axes.view(static_cast<T*>(const_cast<void*>(y.data())), y);
    const Index C = sizes.D * sizes.H;
    return {middle[static_cast<std::size_t>(layer)].get(), axes.B * C, C};
  }

  // Rows of a buffer in the schedule's order, as a (T, B, C...) array in the caller's.
  py::array unsorted(const T* from, Index vectors) const {
    const Index H = sizes.H, Hp = padded_units<T>(H);
    std::vector<py::ssize_t> shape{axes.T, axes.B, H};
    if (vectors > 1) shape.insert(shape.begin() + 2, vectors);
    py::array_t<T> out(shape);
    T* const to = out.mutable_data();
    std::fill(to, to + out.size(), T(0));
    const Schedule s = rows.view();
    for (Index t = 0, k = 0; t < s.T; ++t)
      for (Index r = 0; r < (s.count ? s.count[t] : s.B); ++r, ++k)
        for (Index v = 0; v < vectors; ++v)
          std::copy_n(from + (k * vectors + v) * Hp, H,
                      to + ((t * s.B + (s.order ? s.order[r] : r)) * vectors + v) * H);
    return out;
  }
  py::list each(const std::vector<Block<T>>& blocks, Index vectors) const {
    py::list out;
    for (const Block<T>& one : blocks) out.append(unsorted(one.get(), vectors));
    return out;
  }
  py::list gates() const override {
    return each(saved, kKinds[static_cast<int>(sizes.kind)].saved);
  }
  py::list cells() const override { return each(cell, 1); }
  py::list hiddens() const override {
    py::list out;
    const Index C = sizes.D * sizes.H;
    for (Index l = 0; l < sizes.L; ++l) {
      const Sequence<T> from = output(l);
      py::array_t<T> array(std::vector<py::ssize_t>{axes.T, axes.B, C});
      T* to = array.mutable_data();
      for (Index t = 0; t < axes.T; ++t)
        for (Index b = 0; b < axes.B; ++b, to += C)
          std::copy_n(from.data + t * from.step + b * from.row, C, to);
      out.append(array);
    }
    return out;
  }
};

}  // namespace rnnkern

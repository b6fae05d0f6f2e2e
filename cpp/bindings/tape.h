// What forward hands to backward, and how the caller's axes lie.
#pragma once

#include <algorithm>
#include <optional>

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

// How the caller's axes lie: (T, B, C), (B, T, C) with batch_first, (T, C) for one row, or
// (T, E, B, C) for the E members of an ensemble.
struct Axes {
  bool batched, batch_first;
  Index T, B;
  Index members;  // 0: no such axis

  Shape sequence(Index C) const {
    if (members) return {T, members, B, C};
    if (!batched) return {T, C};
    return batch_first ? Shape{B, T, C} : Shape{T, B, C};
  }
  Shape state(Index layers, Index H) const {
    if (members) return {layers, members, B, H};
    return batched ? Shape{layers, B, H} : Shape{layers, H};
  }
  template <class T_>
  py::array_t<T_> make(const Shape& shape) const {
    std::vector<py::ssize_t> sizes;
    for (const Axis& axis : shape) sizes.push_back(axis.size);
    return result<T_>(sizes);
  }
  // A member's steps and rows; an array without an axis of members is every member's.
  template <class T_>
  Sequence<T_> view(T_* data, const py::array& a, Index member) const {
    const auto stride = [&](py::ssize_t axis) {
      return a.strides(axis) / static_cast<py::ssize_t>(sizeof(T_));
    };
    if (a.ndim() == 4) return {data + member * stride(1), stride(0), stride(2)};
    if (!batched) return {data, stride(0), 0};
    return batch_first ? Sequence<T_>{data, stride(1), stride(0)}
                       : Sequence<T_>{data, stride(0), stride(1)};
  }
};

// Where the layers of a call write, over some steps.
template <class T>
struct Record {
  std::vector<Sequence<T>> h, out;    // [L] (T, B, D*H) each: Layer's y and out
  std::vector<Block<T>> saved, cell;  // [L * D] as Direction says; empty where nothing is kept

  // alive: rows alive at all of the steps. keep: for backward; otherwise two buffers in turns stand
  // between the layers.
  Record(const Sizes& s, Index steps, Index B, Index alive, bool keep)
      : own_last_h_(keep && s.residual) {
    const Index C = s.D * s.H, Hp = padded_units<T>(s.H);
    const auto sequence = [&] {
      blocks_.push_back(block<T>(steps * B * C));
      return Sequence<T>{blocks_.back().get(), B * C, C};
    };
    for (Index l = 0; l < s.L; ++l) {
      const bool last = l + 1 == s.L, sums = s.residual && l > 0;
      if (!keep && l >= 2) {
        h.push_back(h[static_cast<std::size_t>(l) - 2]);
      } else {
        h.push_back(last && !own_last_h_ ? Sequence<T>{} : sequence());
      }
      out.push_back(keep && sums && !last ? sequence() : h.back());
    }
    if (!keep) return;
    const KindInfo& info = kKinds[static_cast<int>(s.kind)];
    for (Index i = 0; i < s.L * s.D; ++i) {
      if (info.saved) saved.push_back(block<T>(alive * info.saved * Hp));
      if (s.has_c()) cell.push_back(block<T>(alive * Hp));
    }
  }
  // Where the last layer's output goes.
  void set_y(const Sequence<T>& y) {
    out.back() = y;
    if (!own_last_h_) h.back() = y;
  }

 private:
  bool own_last_h_;
  std::vector<Block<T>> blocks_;
};

template <class T>
struct TapeOf final : Tape {
  std::uint64_t layer_id = 0;
  Sizes sizes{};
  Axes axes{};
  RowSchedule rows;
  std::vector<unsigned char> resets;  // [T, B], empty for none
  std::vector<Dropout> dropouts;      // member by member
  py::array x, y;
  // All that backward wants, member by member; or, with a segment of so many steps, the state
  // before each.
  std::vector<Record<T>> records;
  Index segment = 0;
  Block<T> h, c;  // [segments, L * D, E, B, H], the first the initial state; null for one of zeros

  Schedule schedule() const {
    Schedule s = rows.view();
    if (!resets.empty()) s.resets = resets.data();
    return s;
  }
  Index members() const { return std::max<Index>(axes.members, 1); }
  Index state_size() const { return sizes.L * sizes.D * members() * axes.B * sizes.H; }

  const std::vector<Record<T>>& whole(const char* name) const {
    if (records.empty())
      bad_value(std::string("tape.") + name, "a tape without checkpoint, which keeps it",
                "one with it");
    return records;
  }
  // (T, B, vectors, C) of every step and row, (T, E, B, vectors, C) in an ensemble; zeros.
  py::array_t<T> zeros(Index vectors, Index C) const {
    std::vector<py::ssize_t> shape{axes.T};
    if (axes.members) shape.push_back(axes.members);
    shape.push_back(axes.B);
    if (vectors > 1) shape.push_back(vectors);
    shape.push_back(C);
    py::array_t<T> out(shape);
    std::fill_n(out.mutable_data(), out.size(), T(0));
    return out;
  }
  // Blocks in the schedule's order of rows, for each direction as an array in the caller's.
  py::list each(const char* name, std::vector<Block<T>> Record<T>::* blocks, Index vectors) const {
    py::list all;
    const std::vector<Record<T>>& members = whole(name);
    const Index H = sizes.H, Hp = padded_units<T>(H), E = this->members();
    const Schedule s = rows.view();
    for (std::size_t i = 0; i < (members[0].*blocks).size(); ++i) {
      py::array_t<T> out = zeros(vectors, H);
      for (Index e = 0; e < E; ++e) {
        const T* from = (members[static_cast<std::size_t>(e)].*blocks)[i].get();
        for (Index t = 0; t < s.T; ++t)
          for (Index r = 0; r < (s.count ? s.count[t] : s.B); ++r)
            for (Index v = 0; v < vectors; ++v, from += Hp)
              std::copy_n(from, H,
                          out.mutable_data() +
                              (((t * E + e) * s.B + (s.order ? s.order[r] : r)) * vectors + v) * H);
      }
      all.append(out);
    }
    return all;
  }
  py::list gates() const override {
    return each("gates", &Record<T>::saved, kKinds[static_cast<int>(sizes.kind)].saved);
  }
  py::list cells() const override { return each("cells", &Record<T>::cell, 1); }
  py::list hiddens() const override {
    py::list all;
    const Index C = sizes.D * sizes.H;
    for (Index l = 0; l < sizes.L; ++l) {
      py::array_t<T> array = zeros(1, C);
      T* to = array.mutable_data();
      for (Index t = 0; t < axes.T; ++t)
        for (const Record<T>& record : whole("hiddens")) {
          const Sequence<T>& from = record.h[static_cast<std::size_t>(l)];
          for (Index b = 0; b < axes.B; ++b, to += C)
            std::copy_n(from.data + t * from.step + b * from.row, C, to);
        }
      all.append(array);
    }
    return all;
  }
};

}  // namespace rnnkern

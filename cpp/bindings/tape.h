// What forward hands to backward, and how the caller's axes lie.
#pragma once

#include <algorithm>
#include <optional>

#include "layer.h"
#include "unlocked.h"

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
  virtual int traverse(visitproc visit, void* arg) const = 0;  // of Python's garbage collector
  virtual void clear() = 0;
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
  Sequence<T_> view(const PinnedArray<T_>& a, Index member) const {
    if (a.axes == 4) return {a.data + member * a.stride[1], a.stride[0], a.stride[2]};
    if (!batched) return {a.data, a.stride[0], 0};
    return batch_first ? Sequence<T_>{a.data, a.stride[1], a.stride[0]}
                       : Sequence<T_>{a.data, a.stride[0], a.stride[1]};
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
  PinnedArray<const T> x;
  py::object y;  // keeps the memory that the last layer's record points to; null: the tape has it
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
  int traverse(visitproc visit, void* arg) const override {
    Py_VISIT(x.owner.ptr());
    Py_VISIT(y.ptr());
    return 0;
  }
  void clear() override {  // nothing refers to the tape any more: no backward reads the memory
    x = {};
    y = {};
  }

  // (T, B, vectors, C) of every step and row, (T, E, B, vectors, C) in an ensemble; not filled.
  py::array_t<T> empty(Index vectors, Index C) const {
    std::vector<py::ssize_t> shape{axes.T};
    if (axes.members) shape.push_back(axes.members);
    shape.push_back(axes.B);
    if (vectors > 1) shape.push_back(vectors);
    shape.push_back(C);
    return py::array_t<T>(shape);
  }
  Index steps() const { return axes.B ? axes.T : 0; }  // an empty batch may claim any T
  // Blocks in the schedule's order of rows, for each direction as an array in the caller's.
  py::list each(const char* name, std::vector<Block<T>> Record<T>::* blocks, Index vectors) const {
    py::list all;
    const std::vector<Record<T>>& members = whole(name);
    const Index H = sizes.H, Hp = padded_units<T>(H), E = this->members();
    const Schedule s = rows.view();
    for (std::size_t i = 0; i < (members[0].*blocks).size(); ++i) {
      const py::array_t<T> out = empty(vectors, H);
      T* const to = const_cast<T*>(out.data());
      unlocked([&](const Interrupt& interrupt) {
        ThrottledPoll poll(interrupt);
        for (Index e = 0; e < E; ++e) {
          const T* from = (members[static_cast<std::size_t>(e)].*blocks)[i].get();
          for (Index t = 0; t < s.T; ++t)
            for (Index r = 0; r < s.B; ++r) {
              const Index row = (t * E + e) * s.B + (s.order ? s.order[r] : r);
              const bool alive = r < (s.count ? s.count[t] : s.B);
              for (Index v = 0; v < vectors; ++v) {
                T* const vector = to + (row * vectors + v) * H;
                if (alive)
                  std::copy_n(from, H, vector), from += Hp;
                else
                  std::fill_n(vector, H, T(0));
              }
              if (!poll.go_on(vectors * H)) return;
            }
        }
      });
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
    const std::vector<Record<T>>& members = whole("hiddens");
    const Index C = sizes.D * sizes.H;
    for (Index l = 0; l < sizes.L; ++l) {
      const py::array_t<T> array = empty(1, C);
      unlocked([&](const Interrupt& interrupt) {
        ThrottledPoll poll(interrupt);
        T* to = const_cast<T*>(array.data());
        for (Index t = 0; t < steps(); ++t)
          for (const Record<T>& record : members) {
            const Sequence<T>& from = record.h[static_cast<std::size_t>(l)];
            for (Index b = 0; b < axes.B; ++b, to += C) {
              std::copy_n(from.data + t * from.step + b * from.row, C, to);
              if (!poll.go_on(C)) return;
            }
          }
      });
      all.append(array);
    }
    return all;
  }
};

}  // namespace rnnkern

// What forward hands to backward, and how the caller's axes lie.
#pragma once

#include <algorithm>
#include <optional>

#include "layer.h"
#include "samples.h"
#include "unlocked.h"

namespace rnnkern {

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
  Shape one_step(Index C) const {
    if (members) return {members, B, C};
    return batched ? Shape{B, C} : Shape{C};
  }
  Shape state(Index layers, Index width) const {
    if (members) return {layers, members, B, width};
    return batched ? Shape{layers, B, width} : Shape{layers, width};
  }
  template <class T_>
  py::array_t<T_> make(const Shape& shape) const {
    std::vector<py::ssize_t> sizes;
    for (const Axis& axis : shape) sizes.push_back(axis.size);
    return result<T_>(sizes);
  }
  // An array of one step, as a sequence of which each step is the same memory.
  template <class T_>
  MemberSequence<T_> view_step(const PinnedArray<T_>& a) const {
    if (members) return {{a.data, 0, a.stride[1]}, a.stride[0]};
    return {{a.data, 0, batched ? a.stride[0] : 0}, 0};
  }
  // Each member's steps and rows; an array without an axis of members is every member's.
  template <class T_>
  MemberSequence<T_> view(const PinnedArray<T_>& a) const {
    if (a.axes == 4) return {{a.data, a.stride[0], a.stride[2]}, a.stride[1]};
    if (!batched) return {{a.data, a.stride[0], 0}, 0};
    return batch_first ? MemberSequence<T_>{{a.data, a.stride[1], a.stride[0]}, 0}
                       : MemberSequence<T_>{{a.data, a.stride[0], a.stride[1]}, 0};
  }
};

// What forward hands to backward.
class Tape {
 public:
  virtual ~Tape() = default;
  virtual int traverse(visitproc visit, void* arg) const = 0;  // of Python's garbage collector
  virtual void clear() = 0;
  virtual std::size_t nbytes() const = 0;
  virtual py::list gates() const = 0;
  virtual py::list cells() const = 0;
  virtual py::list hiddens() const = 0;
  virtual py::array real_steps() const = 0;
};

template <class T>
struct TapeOf final : Tape {
  std::uint64_t layer_id = 0;
  Axes axes{};
  TapeRecord<T> record;
  py::object x;  // keeps the memory that the record's x points to
  py::object y;  // keeps the memory that the last layer's record points to; null: the tape has it
  PinnedArray<const char> caller_x;  // of which the record's may be a copy
  Samples<T> samples;                // of the caller's x, then of the parameters
  bool samples_all = false;

  int traverse(visitproc visit, void* arg) const override {
    Py_VISIT(x.ptr());
    Py_VISIT(y.ptr());
    Py_VISIT(caller_x.owner.ptr());
    return 0;
  }
  void clear() override {  // nothing refers to the tape any more: no backward reads the memory
    x = {};
    y = {};
    caller_x.owner = {};
  }
  Index steps() const { return axes.B ? axes.T : 0; }  // an empty batch may claim any T

  auto sampled(const PinnedParameters<T>& parameters) const {
    return [&](std::size_t i, std::vector<T>& to) {
      if (i > parameters.data().size()) return false;
      sample(i == 0 ? caller_x : parameters.bytes(i - 1), samples_all, to);
      return true;
    };
  }

  const std::vector<Record<T>>& whole(const char* name) const {
    if (record.records.empty())
      bad_value(std::string("tape.") + name, "a tape without checkpoint, which keeps it",
                "one with it");
    return record.records;
  }
  // (T, B, vectors, C) of every step and row, (T, E, B, vectors, C) in an ensemble; no axis of
  // vectors if there are 0. Not filled.
  py::array_t<T> empty(Index vectors, Index C) const {
    std::vector<py::ssize_t> shape{axes.T};
    if (axes.members) shape.push_back(axes.members);
    shape.push_back(axes.B);
    if (vectors > 0) shape.push_back(vectors);
    shape.push_back(C);
    return py::array_t<T>(shape);
  }
  // Blocks in the schedule's order of rows, for each direction as an array in the caller's.
  py::list each(const char* name, std::vector<Block<T>> Record<T>::* blocks, Index vectors,
                bool axis) const {
    py::list all;
    const std::vector<Record<T>>& members = whole(name);
    for (std::size_t i = 0; i < (members[0].*blocks).size(); ++i) {
      const py::array_t<T> out = empty(axis ? vectors : 0, record.sizes.H);
      T* const to = const_cast<T*>(out.data());
      unlocked([&](const Interrupt& interrupt) {
        ThrottledPoll poll(interrupt);
        for (std::size_t e = 0; e < members.size(); ++e)
          if (!unsort((members[e].*blocks)[i].get(), static_cast<Index>(e), vectors, to, poll))
            return;
        spread(to, vectors * record.sizes.H, poll);
      });
      all.append(out);
    }
    return all;
  }
  // One member's part of `each`: from the schedule's order of rows to the caller's, zeros at
  // padding. False: the poll ended it.
  bool unsort(const T* from, Index member, Index vectors, T* to, ThrottledPoll& poll) const {
    const Index H = record.sizes.H, Hp = padded_row<T>(H);
    const Schedule s = record.rows.view();
    for (Index t = 0; t < s.T; ++t)
      for (Index r = 0; r < s.B; ++r) {
        const Index place = t * record.sizes.count() + member;
        const Index row = place * s.B + (s.order ? s.order[r] : r);
        const bool alive = r < (s.count ? s.count[t] : s.B);
        for (Index v = 0; v < vectors; ++v) {
          T* const vector = to + (row * vectors + v) * H;
          if (alive)
            std::copy_n(from, H, vector), from += Hp;
          else
            std::fill_n(vector, H, T(0));
        }
        if (!poll.go_on(vectors * H)) return false;
      }
    return true;
  }
  std::size_t nbytes() const override {
    return record.bytes() + (y ? static_cast<std::size_t>(py::array(y).nbytes()) : 0);
  }
  // From the real steps to the caller's, in place; zeros at masked ones.
  void spread(T* data, Index C, ThrottledPoll& poll) const {
    const Index E = record.sizes.count(), step = E * axes.B * C;
    for (Index e = 0; record.mask.moves() && e < E; ++e) {
      const Sequence<T> member{data + e * axes.B * C, step, C};
      record.mask.spread(C, member, member, T(0), poll);
    }
  }
  py::list gates() const override {
    return each("gates", &Record<T>::saved, record.sizes.info().saved, true);
  }
  py::list cells() const override {
    return each("cells", &Record<T>::carried, record.sizes.carried(), record.sizes.carried() > 1);
  }
  py::list hiddens() const override {
    py::list all;
    const std::vector<Record<T>>& members = whole("hiddens");
    const Index C = record.sizes.channels();
    for (Index l = 0; l < record.sizes.L; ++l) {
      const py::array_t<T> array = empty(0, C);
      unlocked([&](const Interrupt& interrupt) {
        ThrottledPoll poll(interrupt);
        T* to = const_cast<T*>(array.data());
        for (Index t = 0; t < record.rows.view().T; ++t)
          for (const Record<T>& member : members) {
            const Sequence<T>& from = member.h[static_cast<std::size_t>(l)];
            for (Index b = 0; b < axes.B; ++b, to += C) {
              std::copy_n(from.data + t * from.time_stride + b * from.row_stride, C, to);
              if (!poll.go_on(C)) return;
            }
          }
        spread(const_cast<T*>(array.data()), C, poll);
      });
      all.append(array);
    }
    return all;
  }
  // [T, B], true where a row has a step.
  py::array real_steps() const override {
    const py::array_t<bool> array(std::vector<py::ssize_t>{axes.T, axes.B});
    bool* const real = const_cast<bool*>(array.data());
    std::fill_n(real, array.size(), false);
    unlocked([&](const Interrupt& interrupt) {
      ThrottledPoll poll(interrupt);
      const Schedule s = record.rows.view();
      for (Index t = 0; t < s.T && axes.B > 0; ++t) {
        const Index count = s.count ? s.count[t] : s.B;
        for (Index r = 0; r < count; ++r) real[t * axes.B + (s.order ? s.order[r] : r)] = true;
        if (!poll.go_on(count)) return;
      }
      const Sequence<bool> steps{real, axes.B, 1};
      if (record.mask.moves()) record.mask.spread(1, steps, steps, false, poll);
    });
    return array;
  }
};

}  // namespace rnnkern

// A stack of layers on whole sequences: the records that its calls write to, the segments between
// checkpoints, the members of an ensemble. The kernels of an instruction set compute single calls;
// this file decides which calls there are. It knows neither Python nor instruction sets.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dispatch.h"
#include "stack/mask.h"
#include "stack/schedule.h"
#include "threads/memory.h"
#include "threads/runtime.h"

namespace rnnkern {

// A row of n elements as the kernels pad it: whole cache lines.
template <class T>
Index padded_row(Index n) {
  const Index line = kLineBytes / static_cast<Index>(sizeof(T));
  return (n + line - 1) / line * line;
}

struct Sizes {
  Kind kind;
  CellConstants constants;
  Index I, H, P, L, D;
  bool bias, peephole, residual;
  Index members;  // of an ensemble; 0: a layer alone
  bool reverse;   // the only direction goes back in time

  const KindInfo& info() const { return kKinds[static_cast<int>(kind)]; }
  bool has(Role role) const;
  Index states() const;  // h and the carried ones
  Index carried() const { return states() - 1; }
  bool goes_back(Index direction) const { return direction == 1 || reverse; }
  Index inputs(Index layer) const { return layer == 0 ? I : channels(); }
  Index channels() const { return D * P; }  // of a layer's outputs
  Index extent(Extent of, Index layer) const;
  Index width(Index state) const { return extent(info().states[state].width, 0); }
  // A state's elements where a sequence begins.
  template <class T>
  T fresh(Index state) const {
    return static_cast<T>(info().states[state].fresh);
  }
  // Whether the tape needs h before its clip.
  bool clips_projection() const;
  Index count() const { return members ? members : 1; }
};

// One parameter of one layer and direction.
struct Parameter {
  std::string name;
  Role role;
  Index layer, direction;
  std::vector<Index> shape;  // of one member
  Index size;                // of one member
};
// Layer by layer, direction by direction, in the order of the table of kinds.
std::vector<Parameter> parameters_of(const Sizes& sizes);

// A (T, B, C) array of each member; a stride of 0 shares one among all.
template <class T>
struct MemberSequence {
  Sequence<T> first;  // the first member's; null data: none
  Index stride;       // elements from one member to the next
  Sequence<T> of(Index member) const {
    return {first.data ? first.data + member * stride : nullptr, first.time_stride,
            first.row_stride};
  }
};

// The states of all layers and members, [L * D, members, B, width] each; null: none, or fresh ones;
// of gradients zeros.
template <class T>
struct States {
  T* part[kMostStates] = {};
};

// Parameters, or their gradients, in the order of parameters_of, [members, shape] each.
template <class T>
using ParameterArrays = std::vector<T*>;

// The weights of all layers, directions and members in panels. Once packed, they stay as they are:
// any number of calls and streams share them, all by the same kernels.
//
// With `folded` rows, the first layer's inputs are rows of a table: their products are computed
// when the weights are packed, and x of a call, (T, B, 1), has the rows' numbers.
template <class T>
class PackedWeights {
 public:
  PackedWeights(const TypedKernels<T>& kernels, const Sizes& sizes, Index folded = 0);
  // table: [folded, I]
  void pack(const ParameterArrays<const T>& parameters, ThrottledPoll& poll,
            const T* table = nullptr);

  const Sizes& sizes() const { return call_sizes_; }  // of calls: with folded rows, I is 1
  Index folded() const { return folded_; }
  const TypedKernels<T>& kernels() const { return kernels_; }
  const T* of(Index member, Index layer, Index direction) const;

 private:
  const TypedKernels<T>& kernels_;
  Sizes sizes_, call_sizes_;
  Index folded_;
  std::vector<Block<char>> blocks_;  // [members, L, D]
  std::vector<Block<T>> products_;   // [members, D] of folded rows: [folded, gates, padded H] each
};

// Where the layers of a call write, over some steps.
template <class T>
struct Record {
  std::vector<Sequence<T>> h, out;                  // [L] (T, B, D*P) each: Layer's y and out
  std::vector<Block<T>> saved, carried, projected;  // [L * D] as Direction says; empty: not kept
  std::vector<Block<T>> moments;                    // the same

  // alive: rows alive at all of the steps. keep: for backward; otherwise two buffers in turns stand
  // between the layers. apart: what is kept of the last layer's h is not to be y. hiddens: [L]
  // where h goes, or empty.
  Record(const Sizes& s, Index steps, Index B, Index alive, bool keep, bool apart = false,
         const std::vector<Sequence<T>>& hiddens = {});
  // Where the last layer's output goes.
  void set_y(const Sequence<T>& y);
  std::size_t bytes() const;  // of its own memory

 private:
  bool own_last_h_;
  std::vector<Block<T>> blocks_;
};

// What forward hands to backward, and what both know of the sequences.
template <class T>
struct TapeRecord {
  Sizes sizes{};
  Index B = 0;
  RowSchedule rows;
  std::vector<unsigned char> resets;  // [T + 1, B], empty for none
  StepMask mask;                      // where the caller has these steps, if some were masked
  std::vector<Dropout> dropouts;      // member by member
  MemberSequence<const T> x{};        // the caller's, or from forward on `real_x`
  Block<T> real_x;                    // [E, T, B, I] the real steps of x, where the mask moves them
  // All that backward needs, member by member; or, with a segment of so many steps, the states
  // before each.
  std::vector<Record<T>> records;
  Index segment = 0;
  Block<T> states[kMostStates];  // [segments, L * D, E, B, width], the first the initial states;
                                 // null: fresh ones

  // The schedule of the real steps, of `steps`; `resets` as the caller has them become theirs.
  // A poll that ends it leaves the record unusable.
  void set_mask(Index steps, const std::vector<unsigned char>& real, ThrottledPoll& poll) {
    mask.assign(steps, B, real.data(), resets.empty() ? nullptr : resets.data(), poll);
    if (!poll.go_on()) return;
    rows.assign(mask.steps(), mask.lengths(), poll);
    resets = mask.resets();
  }
  Schedule schedule() const {
    Schedule s = rows.view();
    if (!resets.empty()) s.resets = resets.data();
    return s;
  }
  std::size_t bytes() const;  // of what forward has kept, x and y apart
  Index state_size(Index state) const {
    return sizes.L * sizes.D * sizes.count() * B * sizes.width(state);
  }
  bool drops() const { return dropouts[0].p > 0 && sizes.L > 1; }
};

// What forward reads and writes besides the tape.
template <class T>
struct ForwardArguments {
  ParameterArrays<const T> parameters;       // or
  const PackedWeights<T>* packed = nullptr;  // the same, packed before
  MemberSequence<T> y;
  bool last_outputs = false;  // y is of each row's own last step alone, with a time_stride of 0
  // Where each layer's h goes, or empty. That of the last layer is y, unless layers are residual.
  std::vector<MemberSequence<T>> hiddens;
  States<const T> first;
  States<T> last;
  bool keep = false;  // fill the tape for a backward
};

// A forward over whole sequences. The constructor allocates all that the call needs; `run` computes
// and throws nothing.
template <class T>
class ForwardRun {
 public:
  ForwardRun(TapeRecord<T>& tape, const ForwardArguments<T>& arguments);
  ~ForwardRun();
  void run(const Interrupt& interrupt);
  void finish();  // after a run that was not interrupted: moves what is kept to the tape

 private:
  struct Plan;
  std::unique_ptr<Plan> plan_;
};

// What backward reads and writes besides the tape.
template <class T>
struct BackwardArguments {
  ParameterArrays<const T> parameters;
  ParameterArrays<T> gradients;
  MemberSequence<const T> dy;
  MemberSequence<T> dx;
  States<const T> last;  // dL/d(last states)
  States<T> first;       // dL/d(first states)
  // What `Trace` points to, [E, L * D, T, B] each, with T steps of `trace_steps`.
  Trace trace;
  Index trace_steps;
  Clip clip;
  double flow_penalty;
};

template <class T>
class BackwardRun {
 public:
  BackwardRun(const TapeRecord<T>& tape, const BackwardArguments<T>& arguments);
  ~BackwardRun();
  void run(const Interrupt& interrupt);
  const std::vector<GradientNorm>& norms() const;  // member by member

 private:
  struct Plan;
  std::unique_ptr<Plan> plan_;
};

}  // namespace rnnkern

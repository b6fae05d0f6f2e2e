// The dimension letters and the plain records that every part of the core shares.
//
//   T steps   B rows of the batch   I inputs   H hidden units   L layers   D directions   G gates
//   P outputs of a direction: the width of h. P is H, or less in a cell that projects.
//
// Nothing here depends on an instruction set, and nothing here emits code: records, constants and
// a declaration only, so that a file compiled for one instruction set can't lend a function to
// another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cells/kinds.h"

namespace rnnkern {

using Index = std::ptrdiff_t;

// Rows of inner buffers are padded to whole cache lines, for every instruction set alike, so that
// what one instruction set has saved another can read.
inline constexpr Index kLineBytes = 64;

// Of layer norm: what a row's moments take, the mean and 1 / std of the input's product, of the
// recurrent one and of c, padded. Where each of these pairs begins.
inline constexpr Index kMoments = 8;
inline constexpr Index kInputMoments = 0, kRecurrentMoments = 2, kStateMoments = 4;

// A (T, B, C) array: channels are contiguous, steps and rows are not necessarily.
template <class T>
struct Sequence {
  T* data;
  Index time_stride;  // elements from one step to the next
  Index row_stride;   // elements from one row to the next
};

// Which rows are alive at which step. Rows are sorted by falling length, so that those alive at a
// step are the first count[t]; null arrays mean that every row lives for all of T.
struct Schedule {
  Index T = 0, B = 0;
  const Index* order = nullptr;  // [B] sorted place -> the caller's row
  const Index* count = nullptr;  // [T] rows alive at step t
  // [T + 1] rows alive before step t, summed: where step t's rows start
  const Index* offset = nullptr;
  // [T + 1, B] by the caller's row: not 0 where another sequence begins, which sees nothing of the
  // steps before it; at a row's end that of the steps behind it, whose state the reverse direction
  // does not start from. Null: nowhere.
  const unsigned char* resets = nullptr;
};
// Steps [from, from + steps) of a schedule, rows in the same order (schedule.cpp).
Schedule steps_of(const Schedule& s, Index from, Index steps);

// One direction of one layer. Arrays are C-contiguous unless they say otherwise. The widths of
// parameters and states are those of the table of kinds.
template <class T>
struct Direction {
  const T* parameters[kRoles];  // null where the cell has none, or the layer no bias
  const T* first[kMostStates];  // [B, width] the states before the first step; null: fresh ones
  T* last[kMostStates];         // [B, width] the states at each row's own last step
  T* saved;                     // [alive rows, saved, padded H], for backward; null: not kept
  T* carried;       // [alive rows, states but h, padded H], for backward; null: not kept
  T* projected;     // [alive rows, padded P] h before its clip; null: there is no clip
  T* moments;       // [alive rows, kMoments] of layer norm, for backward; null: not kept
  const T* packed;  // weights in panels, made before (streams); null: pack in this call
};

template <class T>
struct Layer {
  Index inputs;         // I of this layer
  Sequence<const T> x;  // (T, B, inputs)
  Sequence<T> y;        // (T, B, D*P) h of every step
  // (T, B, D*P) the layer's output: y itself, or in a residual layer above the first y + x,
  // which may be written over y where nothing is kept.
  Sequence<T> out;
  Direction<T> direction[2];
};

// Dropout between layers, and what the noise of cells is drawn from: a mask is a function of seed,
// step, layer and element.
struct Dropout {
  double p;  // 0: none
  std::uint64_t seed, step;
  Index first = 0;        // the sequence's step that the call's step 0 is
  Index first_row = 0;    // the row of a larger batch that the call's row 0 is
  bool training = false;  // cells draw their noise; otherwise they take its mean
};

// How a caller ends a call early. The calling thread asks now and then, in the caller's own
// floating-point environment; once the answer is yes, all threads leave and results are worthless.
// A call has several parts that poll, one after the other. They share `due`: if each part measured
// the interval from its own start, a signal late in one part would wait for the sum of two.
struct Interrupt {
  bool (*asked)(void* context);  // null: the call runs to its end
  void* context;
  std::int64_t* due;  // when to ask next, on the clock of now(); 0: not known yet
};

template <class T>
struct ForwardCall {
  Kind kind;
  CellConstants constants;
  bool residual;  // layers above the first output y + x
  Index L, D, H, P;
  Schedule rows;
  Layer<T>* layers;  // [L]
  Dropout dropout;
  T* dropped;   // [T, B, D*P] workspace for a layer's input after dropout; null without dropout
  int threads;  // at most this many
  Interrupt interrupt;
  // Go over the weights from the end first: who calls step by step does so in turns, and finds in
  // cache what the last call read last.
  bool from_end = false;
  // The last layer's y and out have room for one step, a time_stride of 0, and are to hold each
  // row's own last step in the end: of a direction that goes back, the row's first.
  bool last_outputs = false;
  bool reverse = false;  // the direction, if it is the only one, goes from the last step back
};

// Gradient clips; infinity: off. In the order in which they act.
struct Clip {
  double step_value, step_norm, value, norm;
};

// What backward saw on its way, of every step and row: [T, B] each; null pointers: not asked for.
// Rows behind their end are left as they are.
struct Trace {
  double* dh;         // L2 norm of dL/dh_t, complete
  double* dh_before;  // L2 norm of what step t hands back to h', before step_norm
  double* dc_before;  // the same for the first carried state, c'; of cells that carry one
  double* scale;      // step_norm's factor of what step t hands back
  double* clipped;    // share of the elements of dL/da_t that step_value limited
};

template <class T>
struct DirectionGradient {
  T* parameters[kRoles];       // null where the direction has none
  const T* last[kMostStates];  // [B, width] dL/d(last states), null for zeros
  T* first[kMostStates];       // [B, width] dL/d(first states), may be `last`
  Trace trace;
  // [B] step_norm's factor of dL/dh, on the way from one call of a backward to the next: read where
  // the call goes on, written where it is to be continued; null in a backward of one call.
  T* scale;
};

template <class T>
struct LayerGradient {
  Sequence<const T> dy;  // (T, B, D*P); null data for zeros
  Sequence<T> dx;        // (T, B, inputs)
  DirectionGradient<T> direction[2];
};

template <class T>
struct BackwardCall {
  Kind kind;
  CellConstants constants;
  bool residual;  // layers above the first output y + x
  Index L, D, H, P;
  Schedule rows;
  const Layer<T>* layers;       // [L] as forward left them
  LayerGradient<T>* gradients;  // [L]
  Dropout dropout;
  T* dropped;  // [T, B, D*P], as in ForwardCall
  Clip clip;
  // The weight of Omega, the regulariser of Pascanu et al. 2013 (arXiv 1211.5063, eq. 9), whose
  // immediate gradient (eq. 10) is added to dW_hh; needs traces, and a cell of one phase without c.
  double flow_penalty;
  // A backward in several calls, each over the steps before the last one's: all but the first add
  // to the parameters' gradients that are there, and the last clips and measures them.
  bool accumulate, defer_finalize;
  int threads;
  Interrupt interrupt;
  bool reverse = false;  // as in ForwardCall
};

// How products of bf16 are summed, with the same bits: by the instruction for pairs or as floats.
// Drivers set it (dispatch.cpp) to test both.
enum class Bf16Sums { fastest, pairs, floats };
extern Bf16Sums bf16_sums;

// What backward says of the parameter gradients as a whole.
struct GradientNorm {
  double norm;   // joint L2 norm after `value`, before `norm`
  double scale;  // the factor that `norm` applied
  bool finite;   // whether every element was finite before `value`
};

}  // namespace rnnkern

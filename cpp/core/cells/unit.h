// The registers that a cell's maths works on: one or two vectors (V) of hidden units, each of one
// row at one step.
//
// A cell is pointwise. It says how many gates, saved values and gradient slots it has, and gives
// forward and backward on these records. It knows nothing of products, threads, strides or
// instruction sets; the formulas' source stands in each cell's file and in reference.py.
//
// Most cells have one phase: all recurrent products act on h'. A cell whose later gates multiply
// something computed from earlier gates (the reset-before GRU's r h') has two: phase 0 ends in
// `operand`, which phase 1's product takes; backward goes through the phases in reverse.
#pragma once

#include "../simd.h"

namespace rnnkern::RNNKERN_ISA {

inline constexpr int kMostGates = 4;
inline constexpr int kMostSaved = 4;

// One phase of a cell: gates [first, first + count) get their recurrent product in it.
struct Phase {
  int first, count;
  unsigned reads;   // bit s: saved[s] is read
  unsigned writes;  // bit s: saved[s] is written, for backward
  unsigned keeps;   // bit s: saved[s] is written for a later phase of forward, too
  unsigned slots;   // bit s: backward writes da[s]
};

template <class V>
struct ForwardUnit {
  V a[kMostGates];      // in: the gates' arguments
  V saved[kMostSaved];  // in and out, as the phase says
  V h_before, c_before;
  V h, c;     // out: the new state, from the last phase
  V operand;  // out: phase 0 of two
};

template <class V>
struct BackwardUnit {
  V saved[kMostSaved];  // as forward left them
  V h_before, h;        // h only where the cell reads it
  V c_before, c;
  V dh;              // in: dL/dh, complete; in phase 0 of two: dL/d operand
  V dc;              // in: dL/dc; out: dL/dc'
  V da[kMostGates];  // out: gradient slots of the phase
  V direct;          // out of the last phase, in and out of phase 0: dL/dh' that takes no product
};

// step_value: the clip of dL/da, on registers.
template <class V>
struct StepClip {
  V low, high;
  template <class U>
  U operator()(U da) const {
    return each(da, [this](V v) { return limit(v, low, high); });
  }
};

}  // namespace rnnkern::RNNKERN_ISA

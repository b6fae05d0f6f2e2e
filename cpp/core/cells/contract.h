// What a cell is: the registers that its pointwise maths works on, and what the core asks of it.
//
// A cell is a value with pointwise functions on one or two vectors (V) of hidden units, each of one
// row at one step. It knows nothing of products, threads, strides or instruction sets. Its sizes,
// states and parameters are its row in the table of kinds (kinds.h); its own file and the
// reference cite the source of its formulas.
//
// Phases. Most cells have one: all recurrent products act on h'. A cell whose later gates multiply
// something computed from earlier gates (the reset-before GRU's r h') has two: phase 0 ends in
// `operand`, which phase 1's product takes; backward goes through the phases in reverse. A cell of
// an elementwise recurrence has one phase and no recurrent product.
//
// Projection. A cell with a projection matrix writes its H outputs to `operand` in its last phase;
// the core multiplies them, clips the product and makes it h (P wide). Backward gets dL/d operand
// as `dh` and writes the operand again, for the gradient of the matrix.
//
// Unit vectors. A cell can have parameters that are one value for each unit (peepholes, the
// recurrent weights of an IndRNN). It reads them as `vectors` and writes, for each row and step,
// what their gradients are sums of. What it computes of the vectors alone it can compute before the
// first step: `prepare` replaces them by `prepared` others.
//
// Inputs. Cells see x through its product with the input matrix. A cell can also read x itself,
// whose I elements are then the units' (KindInfo::reads_x); it writes `dx`, from which
// the core starts the product's gradient. A cell that treats the first step after a reset unlike
// others reads `kept`.
//
// Layer norm. A cell with gains has products that the core normalizes, each over all of its G*H
// values: the input's and the recurrent product stay apart, and what forward saves are the products
// themselves. The cell gets the gates' arguments made of them, in backward again. If c is
// normalized, too, the cell has two parts, since c must be complete in the whole row: part 0 ends
// in c, part 1 makes h of it. Backward takes part 1 first.
//
// Noise. A cell without layer norm can read values that training draws for each unit, row and step
// (`Noise` in kinds.h). It gets the same ones in backward, which draws them again.
#pragma once

#include "simd/simd.h"

namespace rnnkern::RNNKERN_ISA {

inline constexpr int kMostGates = 4;
inline constexpr int kMostSaved = 5;
inline constexpr int kMostPhases = 2;
inline constexpr int kMostVectors = 3;

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
  V a[kMostGates];           // in: the gates' arguments
  V saved[kMostSaved];       // in and out, as the phase says
  V h_before;                // in, where the cell reads it
  V vectors[kMostVectors];   // in
  V noise[kNoises];          // in, where the cell reads it
  V c_before[kMostCarried];  // in: the carried states
  V x;                       // in, where the cell reads it
  V kept;                    // in, where the cell reads it: 0 where `resets` has reset h', else 1
  V h;                       // out of the last phase of a cell that does not project
  V c[kMostCarried];         // out of the last phase
  V operand;                 // out: of phase 0 of two, or of a cell that projects
};

template <class V>
struct BackwardUnit {
  V saved[kMostSaved];        // in: as forward left them
  V h_before, h;              // in, where the cell reads them
  V vectors[kMostVectors];    // in
  V noise[kNoises];           // in, where the cell reads it
  V c_before[kMostCarried];   // in
  V c[kMostCarried];          // in
  V x;                        // in, where the cell reads it
  V dh;                       // in: dL/dh, complete; dL/d operand where there is an operand
  V dc[kMostCarried];         // in: dL/dc; out: dL/dc'; of states that a gradient flows through
  V da[kMostGates];           // out: gradient slots of the phase
  V d_vectors[kMostVectors];  // out: what this row and step add to the gradients of `vectors`
  V dx;                       // out, where the cell reads x: what it adds to dL/dx
  V direct;   // out of the last phase, in and out of phase 0: dL/dh' that takes no product
  V operand;  // out, of a cell that projects: as in forward
};

// Layer norm of c: n = (c - mean) / std, which gain and bias then scale and shift.
template <class V>
struct StateNorm {
  V mean, rstd, gain, bias;  // rstd: 1 / std
  V along_gain, along_n;  // backward: minus the row's means of gain d and gain d n, d = dL/dLN(c)
  RNNKERN_MEMBER V standardized(V c) const { return (c - mean) * rstd; }
  RNNKERN_MEMBER V value(V n) const { return fma(n, gain, bias); }
  RNNKERN_MEMBER V gradient(V d, V n) const {  // of c
    return rstd * fma(n, along_n, fma(d, gain, along_gain));
  }
};

template <class V>
struct NormForward {
  V a[kMostGates];    // in part 0: the gates' arguments; where the recurrent part stands alone, it
  V x[kMostGates];    // in part 0: the input's part of such a gate
  V h_before;         // in part 0, where the cell reads it
  V c_before;         // in part 0
  StateNorm<V> norm;  // in part 1
  V c;                // out of part 0, in and out of part 1
  V kept;             // out of part 0, in part 1
  V output;           // out of the last part: h, or what is projected
};

template <class V>
struct NormBackward {
  V a[kMostGates], x[kMostGates];  // in the last part: as in forward
  V h_before;                      // in, where the cell reads it
  V c_before;                      // in
  StateNorm<V> norm;               // in
  V dh;                            // in the last part: dL/dh, complete; dL/d operand if it projects
  V dc;                            // in: dL/dc; out of part 0: dL/dc'
  V kept[kMostGates];              // out of part 1, in part 0
  V d_normed, d_normed_n;          // out of part 1, in part 0: dL/dLN(c), and times n
  V da[kMostGates];                // out: gradient slots of the part
  V direct;                        // out of part 0: dL/dh' that takes no product
  V output;                        // out of the last part, of a cell that projects: as in forward
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

// What the table of kinds says of a cell, for the core.
template <Kind kind>
struct CellOf {
  static constexpr const KindInfo& info = kKinds[static_cast<int>(kind)];
  static constexpr int gates = info.gates, saved = info.saved;
  static constexpr bool elementwise = info.elementwise;
  static constexpr int carried = [] {
    int n = 0;
    while (info.states[1 + n].name) ++n;
    return n;
  }();
  static constexpr unsigned flows = [] {  // bit k: a gradient flows through carried state k
    unsigned bits = 0;
    for (int k = 0; k < carried; ++k) bits |= (info.states[1 + k].flows ? 1u : 0u) << k;
    return bits;
  }();
  static constexpr int times(Role role) {  // 0: the cell has no such parameter
    for (const ParameterInfo* p = info.parameters; p->name; ++p)
      if (p->role == role) return p->times;
    return 0;
  }
  static constexpr bool projects = times(projection_matrix) > 0;
  static constexpr int vectors = times(unit_vectors);
  static constexpr bool reads_x = info.reads_x;
  // What a cell's struct can say otherwise.
  static constexpr int prepared = vectors;
  static constexpr bool reads_kept = false;
  static constexpr bool normalizes = times(input_gain) > 0,
                        normalizes_state = times(state_gain) > 0;
  static constexpr unsigned noise = 0;  // bit n: the cell reads noise[n]
};

// The same as values, and what the cell's struct says of itself: for the time loops, which are
// compiled once for all cells.
struct CellLayout {
  const KindInfo* info;
  int gates, saved, carried, slots, vectors, phases;
  bool elementwise, projects, reads_h_before, reads_h;
  bool has_sums_alone;  // of any gate: see stands_alone
  unsigned noise;       // bit n: the cell reads noise[n]
  Phase phase[kMostPhases];
  int input_slot[kMostGates], recurrent_slot[kMostGates];
  int vector_slot[kMostVectors];  // where backward writes d_vectors: behind the products' slots
  int prepared;
  bool reads_x, reads_kept;
  // With layer norm, the slots above are those of the products, and `vectors` those of LN(c). The
  // gradients of the gates' arguments have slots of their own; without it, they are the same.
  bool normalizes, normalizes_state;
  int own_slots, own_input_slot[kMostGates], own_recurrent_slot[kMostGates];

  // Whether one of the cell's products takes something else than x and h'.
  bool has_operand() const { return phases > 1 || projects; }
  // Whether a gate's recurrent sum has a slot of its own beside the input's part.
  constexpr bool stands_alone(int gate) const {
    return own_recurrent_slot[gate] != own_input_slot[gate];
  }
  bool has(Role role) const {
    for (const ParameterInfo* p = info->parameters; p->name; ++p)
      if (p->role == role) return true;
    return false;
  }
  // A state's elements where a sequence begins.
  template <class T>
  T fresh(int state) const {
    return static_cast<T>(info->states[state].fresh);
  }
};

template <class Cell>
constexpr CellLayout layout_of() {
  static_assert(sizeof(Cell::phase) == Cell::phases * sizeof(Phase));
  static_assert(sizeof(Cell::input_slot) == Cell::gates * sizeof(int));
  static_assert(sizeof(Cell::recurrent_slot) == Cell::gates * sizeof(int));
  CellLayout layout{&Cell::info,
                    Cell::gates,
                    Cell::saved,
                    Cell::carried,
                    Cell::slots,
                    Cell::vectors,
                    Cell::phases,
                    Cell::elementwise,
                    Cell::projects,
                    Cell::reads_h_before,
                    Cell::reads_h,
                    false,
                    Cell::noise,
                    {},
                    {},
                    {},
                    {},
                    Cell::prepared,
                    Cell::reads_x,
                    Cell::reads_kept,
                    Cell::normalizes,
                    Cell::normalizes_state,
                    0,
                    {},
                    {}};
  static_assert(Cell::vectors == 0 || Cell::phases == 1);
  static_assert(!Cell::reads_x || Cell::phases == 1);
  if constexpr (Cell::normalizes) {
    static_assert(Cell::saved == 2 * Cell::gates && Cell::phases == 1 && Cell::carried <= 1);
    layout.slots = 2 * Cell::gates, layout.own_slots = Cell::slots;
    layout.vectors = Cell::normalizes_state ? 2 : 0;
  }
  for (int v = 0; v < layout.vectors; ++v) layout.vector_slot[v] = layout.slots + v;
  for (int p = 0; p < Cell::phases; ++p) layout.phase[p] = Cell::phase[p];
  for (int g = 0; g < Cell::gates; ++g) {
    layout.own_input_slot[g] = Cell::input_slot[g];
    layout.own_recurrent_slot[g] = Cell::recurrent_slot[g];
    layout.input_slot[g] = Cell::normalizes ? g : Cell::input_slot[g];
    layout.recurrent_slot[g] = Cell::normalizes ? Cell::gates + g : Cell::recurrent_slot[g];
    if (layout.stands_alone(g) && !Cell::normalizes) layout.has_sums_alone = true;
  }
  return layout;
}

}  // namespace rnnkern::RNNKERN_ISA

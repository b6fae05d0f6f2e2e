// The seam between the time loops, which are compiled once for all cells, and a cell's maths, which
// is compiled for each cell: records of where the values of a time step lie, and a table of
// functions on them.
#pragma once

#include "cells/contract.h"
#include "product/tiles.h"

namespace rnnkern::RNNKERN_ISA {

// Rows of one part of the batch at one time step of forward.
template <class T>
struct ForwardStep {
  const CellConstants* constants;
  T* const* z;        // [rows] the cell's slots
  const T* h_before;  // [rows, padded H] as are those below
  const T* vectors;   // [vectors, padded H]
  T *h, *c, *operand;
  T* carried;  // [rows, states but h, padded H]; null: not kept, as c and operand where there are
               // none
  T* y;
  Index y_row;         // from row to row of y
  const Index* order;  // of y's rows; null: as they come
  Index H, Hp;
  Index state;  // from one of the carried states to the next in c
  bool keeps;   // what backward reads
  const T* x;   // rows as those of y, as the caller has them; null: the cell reads none
  Index x_row;
  const T* kept;            // [rows] 0 where h' was reset, else 1; null: it was nowhere
  T* moments;               // [rows, kMoments] of layer norm
  const T* noise[kNoises];  // [rows, padded H]; null: `mean` for all
  T mean[kNoises];
};

// One row at one time step of backward. Null: there are none, or they are not wanted.
template <class T>
struct BackwardRow {
  const T *saved, *h_before, *h, *dy, *d_operand, *x;
  const T* noise[kNoises];  // [padded H]; null: `mean` of the step for all
  const T *c_before[kMostCarried], *c[kMostCarried];
  T* dc[kMostCarried];
  T *dh, *dh_full, *da, *projected, *dx;
  const T* scale;  // step_norm's factor of dh
  // Layer norm: the row's moments and the sums that its gradients need; da of the gates' arguments,
  // and the rows of d_vectors.
  const T* moments;
  T *sums, *own_da, *d_vectors;
};

// What all rows of a part have in common.
template <class T>
struct BackwardStep {
  const CellConstants* constants;
  const T* vectors;  // [vectors, padded H]
  Index H;
  Range blocks;
  T step_value;  // infinity: off
  Index ahead;   // rows that memory is asked for before they are needed
  Index dy_row;  // from row to row of dy
  T mean[kNoises];
};

// The place of a tile of so many panels in OfPhase::tile.
inline int tile_index(int panels) { return __builtin_ctz(static_cast<unsigned>(panels)); }

template <class T>
struct CellFunctions {
  CellLayout layout;
  struct OfPhase {
    // The cell's maths for n rows and `count` blocks, on gates' arguments that stand in the rows of
    // z.
    void (*forward)(const ForwardStep<T>&, Index n, Index block, int count);
    // A tile of one row and 1, 2, 4 or 8 panels, and the cell's maths on its sums while they are in
    // registers. Null where there is no such tile, and in an elementwise recurrence.
    void (*tile[4])(const ForwardStep<T>&, const TileCall<T>&, Index block);
    // The cell's derivative, the step clip included, for n rows, each as far behind the one before
    // as the second behind the first.
    void (*backward)(const BackwardRow<T>& first, const BackwardRow<T>& second, Index n,
                     const BackwardStep<T>&);
  } phase[kMostPhases];
  // Phase 1's operand of a row again, from what was saved: h and to are blocks `stride` apart. Null
  // in a cell of one phase.
  void (*operand)(const T* saved, const T* h, T* to, Range blocks, Index stride);
  // Replaces the unit vectors by what the cell computes of them: [prepared, width]. Null: it reads
  // them as they are.
  void (*prepare)(T* vectors, Index width);
  // The parts of a cell with layer norm, each for some units of one row; null of other cells, whose
  // phases they replace.
  struct OfPart {
    void (*forward)(const ForwardStep<T>&, Index row, Range blocks);
    void (*backward)(const BackwardRow<T>&, const BackwardStep<T>&);
  } part[2] = {};
};

// Calls use(Count<n>()) for n gates.
template <int n>
struct Count {
  static constexpr int value = n;
};
template <class Use>
RNNKERN_INLINE auto with_gates(int n, const Use& use) {
  static_assert(kMostGates == 4);
  switch (n) {
    case 1:
      return use(Count<1>());
    case 2:
      return use(Count<2>());
    case 3:
      return use(Count<3>());
    default:
      return use(Count<4>());
  }
}

}  // namespace rnnkern::RNNKERN_ISA

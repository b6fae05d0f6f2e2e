// Weights and operands laid out in panels, as gemm.h wants them. Places past the end are zeros.
#pragma once

#include "work.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
inline constexpr Index blocks_of(Index n) {
  return ceil_div(n, kLanes<T>);
}

// Blocks of W^T for forward: block, then k, then gate, then unit in the block.
// w: [.., K], rows gate * H + unit, gates [gate, gate + count).
template <class T>
static void pack_gates(Watch& watch, const T* w, int gate, int count, Index H, Index K,
                       Range blocks, T* out) {
  constexpr Index lanes = kLanes<T>;
  for (Index block = blocks.first; block < blocks.last; ++block) {
    T* panel = out + block * K * count * lanes;
    for (Index lane = 0; lane < lanes; ++lane) {
      const Index unit = block * lanes + lane;
      for (Index g = 0; g < count; ++g) {
        T* to = panel + g * lanes + lane;
        if (unit < H) {
          const T* from = w + ((gate + g) * H + unit) * K;
          for (Index k = 0; k < K; ++k) to[k * count * lanes] = from[k];
        } else {
          for (Index k = 0; k < K; ++k) to[k * count * lanes] = T(0);
        }
      }
      if (!go_on(watch, count * K)) return;
    }
  }
}

// Column blocks of a row-major matrix: block, then row, then column in the block.
// row(k) points at row k of `columns` elements; out: [blocks, rows, lanes].
template <class T, class Row>
static void pack_columns(Watch& watch, const Row& row, Index rows, Index columns, Range blocks,
                         T* out) {
  constexpr Index lanes = kLanes<T>;
  for (Index block = blocks.first; block < blocks.last; ++block) {
    const Index left = columns - block * lanes;
    T* to = out + block * rows * lanes;
    for (Index k = 0; k < rows; ++k) {
      const T* from = row(k);
      store<T>(to + k * lanes, from ? load_n(from + block * lanes, left) : Vec<T>{});
    }
    if (!go_on(watch, rows)) return;
  }
}

// The sum of the gates' two biases, or one of them; [gates, padded H]. null stands for zeros.
template <class T>
static void pack_bias(const T* b, const T* b_too, int gates, Index H, T* out) {
  for (Index g = 0; g < gates; ++g)
    for (Index j = 0; j < padded<T>(H); ++j) {
      const bool inside = j < H;
      const T one = b && inside ? b[g * H + j] : T(0);
      out[g * padded<T>(H) + j] = b_too && inside ? one + b_too[g * H + j] : one;
    }
}

}  // namespace rnnkern::RNNKERN_ISA

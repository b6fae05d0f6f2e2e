// Weights and operands laid out in panels, as tiles.h takes them. Places past the end are zeros.
#pragma once

#include "product/tiles.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
inline constexpr Index blocks_of(Index n) {
  return ceil_div(n, kLanes<T>);
}

// Blocks of W^T for forward: block, then panel, then k, then gate of the panel, then unit.
// w: [.., K], rows gate * H + unit, gates [gate, gate + G).
template <int G, class T, class W>
void pack_gates(CancelToken& token, const T* w, int gate, Index H, Index K, Range blocks, W* out) {
  constexpr Index lanes = kLanes<T>, NV = kPanel<G>;
  for (Index block = blocks.first; block < blocks.last; ++block)
    for (Index first = 0; first < G; first += NV) {
      W* panel = out + (block * G + first) * K * lanes;
      for (Index k = 0; k < K; k += lanes)
        for (Index g = 0; g < NV; ++g) {
          const T* from = w + ((gate + first + g) * H + block * lanes) * K + k;
          Vec<T> v[lanes];
          for (Index i = 0; i < lanes; ++i)
            v[i] = block * lanes + i < H ? load_n(from + i * K, K - k) : Vec<T>{};
          transpose<T>(v);
          for (Index i = 0; i < least(lanes, K - k); ++i)
            store_panel<T>(panel + ((k + i) * NV + g) * lanes, v[i]);
        }
      if (!go_on(token, NV * K)) return;
    }
}

// Column blocks of a row-major matrix: block, then row, then column in the block.
// row(k) points at row k of `columns` elements; out: [blocks, rows, lanes].
template <class T, class W, class Row>
void pack_columns(CancelToken& token, const Row& row, Index rows, Index columns, Range blocks,
                  W* out) {
  constexpr Index lanes = kLanes<T>;
  for (Index block = blocks.first; block < blocks.last; ++block) {
    const Index left = columns - block * lanes;
    W* to = out + block * rows * lanes;
    for (Index k = 0; k < rows; ++k) {
      const T* from = row(k);
      store_panel<T>(to + k * lanes, from ? load_n(from + block * lanes, left) : Vec<T>{});
    }
    if (!go_on(token, rows)) return;
  }
}

// The sum of the gates' two biases, or one of them; [gates, padded H]. null stands for zeros.
template <class T>
void pack_bias(const T* b, const T* b_too, int gates, Index H, T* out) {
  for (Index g = 0; g < gates; ++g)
    for (Index j = 0; j < padded<T>(H); ++j) {
      const bool inside = j < H;
      const T one = b && inside ? b[g * H + j] : T(0);
      out[g * padded<T>(H) + j] = b_too && inside ? one + b_too[g * H + j] : one;
    }
}

}  // namespace rnnkern::RNNKERN_ISA

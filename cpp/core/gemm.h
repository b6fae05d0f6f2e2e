// The packed panel product: the one place where matrices are multiplied.
//
// C[r, n] = start[r, n] + sum over k of A[r, k] B[k, n]. Each element of C is one chain of fused
// multiply-adds over rising k, whatever the tile, the thread or the vector width: vectors run over
// n, never over k. A is broadcast through one pointer a row, so rows may lie anywhere. B lies in
// panels: a block is one vector of hidden units (or columns) with NV vectors for each k (the gates
// of those units), contiguous.
#pragma once

#include "work.h"

namespace rnnkern::RNNKERN_ISA {

// How the k axis of A is walked: `count` segments of `length` elements, `step` apart within a
// segment; segment s starts `start[s]` elements into the row. B is contiguous over all of k.
struct Depth {
  int count;
  Index length, step;
  Index start[4];
};

// Rows of one tile at most; the tile's accumulators leave room for a panel vector and broadcasts.
inline constexpr int kMostRows = kVectorRegisters == 32 ? 8 : 6;
inline constexpr int kAccumulators = kVectorRegisters == 32 ? 24 : 12;
inline constexpr int kMostBlocks = 8;

// acc[MR][NP][NV] += A B for MR rows and NP adjacent blocks, on registers.
template <class T, int NV, int MR, int NP>
__attribute__((noinline)) static void tile(const T* const* rows, const Depth& depth, const T* panel,
                                           Index panel_stride, T* acc) {
  using V = Vec<T>;
  V sum[MR][NP][NV];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[m][p][v] = load(acc + ((m * NP + p) * NV + v) * kLanes<T>);

  for (int s = 0; s < depth.count; ++s) {
    const T* a[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) a[m] = rows[m] + depth.start[s];
    const Index end = depth.length * depth.step;
    for (Index k = 0; k != end; k += depth.step) {
      // The shorter side of the tile stays in registers, the longer is taken one by one.
      if constexpr (NP * NV <= MR) {
        V b[NP][NV];
#pragma GCC unroll 8
        for (int p = 0; p < NP; ++p)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) b[p][v] = load(panel + p * panel_stride + v * kLanes<T>);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
          const V x = splat(a[m][k]);
#pragma GCC unroll 8
          for (int p = 0; p < NP; ++p)
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) sum[m][p][v] = fma(x, b[p][v], sum[m][p][v]);
        }
      } else {
        V x[MR];
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) x[m] = splat(a[m][k]);
#pragma GCC unroll 8
        for (int p = 0; p < NP; ++p)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) {
            const V b = load(panel + p * panel_stride + v * kLanes<T>);
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m) sum[m][p][v] = fma(x[m], b, sum[m][p][v]);
          }
      }
      panel += NV * kLanes<T>;
    }
  }

#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) store(acc + ((m * NP + p) * NV + v) * kLanes<T>, sum[m][p][v]);
}

template <class T>
using TileFunction = void (*)(const T* const*, const Depth&, const T*, Index, T*);

// The tile for mr rows and np blocks; np is 1, 2, 4 or 8, and only shapes that fit are made.
template <class T, int NV>
struct Tiles {
  template <int MR, int NP>
  static constexpr TileFunction<T> one() {
    if constexpr (MR * NP * NV <= kAccumulators) return &tile<T, NV, MR, NP>;
    return nullptr;
  }
  template <int NP>
  struct Row {
    TileFunction<T> of[8] = {one<1, NP>(), one<2, NP>(), one<3, NP>(), one<4, NP>(),
                             one<5, NP>(), one<6, NP>(), one<7, NP>(), one<8, NP>()};
  };
  static TileFunction<T> get(int mr, int np) {
    static constexpr Row<1> row1;
    static constexpr Row<2> row2;
    static constexpr Row<4> row4;
    static constexpr Row<8> row8;
    const auto& of = np == 1 ? row1.of : np == 2 ? row2.of : np == 4 ? row4.of : row8.of;
    return of[mr - 1];
  }
  static constexpr int most_rows = kAccumulators / NV < kMostRows ? kAccumulators / NV : kMostRows;
};

// Runs over the tiles of rows [0, rows) and blocks [first, last): for each, `start` fills the
// accumulators, the product is added, and `done` takes them. Row r's pointer is a[r].
// start and done are called as f(row, mr, block, np, acc), acc being [mr][np][NV][lanes].
// Blocks run outside and rows inside, so that a panel is used for all rows while it is in cache;
// for a given row, blocks come in rising order. Left early where the call is to end.
template <int NV, class T, class Start, class Done>
RNNKERN_INLINE void product(Watch& watch, Index rows, const T* const* a, const Depth& depth,
                            const T* panels, Index panel_stride, Index first, Index last,
                            const Start& start, const Done& done) {
  using Set = Tiles<T, NV>;
  alignas(kLineBytes) T acc[kAccumulators * kLanes<T>];
  if (rows <= 0) return;
  const Index groups = ceil_div(rows, Set::most_rows);
  const int tall = static_cast<int>(ceil_div(rows, groups));
  int widest = 1;
  while (widest < kMostBlocks && tall * widest * 2 * NV <= kAccumulators) widest *= 2;
  for (Index block = first; block < last;) {
    int np = widest;
    while (np > last - block) np /= 2;
    const T* panel = panels + block * panel_stride;
    const Index work = np * NV * depth.count * depth.length;  // of a row
    Index row = 0;
    for (Index g = 0; g < groups; ++g) {
      const int mr = static_cast<int>((rows - row) / (groups - g));
      start(row, mr, block, np, acc);
      Set::get(mr, np)(a + row, depth, panel, panel_stride, acc);
      done(row, mr, block, np, acc);
      row += mr;
      if (!go_on(watch, mr * work)) return;
    }
    block += np;
  }
}

}  // namespace rnnkern::RNNKERN_ISA

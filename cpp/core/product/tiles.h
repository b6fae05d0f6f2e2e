// The packed panel product: the one place where matrices are multiplied.
//
// C[r, n] = start[r, n] + sum over k of A[r, k] B[k, n]. Each element of C is one chain of fused
// multiply-adds over rising k, whatever the tile, the thread or the vector width: vectors run over
// n, never over k. A is broadcast through one pointer a row, so rows may lie anywhere. B lies in
// panels: a block is one vector of hidden units (or columns) of all of G gates; it has one panel or
// several, each contiguous, with some of the gates' vectors for each k.
//
// T is the type of the arithmetic, W the format that B is stored in (weights.h); everything else
// here takes it as it is.
#pragma once

#include "product/weights.h"
#include "threads/team.h"

namespace rnnkern::RNNKERN_ISA {

// How the k axis of A is walked: `count` segments of `length` elements, `stride` apart within a
// segment; segment s starts `start[s]` elements into the row. B is contiguous over all of k, but
// for a segment's last pair, which an odd length leaves half empty.
struct Depth {
  int count;
  Index length, stride;
  Index start[4];
  bool pairs = false;  // the elements of A are pairs, as those of B: one product each
};
template <class W>
constexpr Index panel_length(const Depth& depth) {
  return depth.count * (depth.pairs ? depth.length : elements_of<W>(depth.length));
}

inline constexpr Index kOnePlace[] = {0};

// Where C lies and what its chains start from.
template <class T>
struct Target {
  T* const* rows;   // vector v of block b of row r: rows[r] + place[v] + b * lanes
  const T* shared;  // laid out as a row is: what all rows start from; null: from where they stand
  bool from_zero;   // from nothing
  bool adds;        // C += start + A B instead: as a whole, after the chain
  Index columns;    // of a row; what a last block has beyond is not touched
  const Index* place = kOnePlace;
};

// Rows of one tile at most; the tile's accumulators leave workspace for a panel vector and
// broadcasts.
inline constexpr int kMostRows = kVectorRegisters == 32 ? 8 : 6;
inline constexpr int kAccumulators = kVectorRegisters == 32 ? 24 : 12;
inline constexpr int kMostPanels = 8;

// Vectors of a panel for each k. With twelve accumulators, four gates at once leave workspace for
// three rows only, and then panels come from cache more slowly than they could be used up.
template <int G>
inline constexpr int kPanel = G == 4 && kAccumulators < 24 ? 2 : G;

// One tile: MR rows of NP adjacent panels.
template <class T, class W = T>
struct TileCall {
  const T* const* a;
  T* const* to;
  const T* shared;
  bool from_zero;
  Index column;        // of the block, in elements
  const Index* place;  // of the first panel's first vector
  int segments;
  Index length, stride;
  const Index* start;
  const W* panel;      // at the first vector of the first k
  Index panel_stride;  // from panel to panel
};

// Where vector v of panel p of a tile stands in a row.
template <class T, int G, int NP>
struct Places {
  static constexpr int NV = kPanel<G>, panels = G / NV;
  Index slot[G];
  template <class W>
  explicit Places(const TileCall<T, W>& c) {
#pragma GCC unroll 4
    for (int v = 0; v < (NP < panels ? NP * NV : G); ++v) slot[v] = c.column + c.place[v];
  }
  Index operator()(int p, int v) const {
    return slot[p % panels * NV + v] + p / panels * kLanes<T>;
  }
};

// A tile's sums, in registers.
template <class T, int G, int MR, int NP, class W>
RNNKERN_INLINE void start_sums(const TileCall<T, W>& c, const Places<T, G, NP>& place,
                               Vec<T> (&sum)[MR][NP][kPanel<G>]) {
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    const T* from = c.shared ? c.shared : c.to[m];
#pragma GCC unroll 4
    for (int v = 0; v < kPanel<G>; ++v)
#pragma GCC unroll 8
      for (int p = 0; p < NP; ++p) sum[m][p][v] = c.from_zero ? Vec<T>{} : load(from + place(p, v));
  }
}

// Adds the products of one k, `at` elements into the rows of A: of value `term` of B's elements.
template <class T, int G, int MR, int NP, class W>
RNNKERN_INLINE void add_term(const W* panel, Index panel_stride, int term, const T* const (&a)[MR],
                             Index at, Vec<T> (&sum)[MR][NP][kPanel<G>]) {
  using V = Vec<T>;
  constexpr int NV = kPanel<G>;
  // The shorter side of the tile stays in registers, the longer is taken one by one.
  if constexpr (NP * NV <= MR) {
    V b[NP][NV];
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        b[p][v] = load_term<T>(panel + p * panel_stride + v * kLanes<T>, term);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const V x = splat(a[m][at]);
#pragma GCC unroll 8
      for (int p = 0; p < NP; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[m][p][v] = fma(x, b[p][v], sum[m][p][v]);
    }
  } else {
    V x[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) x[m] = splat(a[m][at]);
#pragma GCC unroll 8
    for (int p = 0; p < NP; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const V b = load_term<T>(panel + p * panel_stride + v * kLanes<T>, term);
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) sum[m][p][v] = fma(x[m], b, sum[m][p][v]);
      }
  }
}

template <class T, int G, int MR, int NP, class W>
RNNKERN_INLINE void multiply(const TileCall<T, W>& c, const Places<T, G, NP>& place,
                             Vec<T> (&sum)[MR][NP][kPanel<G>]) {
  constexpr int terms = kTerms<W>, width = kPanel<G> * kLanes<T>;
  start_sums<T, G, MR, NP>(c, place, sum);
  const W* panel = c.panel;
  const Index panel_stride = c.panel_stride, stride = c.stride;
  const Index end = c.length / terms * terms * stride;
  for (int s = 0; s < c.segments; ++s) {
    const T* a[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) a[m] = c.a[m] + c.start[s];
    for (Index k = 0; k != end; k += terms * stride) {
#pragma GCC unroll 2
      for (int term = 0; term < terms; ++term)
        add_term<T, G, MR, NP>(panel, panel_stride, term, a, k + term * stride, sum);
      panel += width;
    }
    if constexpr (terms > 1) {
      if (c.length % terms == 0) continue;
      add_term<T, G, MR, NP>(panel, panel_stride, 0, a, end, sum);
      panel += width;
    }
  }
}

template <class T, int G, int MR, int NP>
RNNKERN_INLINE void store_sums(T* const* to, const Places<T, G, NP>& place,
                               const Vec<T> (&sum)[MR][NP][kPanel<G>]) {
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
    T* const row = to[m];
#pragma GCC unroll 4
    for (int v = 0; v < kPanel<G>; ++v)
#pragma GCC unroll 8
      for (int p = 0; p < NP; ++p) store(row + place(p, v), sum[m][p][v]);
  }
}

template <class T, int G, int MR, int NP, class W>
__attribute__((noinline)) void tile(const TileCall<T, W>& c) {
  // In locals: what the rows' stores might change, as far as the compiler knows.
  const Places<T, G, NP> place(c);
  T* const* const to = c.to;
  Vec<T> sum[MR][NP][kPanel<G>];
  multiply(c, place, sum);
  store_sums<T, G, MR, NP>(to, place, sum);
}

#if defined(RNNKERN_BF16_TARGET)
// The same where the elements of A, too, are pairs.
template <int G, int MR, int NP>
RNNKERN_BF16_TARGET __attribute__((noinline)) void tile_of_pairs(
    const TileCall<float, Bf16Pair>& c) {
  constexpr int NV = kPanel<G>;
  typedef std::int32_t Word __attribute__((may_alias));
  const Places<float, G, NP> place(c);
  float* const* const to = c.to;
  Vec<float> sum[MR][NP][NV];
  start_sums<float, G, MR, NP>(c, place, sum);
  const Bf16Pair* panel = c.panel;
  const Index panel_stride = c.panel_stride, stride = c.stride, end = c.length * stride;
  for (int s = 0; s < c.segments; ++s) {
    const Word* a[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) a[m] = reinterpret_cast<const Word*>(c.a[m] + c.start[s]);
    for (Index k = 0; k != end; k += stride, panel += NV * kLanes<float>) {
      __m512bh b[NP][NV];
#pragma GCC unroll 8
      for (int p = 0; p < NP; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v)
          b[p][v] =
              reinterpret_cast<__m512bh>(load_pairs(panel + p * panel_stride + v * kLanes<float>));
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(a[m][k]));
#pragma GCC unroll 8
        for (int p = 0; p < NP; ++p)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sum[m][p][v] = _mm512_dpbf16_ps(sum[m][p][v], x, b[p][v]);
      }
    }
  }
  store_sums<float, G, MR, NP>(to, place, sum);
}
#endif

// What the tiles of a product have in common, and what a tile from some panel on has of its own.
template <int G, class T, class W>
RNNKERN_INLINE TileCall<T, W> call_of(const Depth& depth, const Target<T>& c) {
  TileCall<T, W> call;
  call.shared = c.shared, call.from_zero = c.from_zero;
  call.segments = depth.count, call.length = depth.length, call.stride = depth.stride;
  call.start = depth.start;
  call.panel_stride = panel_length<W>(depth) * kPanel<G> * kLanes<T>;
  return call;
}
template <int G, class T, class W>
RNNKERN_INLINE void select_panel(TileCall<T, W>& call, const W* panels, Index panel,
                                 const Target<T>& c) {
  constexpr int NV = kPanel<G>, S = G / NV;
  call.column = panel / S * kLanes<T>;
  call.place = c.place + panel % S * NV;
  call.panel = panels + panel * call.panel_stride;
}

template <class T, class W>
using TileFunction = void (*)(const TileCall<T, W>&);

// A tile of one vector a block whose C is not to be written in whole vectors: by way of a buffer.
template <class T, class W>
void through_buffer(TileFunction<T, W> tile, const TileCall<T, W>& call, const Target<T>& c, int mr,
                    int np) {
  alignas(RNNKERN_VECTOR_BYTES) T buffer[kMostRows][kMostPanels * kLanes<T>];
  T* rows[kMostRows];
  const Index width = least(np * kLanes<T>, c.columns - call.column);
  for (int m = 0; m < mr; ++m) {
    rows[m] = buffer[m];
    if (!call.from_zero && !call.shared)
      for (Index j = 0; j < width; j += kLanes<T>)
        store(buffer[m] + j, load_n(call.to[m] + call.column + j, width - j));
  }
  TileCall<T, W> inner = call;
  inner.to = rows, inner.column = 0;
  if (call.shared) inner.shared += call.column;
  tile(inner);
  for (int m = 0; m < mr; ++m)
    for (Index j = 0; j < width; j += kLanes<T>) {
      T* to = call.to[m] + call.column + j;
      const Vec<T> v = load(buffer[m] + j);
      store_n(to, c.adds ? load_n(to, width - j) + v : v, width - j);
    }
}

// The tiles of G gates; np is 1, 2, 4 or 8, and only shapes that fit are made.
template <class T, int G, class W>
struct Tiles {
  static constexpr int NV = kPanel<G>;
  template <bool pairs, int MR, int NP>
  static constexpr TileFunction<T, W> one() {
    if constexpr (MR * NP * NV > kAccumulators) return nullptr;
#if defined(RNNKERN_BF16_TARGET)
    else if constexpr (pairs)
      return &tile_of_pairs<G, MR, NP>;
#endif
    else
      return &tile<T, G, MR, NP, W>;
  }
  template <bool pairs, int NP>
  struct Row {
    TileFunction<T, W> of[8] = {one<pairs, 1, NP>(), one<pairs, 2, NP>(), one<pairs, 3, NP>(),
                                one<pairs, 4, NP>(), one<pairs, 5, NP>(), one<pairs, 6, NP>(),
                                one<pairs, 7, NP>(), one<pairs, 8, NP>()};
  };
  template <bool pairs>
  static TileFunction<T, W> of_kind(int mr, int np) {
    static constexpr Row<pairs, 1> row1;
    static constexpr Row<pairs, 2> row2;
    static constexpr Row<pairs, 4> row4;
    static constexpr Row<pairs, 8> row8;
    const auto& of = np == 1 ? row1.of : np == 2 ? row2.of : np == 4 ? row4.of : row8.of;
    return of[mr - 1];
  }
  static TileFunction<T, W> get(int mr, int np, [[maybe_unused]] bool pairs) {
#if defined(RNNKERN_BF16_TARGET)
    if constexpr (kTerms<W> == 2)
      if (pairs) return of_kind<true>(mr, np);
#endif
    return of_kind<false>(mr, np);
  }
  static constexpr int most_rows = kAccumulators / NV < kMostRows ? kAccumulators / NV : kMostRows;
};

// Panels that one tile takes for so many rows, and how many blocks that makes, one at least. Each
// panel is a stream of its own: with 64-byte vectors, a line at a time, two or four come from cache
// faster than eight, and are enough for the chains that hide a multiply-add's latency.
template <int G>
constexpr int panels_at_once(int rows, Index depth) {
  constexpr int vectors = kPanel<G>;
  int widest = kMostPanels;
  if (RNNKERN_VECTOR_BYTES == 64)
    widest = vectors > 2 ? 2 : vectors == 2 || depth > 128 ? 4 : widest;
  int panels = 1;
  while (panels < widest && rows * panels * 2 * vectors <= kAccumulators) panels *= 2;
  return panels;
}
template <int G>
constexpr Index blocks_at_once(Index rows, Index depth) {
  return most(1,
              panels_at_once<G>(static_cast<int>(least(rows, kMostRows)), depth) * kPanel<G> / G);
}

// Whether one tile takes all panels, as in small streams: their steps are too short for loops over
// tiles.
inline bool is_one_tile(Index panels, int widest) {
  return panels <= widest && (panels & (panels - 1)) == 0;
}

// C for `rows` rows and the given blocks, as many blocks at a time as one tile takes, or one block.
// done(block, blocks) comes as soon as some blocks are complete for all rows, while they are in
// cache. `backwards` takes the blocks from the last to the first: who goes over the same panels
// again and again in turns finds in cache what came last. Left early where the call is to end.
template <int G, class T, class W, class Done>
RNNKERN_INLINE void product(CancelToken& token, Index rows, const T* const* a, const Depth& depth,
                            const W* panels, Range blocks, bool backwards, const Target<T>& c,
                            const Done& done) {
  using Set = Tiles<T, G, W>;
  constexpr int NV = Set::NV, S = G / NV;  // panels of a block
  if (rows <= 0 || blocks.size() <= 0) return;
  const Index groups = ceil_div(rows, Set::most_rows);
  const int tall = static_cast<int>(ceil_div(rows, groups));
  const Index length = panel_length<W>(depth);
  const int widest = panels_at_once<G>(tall, length);
  const Index width = most(widest, S), count = blocks.size() * S;
  TileCall<T, W> call = call_of<G, T, W>(depth, c);
  const Index work = length * NV;  // of a row and panel
  const auto run = [&](int mr, Index panel, int np) __attribute__((always_inline)) {
    select_panel<G>(call, panels, panel, c);
    const TileFunction<T, W> tile = Set::get(mr, np, depth.pairs);
    if (G == 1 && (c.adds || call.column + np * kLanes<T> > c.columns))
      through_buffer(tile, call, c, mr, np);
    else
      tile(call);
  };
  if (groups == 1 && is_one_tile(count, widest)) {
    call.a = a, call.to = c.rows;
    run(tall, blocks.first * S, static_cast<int>(count));
    if (go_on(token, rows * count * work)) done(blocks.first, static_cast<int>(blocks.size()));
    return;
  }
  const Index turns = ceil_div(count, width);
  for (Index i = 0; i < turns; ++i) {
    const Index begin = (backwards ? turns - 1 - i : i) * width, end = least(begin + width, count);
    Index row = 0;
    for (Index g = 0; g < groups; ++g) {
      const int mr = static_cast<int>((rows - row) / (groups - g));
      call.a = a + row, call.to = c.rows + row;
      int np = widest;
      for (Index p = begin; p < end; p += np) {
        while (np > end - p) np /= 2;
        run(mr, blocks.first * S + p, np);
      }
      row += mr;
      if (!go_on(token, mr * (end - begin) * work)) return;
    }
    done(blocks.first + begin / S, static_cast<int>((end - begin) / S));
  }
}

// The same for one row, whose sums are not put down: take(call, block, panels) is to multiply, and
// finds them in registers.
template <int G, class T, class W, class Take>
RNNKERN_INLINE void one_row_product(CancelToken& token, const T* const* a, const Depth& depth,
                                    const W* panels, Range blocks, bool backwards,
                                    const Target<T>& c, const Take& take) {
  constexpr int NV = kPanel<G>, S = G / NV;
  TileCall<T, W> call = call_of<G, T, W>(depth, c);
  call.a = a, call.to = c.rows;
  const Index length = depth.count * depth.length, count = blocks.size() * S;
  const int width = panels_at_once<G>(1, length);  // a power of two
  if (is_one_tile(count, width)) {
    select_panel<G>(call, panels, blocks.first * S, c);
    take(call, blocks.first, static_cast<int>(count));
    go_on(token, count * length * NV);
    return;
  }
  for (Index i = backwards ? (count - 1) & -width : 0; i >= 0 && i < count;
       i += backwards ? -width : width) {
    const Index end = least(i + width, count);
    int np = width;
    for (Index p = i; p < end; p += np) {
      while (np > end - p) np /= 2;
      select_panel<G>(call, panels, blocks.first * S + p, c);
      take(call, blocks.first + p / S, np);
    }
    if (!go_on(token, (end - i) * length * NV)) return;
  }
}

}  // namespace rnnkern::RNNKERN_ISA

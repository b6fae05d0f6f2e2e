// Weights and operands laid out in panels, as tiles.h takes them. Places past the end are zeros.
#pragma once

#include "product/tiles.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
inline constexpr Index blocks_of(Index n) {
  return ceil_div(n, kLanes<T>);
}

// Which part of its operand a unit's rows of a matrix see: all of it, or their own head's.
//
// The units of a cache line share one range of the operand: the heads that the line touches. All
// ranges are as long as the longest, so some hold heads beside these; what a range holds of other
// heads than a unit's own is multiplied by zeros. All instruction sets cut units into parts of
// lines, so a unit's chains have the same terms on each of them.
template <class T>
struct Heads {
  Index units;   // of all heads: the operand's length
  Index size;    // units of one head: the matrix's columns
  Index length;  // of a range

  static Heads of(Index units, Index count) {
    if (count == 1) return {units, units, units};  // most cells: no division
    Heads heads{units, units / count, units / count};
    if (heads.size % kLine<T> == 0) return heads;
    for (Index first = 0; first < units; first += kLine<T>) {
      const Index last = least(units, first + kLine<T>) - 1;
      const Index touched = last / heads.size - first / heads.size + 1;
      heads.length = most(heads.length, touched * heads.size);
    }
    return heads;
  }
  bool is_one() const { return size == units; }
  Index count() const { return units / size; }

  // Where the range of a block's line begins.
  Index range_of(Index block) const {
    if (is_one()) return 0;
    const Index unit = block * kLanes<T> / kLine<T> * kLine<T>;
    return least(unit / size * size, units - length);
  }
  // The first block after `block`, up to `end`, of another range.
  Index next_range(Index block, Index end) const {
    const Index first = range_of(block);
    if (first == units - length) return end;
    return least(end, padded<T>(first + size) / kLanes<T>);
  }
  // A vector from k on of what a row of the matrix holds for the operand, zeros for other heads and
  // past the end.
  Vec<T> row(const T* w, Index row, Index unit, Index k) const {
    const T* const of_head = w + row * size;
    if (is_one()) return load_n(of_head + k, size - k);
    const Index first = unit / size * size;
    if (k >= first)
      return k < first + size ? load_n(of_head + k - first, first + size - k) : Vec<T>{};
    alignas(RNNKERN_VECTOR_BYTES) T part[kLanes<T>] = {};
    for (Index i = first - k; i < least(kLanes<T>, first + size - k); ++i)
      part[i] = of_head[k + i - first];
    return load<T>(part);
  }
};

// Blocks of W^T for forward: block, then panel, then k of the block's range, then gate of the
// panel, then unit. w: [.., head size], rows gate * H + unit, gates [gate, gate + G).
template <int G, class T, class W>
void pack_gates(CancelToken& token, const T* w, int gate, Index H, const Heads<T>& heads,
                Range blocks, W* out) {
  constexpr Index lanes = kLanes<T>, NV = kPanel<G>, terms = kTerms<W>;
  const Index K = heads.length;
  for (Index block = blocks.first; block < blocks.last; ++block) {
    const Index range = heads.range_of(block);
    for (Index first = 0; first < G; first += NV) {
      W* panel = out + (block * G + first) * elements_of<W>(K) * lanes;
      for (Index k = 0; k < K; k += lanes)
        for (Index g = 0; g < NV; ++g) {
          const Index row = (gate + first + g) * H, unit = block * lanes;
          W* const to = panel + (k / terms * NV + g) * lanes;
          Vec<T> v[lanes];
          if (heads.is_one() && unit + lanes <= H && k + lanes <= K) {  // most are whole
            for (Index i = 0; i < lanes; ++i) v[i] = load(w + (row + unit + i) * K + k);
            transpose<T>(v);
            for (Index i = 0; i < lanes; i += terms)
              store_terms<T>(to + i / terms * NV * lanes, v + i);
            continue;
          }
          for (Index i = 0; i < lanes; ++i)
            v[i] = unit + i < H ? heads.row(w, row + unit + i, unit + i, range + k) : Vec<T>{};
          transpose<T>(v);
          for (Index i = 0; i < least(lanes, K - k); i += terms)
            store_terms<T>(to + i / terms * NV * lanes, v + i);
        }
      if (!go_on(token, NV * K)) return;
    }
  }
}

// Column blocks of a row-major matrix: block, then row, then column in the block.
// row(k) points at row k of `columns` elements; out: [blocks, rows, lanes]. False: leave.
template <class T, class W, class Row>
bool pack_columns(CancelToken& token, const Row& row, Index rows, Index columns, Range blocks,
                  W* out) {
  constexpr Index lanes = kLanes<T>, terms = kTerms<W>;
  for (Index block = blocks.first; block < blocks.last; ++block) {
    const Index left = columns - block * lanes;
    W* to = out + block * elements_of<W>(rows) * lanes;
    for (Index k = 0; k < rows; k += terms, to += lanes) {
      Vec<T> v[terms] = {};
      for (Index i = 0; i < terms && k + i < rows; ++i)
        if (const T* from = row(k + i)) v[i] = load_n(from + block * lanes, left);
      store_terms<T>(to, v);
    }
    if (!go_on(token, rows)) return false;
  }
  return true;
}

// The same of `gates` matrices [units, columns], one behind the other; out: [blocks, gates, units,
// lanes].
template <class T, class W>
void pack_columns(CancelToken& token, const T* w, Index gates, Index units, Index columns,
                  Range blocks, W* out) {
  const Index size = elements_of<W>(units) * kLanes<T>;
  for (Index block = blocks.first; block < blocks.last; ++block)
    for (Index g = 0; g < gates; ++g) {
      const auto row = [&](Index k) { return w + (g * units + k) * columns + block * kLanes<T>; };
      if (!pack_columns<T>(token, row, units, columns - block * kLanes<T>, {0, 1},
                           out + (block * gates + g) * size))
        return;
    }
}

// The same of blocks on the diagonal: of each gate the rows in the block's range. w: [gates *
// units, head size]; out: [blocks, gates, range, lanes].
template <class T, class W>
void pack_columns(CancelToken& token, const T* w, const Heads<T>& heads, Index gates, Range blocks,
                  W* out) {
  constexpr Index lanes = kLanes<T>, terms = kTerms<W>;
  for (Index block = blocks.first; block < blocks.last; ++block) {
    const Index range = heads.range_of(block);
    W* to = out + block * gates * elements_of<W>(heads.length) * lanes;
    for (Index g = 0; g < gates; ++g)
      for (Index i = 0; i < heads.length; i += terms, to += lanes) {
        Vec<T> v[terms] = {};
        for (Index n = 0; n < terms && i + n < heads.length; ++n) {
          const Index unit = range + i + n;
          v[n] = heads.row(w, g * heads.units + unit, unit, block * lanes);
        }
        store_terms<T>(to, v);
      }
    if (!go_on(token, gates * heads.length)) return;
  }
}

// ---- operands rounded to bf16 -------------------------------------------------------------------

// The rows of A in bf16, as tiles take them: pairs where the machine sums these, floats elsewhere.
template <class T>
struct RoundedRows {
  T* values;
  const T** rows;
  Index row;  // elements from one to the next
  void allocate(Arena& arena, Index n, Index width) {
    row = padded<T>(width);
    values = arena.allocate<T>(n * row);
    rows = arena.allocate<const T*>(n);
  }
};

// Rounds what `depth` takes of n rows of A, segment after segment, from row `first` of `to` on, and
// makes `depth` that of the rounded rows, which it returns.
inline const float* const* round_rows(const RoundedRows<float>& to, Index first, Index n,
                                      const float* const* a, Depth& depth) {
  const bool pairs = sums_pairs();
  const Index length = pairs ? elements_of<Bf16Pair>(depth.length) : padded<float>(depth.length);
  for (Index r = 0; r < n; ++r) {
    float* const row = to.values + (first + r) * to.row;
    to.rows[first + r] = row;
    for (int s = 0; s < depth.count; ++s)
      (pairs ? pair_bf16 : round_to_bf16)(a[r] + depth.start[s], depth.length, row + s * length);
  }
  for (int s = 0; s < depth.count; ++s) depth.start[s] = s * length;
  depth.pairs = pairs;
  if (pairs) depth.length = length;
  return to.rows + first;
}

// The sum of the gates' two biases, or one of them; [gates, padded H]. null means zeros.
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

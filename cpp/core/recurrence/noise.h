// The noise of a cell, drawn for each step: what a training forward draws, its backward draws again
// instead of storing it.
#pragma once

#include "cells/contract.h"
#include "training/random.h"

namespace rnnkern::RNNKERN_ISA {

// `kept` where a word is not below `dropped`, zero elsewhere.
RNNKERN_INLINE Vec<float> where_kept(const std::uint32_t* words, std::uint32_t dropped,
                                     Vec<float> kept) {
  VectorOf<float>::Bits bits;
  __builtin_memcpy(&bits, words, sizeof bits);
  return bits < dropped ? Vec<float>{} : kept;
}
RNNKERN_INLINE Vec<double> where_kept(const std::uint32_t* words, std::uint32_t dropped,
                                      Vec<double> kept) {
  typedef std::uint32_t Half __attribute__((vector_size(RNNKERN_VECTOR_BYTES / 2)));
  typedef std::int64_t Wide __attribute__((vector_size(RNNKERN_VECTOR_BYTES)));  // of a comparison
  Half half;
  __builtin_memcpy(&half, words, sizeof half);
  const Wide wide = __builtin_convertvector(half, Wide);
  return wide < static_cast<std::int64_t>(dropped) ? Vec<double>{} : kept;
}

// Where the noise of one direction comes from. A word of the generator makes a value: a function of
// seed, training step, layer, direction, time step, row and unit.
template <class T>
struct NoiseSource {
  unsigned reads;  // bit n: the cell reads noise[n]
  const CellConstants& constants;
  const Dropout& dropout;
  const Schedule& rows;
  Index layer;
  bool reverse;

  bool draws(int of) const {
    return dropout.training && reads >> of & 1u && constants.noise[of] > 0;
  }
  // What is read where nothing is drawn.
  T mean(int of) const {
    return of == recurrent_dropout ? T(1) : static_cast<T>(1 - constants.noise[of]);
  }

  // The values of step t for n of a part's rows and for its units: to row(of, r).
  template <class Row>
  void draw(Index t, const WorkShare& part, Index n, const Row& row) const {
    if (!reads || !dropout.training) return;
    const KeySchedule keys(mix(dropout.seed, dropout.step));
    for (int of = 0; of < kNoises; ++of) {
      if (!draws(of)) continue;
      for (Index r = part.rows.first; r < part.rows.first + n; ++r) {
        draw(of, t, row_of(rows, r), part.blocks, keys, row(of, r));
        constexpr Index vector_operations = 16;  // of a vector of values, about
        if (!part.team.worked(part.blocks.size() * vector_operations)) return;
      }
    }
  }

 private:
  static constexpr Index units = 4 * kLanes<double>;  // of a vector of counters
  static constexpr Index together = units / kLanes<T>;

  void draw(int of, Index t, Index row, Range blocks, const KeySchedule& keys, T* to) const {
    const Words counter{{0, static_cast<std::uint32_t>(dropout.first_row + row),
                         static_cast<std::uint32_t>(dropout.first + t),
                         noise_place(of, layer, reverse)}};
    const double p = constants.noise[of];
    const auto dropped = static_cast<std::uint32_t>(p * 4294967296.0);  // of 2^32 words
    const Vec<T> kept = splat(of == recurrent_dropout ? static_cast<T>(1 / (1 - p)) : T(1));
    Index b = blocks.first / together * together;
    for (; b + together < blocks.last; b += 2 * together)
      draw<2>(counter, b, blocks, keys, dropped, kept, to);
    if (b < blocks.last) draw<1>(counter, b, blocks, keys, dropped, kept, to);
  }
  template <int N>
  RNNKERN_INLINE void draw(const Words& counter, Index b, Range blocks, const KeySchedule& keys,
                           std::uint32_t dropped, Vec<T> kept, T* to) {
    alignas(RNNKERN_VECTOR_BYTES) std::uint32_t words[N * units];
    draw_words<N>(counter, static_cast<std::uint64_t>(b * kLanes<T> / 4), keys, words);
    const Index last = least(N * together, blocks.last - b);
    for (Index i = most(0, blocks.first - b); i < last; ++i)
      store(to + (b + i) * kLanes<T>, where_kept(words + i * kLanes<T>, dropped, kept));
  }
};

}  // namespace rnnkern::RNNKERN_ISA

// The counter-based generator behind dropout and the noise of cells: Philox4x32-10, Salmon et al.
// 2011, "Parallel random numbers: as easy as 1, 2, 3", SC'11. A mask element is a function of seed,
// training step, layer, time step, row and channel, so it is the same for any threads, batch and
// padding, and backward draws it again instead of storing it.
#pragma once

#include "threads/team.h"

namespace rnnkern::RNNKERN_ISA {

struct Words {
  std::uint32_t of[4];
};

inline Words philox(Words counter, std::uint64_t key) {
  std::uint32_t low = static_cast<std::uint32_t>(key), high = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter.of[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter.of[2];
    counter = {{static_cast<std::uint32_t>(b >> 32) ^ counter.of[1] ^ low,
                static_cast<std::uint32_t>(b),
                static_cast<std::uint32_t>(a >> 32) ^ counter.of[3] ^ high,
                static_cast<std::uint32_t>(a)}};
    low += 0x9E3779B9, high += 0xBB67AE85;
  }
  return counter;
}

// The key of each round.
struct KeySchedule {
  explicit KeySchedule(std::uint64_t key) {
    std::uint32_t low = static_cast<std::uint32_t>(key);
    std::uint32_t high = static_cast<std::uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round, low += 0x9E3779B9, high += 0xBB67AE85)
      of[round][0] = low, of[round][1] = high;
  }
  std::uint64_t of[10][2];
};

// Words of N kLanes<double> counters side by side: those of {first, ...}, {first + 1, ...} and so
// on, one counter's four behind the other's. The vectors hold words in 64-bit elements, whose upper
// halves are of no account.
template <int N>
RNNKERN_INLINE void draw_words(const Words& counter, std::uint64_t first, const KeySchedule& keys,
                               std::uint32_t* to) {
  constexpr WideBits zero{};
  WideBits numbers{};
  for (int i = 0; i < kLanes<double>; ++i) numbers[i] = first + static_cast<std::uint64_t>(i);
  WideBits c[N][4];
  for (int n = 0; n < N; ++n) {
    for (int i = 1; i < 4; ++i) c[n][i] = zero + counter.of[i];
    c[n][0] = numbers + static_cast<std::uint64_t>(n * kLanes<double>);
  }
  const WideBits multiplier_a = zero + 0xD2511F53, multiplier_b = zero + 0xCD9E8D57;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const WideBits low = zero + keys.of[round][0], high = zero + keys.of[round][1];
#pragma GCC unroll 2
    for (WideBits(&w)[4] : c) {
      const WideBits a = multiply_halves(w[0], multiplier_a);
      const WideBits b = multiply_halves(w[2], multiplier_b);
      w[0] = (b >> 32) ^ w[1] ^ low;
      w[1] = b;
      w[2] = (a >> 32) ^ w[3] ^ high;
      w[3] = a;
    }
  }
  const auto two = [](WideBits a, WideBits b) __attribute__((always_inline)) {
    return reinterpret_cast<Vec<double>>((a & 0xFFFFFFFF) | b << 32);
  };
  for (int n = 0; n < N; ++n) {
    Vec<double> pairs[2];
    zip<double>(two(c[n][0], c[n][1]), two(c[n][2], c[n][3]), pairs[0], pairs[1]);
    __builtin_memcpy(to + n * 4 * kLanes<double>, pairs, sizeof pairs);
  }
}

// The last word of a counter of a cell's noise. That of dropout is a layer, which is below 2^16.
inline std::uint32_t noise_place(int of, Index layer, bool reverse) {
  return static_cast<std::uint32_t>((1 + 2 * of + reverse) << 16) |
         static_cast<std::uint32_t>(layer);
}

// The finalizer of SplitMix64 (Steele, Lea & Flood 2014): spreads seed and step over the key.
inline std::uint64_t mix(std::uint64_t seed, std::uint64_t step) {
  std::uint64_t z = seed + (step + 1) * 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// to = from * mask / (1 - p) on the rows alive, for the input of layer `layer`; in place or not.
template <class T>
void apply_dropout(const Dropout& dropout, Index layer, const Schedule& rows, Index channels,
                   Sequence<const T> from, Sequence<T> to, const Team& team) {
  const std::uint64_t key = mix(dropout.seed, dropout.step);
  const auto dropped = static_cast<std::uint64_t>(dropout.p * 4294967296.0);  // of 2^32 words
  const T scale = static_cast<T>(1.0 / (1.0 - dropout.p));
  const Range steps = team.share_of(rows.T);
  for (Index t = steps.first; t < steps.last; ++t)
    for (Index r = 0; r < alive_at(rows, t); ++r) {
      const Index b = row_of(rows, r);
      const T* source = from.data + t * from.time_stride + b * from.row_stride;
      T* target = to.data + t * to.time_stride + b * to.row_stride;
      for (Index c = 0; c < channels; c += 4) {
        const Words words = philox(
            {{static_cast<std::uint32_t>(c / 4), static_cast<std::uint32_t>(dropout.first_row + b),
              static_cast<std::uint32_t>(dropout.first + t), static_cast<std::uint32_t>(layer)}},
            key);
        for (Index i = 0; i < least(4, channels - c); ++i)
          target[c + i] = words.of[i] < dropped ? T(0) : source[c + i] * scale;
      }
      if (!team.worked(channels)) return;
    }
}

}  // namespace rnnkern::RNNKERN_ISA

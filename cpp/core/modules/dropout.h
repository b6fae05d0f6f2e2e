// Dropout of a sequence's elements. The masks' owner is training/random.h.
#pragma once

#include "modules/calls.h"
#include "training/random.h"

namespace rnnkern::RNNKERN_ISA {

inline constexpr Index kWordsAtOnce = 8 * kLanes<double>;  // of two vectors of counters

// The words of some channels of a row and step; up to the next multiple of kWordsAtOnce.
inline void draw_channels(const KeySchedule& keys, Index step, Index row, Index channel, Index n,
                          std::uint32_t* words) {
  const Words counter{{0, static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(step), 0}};
  for (Index c = 0; c < n; c += kWordsAtOnce)
    draw_words<2>(counter, static_cast<std::uint64_t>((channel + c) / 4), keys, words + c);
}

// to = factor from where a word is not below `dropped`, else zero.
template <class T>
RNNKERN_INLINE void drop(const T* from, T* to, Index n, const std::uint32_t* words,
                         std::uint32_t dropped, T factor) {
  using Bits = typename VectorOf<T>::Bits;
  for (Index c = 0; c < n; c += kLanes<T>) {
    Bits word;
    if constexpr (sizeof(T) == 4)
      __builtin_memcpy(&word, words + c, sizeof word);
    else
      for (Index i = 0; i < kLanes<T>; ++i) word[i] = words[c + i];
    const Vec<T> kept = load_n(from + c, n - c) * factor;
    store_n(to + c, word < dropped ? Vec<T>{} : kept, n - c);
  }
}

template <class T>
void dropout(const DropoutCall<T>& call) {
  constexpr Index at_once = 1024;  // channels
  const Index B = call.B, C = call.C, rows = call.steps * B;
  constexpr Index fewest_of_a_thread = 1 << 12;  // elements
  const Index parts = call.variational ? B : rows;
  const Index worthwhile = least(parts, rows * C / fewest_of_a_thread);
  const int threads = static_cast<int>(most(1, least(call.threads, worthwhile)));
  const KeySchedule keys(mix(call.seed, call.step));
  const auto dropped = static_cast<std::uint32_t>(call.p * 4294967296.0);  // of 2^32 words
  const T factor = static_cast<T>(1.0 / (1.0 - call.p));
  parallel(threads, call.interrupt, [&](CancelToken& token, int thread, int count) {
    alignas(kLineBytes) std::uint32_t words[at_once];
    const Range mine = share(parts, thread, count);
    for (Index part = mine.first; part < mine.last; ++part)
      for (Index c = 0; c < C; c += at_once) {
        const Index n = least(at_once, C - c), end = call.variational ? rows : part + 1;
        if (call.variational) draw_channels(keys, 0, call.first_row + part, c, n, words);
        for (Index row = part; row < end; row += B) {
          const Index step = call.places ? call.places[row] : row / B;
          T* const to = call.y + row * C + c;
          if (step < 0) {
            for (Index i = 0; i < n; ++i) to[i] = T(0);
          } else {
            if (!call.variational) draw_channels(keys, step, call.first_row + row % B, c, n, words);
            drop(call.x + row * C + c, to, n, words, dropped, factor);
          }
          if (!go_on(token, ceil_div(n, kLanes<T>) * (call.variational ? 4 : 50))) return;
        }
      }
  });
}

}  // namespace rnnkern::RNNKERN_ISA

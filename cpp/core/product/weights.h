// The formats that a product's panels are stored in: how a vector of T is read from a panel of W,
// and how packing writes it.
#pragma once

#include "simd/bf16.h"

namespace rnnkern::RNNKERN_ISA {

// Values for successive k in one element of a panel, and the elements that n values take.
template <class W>
inline constexpr int kTerms = 1;
template <>
inline constexpr int kTerms<Bf16Pair> = 2;
template <class W>
constexpr Index elements_of(Index n) {
  return kTerms<W> == 1 ? n : ceil_div(n, kTerms<W>);
}

// float or double, as the arithmetic.
template <class T>
RNNKERN_INLINE Vec<T> load_panel(const T* from) {
  return load(from);
}
template <class T>
RNNKERN_INLINE void store_panel(T* to, Vec<T> v) {
  store<T>(to, v);
}

// Pairs of bf16.
typedef std::uint32_t UnalignedFloatBits
    __attribute__((vector_size(RNNKERN_VECTOR_BYTES), aligned(4), may_alias));
RNNKERN_INLINE FloatBits load_pairs(const Bf16Pair* from) {
  return *reinterpret_cast<const UnalignedFloatBits*>(from);
}
RNNKERN_INLINE void store_pairs(Bf16Pair* to, Vec<float> first, Vec<float> second) {
  *reinterpret_cast<UnalignedFloatBits*>(to) = bf16_bits(first) | bf16_bits(second) >> 16;
}

// Value `term` of each element.
template <class T, class W>
RNNKERN_INLINE Vec<T> load_term(const W* from, int term) {
  if constexpr (kTerms<W> == 1) {
    return load_panel<T>(from);
  } else {
    const FloatBits pairs = load_pairs(from);
    return reinterpret_cast<Vec<float>>(term == 0 ? pairs & 0xffff0000u : pairs << 16);
  }
}
// Stores the values for kTerms<W> successive k.
template <class T, class W>
RNNKERN_INLINE void store_terms(W* to, const Vec<T>* v) {
  if constexpr (kTerms<W> == 1)
    store_panel<T>(to, v[0]);
  else
    store_pairs(to, v[0], v[1]);
}

}  // namespace rnnkern::RNNKERN_ISA

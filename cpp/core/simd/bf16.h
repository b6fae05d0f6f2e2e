// bf16, the upper half of a float: rounding to it, and pairs of it.
//
// Rounding is to nearest even. A subnormal becomes a zero of its sign, and a nan keeps the upper
// half of its payload, as the instructions of AVX-512 BF16 have it.
#pragma once

#include "simd/simd.h"

namespace rnnkern::RNNKERN_ISA {

// Two values for successive k, the first in the upper half. vdpbf16ps adds the product of the upper
// halves first, then that of the lower ones, each by a fused multiply-add, so that its sum is the
// chain over rising k (docs/decisions/0020).
struct Bf16Pair {
  std::uint32_t bits;
};

using FloatBits = VectorOf<float>::Bits;

// In the upper half of each element, the lower half zero.
RNNKERN_INLINE FloatBits bf16_bits(Vec<float> v) {
  typedef std::int32_t Signed __attribute__((vector_size(RNNKERN_VECTOR_BYTES)));
  const FloatBits bits = reinterpret_cast<FloatBits>(v);
  const Signed magnitude = reinterpret_cast<Signed>(bits & 0x7fffffffu);
  FloatBits rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  rounded = magnitude > 0x7f800000 ? bits | 0x00400000u : rounded;
  rounded = magnitude < 0x00800000 ? bits & 0x80000000u : rounded;
  return rounded & 0xffff0000u;
}
RNNKERN_INLINE Vec<float> rounded_to_bf16(Vec<float> v) {
  return reinterpret_cast<Vec<float>>(bf16_bits(v));
}

// The same of n elements; `to` has room for whole vectors.
inline void round_to_bf16(const float* from, Index n, float* to) {
  for (Index j = 0; j < n; j += kLanes<float>)
    store(to + j, rounded_to_bf16(load_n(from + j, n - j)));
}

// Whether products sum pairs by vdpbf16ps: where the machine has it, and it is faster than two
// fused multiply-adds of floats. On Intel it is slower: on Emerald Rapids it takes as long as four
// of them. The functions that contain the instruction have a target attribute for it.
#if defined(__AVX512F__) && !defined(__clang__)  // Clang 16 crashes on these functions
#define RNNKERN_BF16_TARGET __attribute__((target("avx512bf16")))
inline bool sums_pairs() {
  if (!__builtin_cpu_supports("avx512bf16")) return false;
  return bf16_sums == Bf16Sums::fastest ? !__builtin_cpu_is("intel") : bf16_sums == Bf16Sums::pairs;
}

// Pairs of the elements of a row; an odd end is completed by -0, whose product with the +0 of the
// other operand leaves every sum as it is.
RNNKERN_BF16_TARGET inline void pair_bf16(const float* from, Index n, float* to) {
  for (Index j = 0; j < n; j += 16) {
    const __m256i halves = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(load_n(from + j, n - j)));
    _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(to + j / 2), _mm256_rol_epi32(halves, 16));
  }
  constexpr std::uint16_t minus_zero = 0x8000;
  if (n % 2 == 1) __builtin_memcpy(reinterpret_cast<char*>(to) + 2 * (n - 1), &minus_zero, 2);
}
#else
inline bool sums_pairs() { return false; }
inline void pair_bf16(const float*, Index, float*) {}
#endif

}  // namespace rnnkern::RNNKERN_ISA

// What decision 0020 builds on, for tests/test_bf16.py: vdpbf16ps adds the product of the upper
// halves, then that of the lower ones, each by a fused multiply-add of floats, and vcvtneps2bf16
// rounds as bf16_bits does. Prints how many of how many results differ: of sums, of sums in the
// other order, and of the roundings of all floats. Prints "none" without the instructions.
#include <cstdio>

#include "simd/bf16.h"

namespace rnnkern::RNNKERN_ISA {
namespace {

constexpr Index kVectors = 1 << 20;  // of each row below

// The exponents of random operands, as a float stores them: `first` and up to `more` above.
struct Exponents {
  std::uint32_t of_factors, of_sums, more;
};
constexpr Exponents kExponents[] = {
    {0, 0, 255},     // all bits, so subnormals, infinities and nan too
    {120, 120, 15},  // sums that round, and cancel
    {60, 0, 7},      // products and sums about the smallest normal number
    {186, 248, 7},   // about the largest
};

// Xorshift, each element for itself.
struct Random {
  FloatBits state;
  Random() {
    for (int i = 0; i < kLanes<float>; ++i) state[i] = 0x9e3779b9u * static_cast<unsigned>(i + 1);
  }
  FloatBits operator()() {
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return state;
  }
  FloatBits number(std::uint32_t first, std::uint32_t more) {
    const FloatBits exponent = first + ((*this)() >> 9 & more);
    return ((*this)() & 0x807fffffu) | exponent << 23;
  }
  FloatBits pair(const Exponents& of) {
    const FloatBits upper = number(of.of_factors, of.more), lower = number(of.of_factors, of.more);
    return (upper & 0xffff0000u) | lower >> 16;
  }
};

Vec<float> upper(FloatBits pairs) { return reinterpret_cast<Vec<float>>(pairs & 0xffff0000u); }
Vec<float> lower(FloatBits pairs) { return reinterpret_cast<Vec<float>>(pairs << 16); }

// Elements with other bits; nan is nan.
int differing(Vec<float> a, Vec<float> b) {
  const __m512i of_a = reinterpret_cast<__m512i>(a), of_b = reinterpret_cast<__m512i>(b);
  const int nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) & _mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q);
  return __builtin_popcount(_mm512_cmpneq_epi32_mask(of_a, of_b) & ~nan);
}

RNNKERN_BF16_TARGET void sums(long long& other, long long& other_in_reverse, long long& all) {
  Random random;
  for (const Exponents& of : kExponents)
    for (Index i = 0; i < kVectors; ++i, all += kLanes<float>) {
      const auto start = reinterpret_cast<Vec<float>>(random.number(of.of_sums, of.more));
      const FloatBits a = random.pair(of), b = random.pair(of);
      const Vec<float> got =
          _mm512_dpbf16_ps(start, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
      const Vec<float> up = fma(upper(a), upper(b), start), low = fma(lower(a), lower(b), start);
      other += differing(got, fma(lower(a), lower(b), up));
      other_in_reverse += differing(got, fma(upper(a), upper(b), low));
    }
}

// All floats, in rows of 16, whose pairs are eight words.
RNNKERN_BF16_TARGET void roundings(long long& other, long long& all) {
  constexpr Index n = 16;
  std::uint32_t bits[n], pairs[n / 2];
  float row[n], words[n / 2], rounded[n];
  for (std::uint64_t first = 0; first >> 32 == 0; first += n, all += n) {
    for (Index i = 0; i < n; ++i) bits[i] = static_cast<std::uint32_t>(first) + i;
    __builtin_memcpy(row, bits, sizeof row);
    pair_bf16(row, n, words);
    round_to_bf16(row, n, rounded);
    __builtin_memcpy(pairs, words, sizeof pairs);
    __builtin_memcpy(bits, rounded, sizeof bits);
    for (Index i = 0; i < n / 2; ++i) other += pairs[i] != (bits[2 * i] | bits[2 * i + 1] >> 16);
  }
}

}  // namespace
}  // namespace rnnkern::RNNKERN_ISA

int main() {
  using namespace rnnkern::RNNKERN_ISA;
  if (!__builtin_cpu_supports("avx512bf16")) return std::puts("none") < 0;
  _mm_setcsr(0x9fc0);  // as the kernels': no trap, subnormal operands and results are zero
  long long other = 0, other_in_reverse = 0, all = 0, other_rounded = 0, all_rounded = 0;
  sums(other, other_in_reverse, all);
  roundings(other_rounded, all_rounded);
  std::printf("%lld %lld %lld %lld %lld\n", other, other_in_reverse, all, other_rounded,
              all_rounded);
  return 0;
}

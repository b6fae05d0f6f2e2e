// The vector type of one instruction set, and exp, tanh and sigmoid on it.
//
// Vectors are the compiler's own (GCC and Clang vector extensions), so arithmetic reads like
// arithmetic; only the fused multiply-add is spelled out, because which operations are fused must
// not be the compiler's choice (the build forbids it with -ffp-contract=off). Every operation here
// is correctly rounded or exact, hence the same bits on every instruction set that has the fused
// multiply-add. The x86-64 baseline has none and rounds twice: docs/decisions/0002.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "problem.h"

// All that is compiled once per instruction set lives in a namespace named after the set.
namespace rnnkern::RNNKERN_ISA {

#if defined(__AVX512F__)
#define RNNKERN_VECTOR_BYTES 64
inline constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
#define RNNKERN_VECTOR_BYTES 32
inline constexpr int kVectorRegisters = 16;
#elif defined(__aarch64__)
#define RNNKERN_VECTOR_BYTES 16
inline constexpr int kVectorRegisters = 32;
#else
#define RNNKERN_VECTOR_BYTES 16
inline constexpr int kVectorRegisters = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(RNNKERN_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(RNNKERN_VECTOR_BYTES), aligned(4), may_alias));
  typedef std::uint32_t Bits __attribute__((vector_size(RNNKERN_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(RNNKERN_VECTOR_BYTES)));
  typedef double Unaligned
      __attribute__((vector_size(RNNKERN_VECTOR_BYTES), aligned(8), may_alias));
  typedef std::uint64_t Bits __attribute__((vector_size(RNNKERN_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VectorOf<T>::Type;

template <class T>
inline constexpr int kLanes = RNNKERN_VECTOR_BYTES / static_cast<int>(sizeof(T));

// Elements in a cache line, and n rounded up to whole lines.
template <class T>
inline constexpr Index kLine = kLineBytes / static_cast<Index>(sizeof(T));
template <class T>
inline constexpr Index padded(Index n) {
  return (n + kLine<T> - 1) / kLine<T> * kLine<T>;
}
inline constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
inline constexpr Index least(Index a, Index b) { return a < b ? a : b; }
inline constexpr Index most(Index a, Index b) { return a > b ? a : b; }

#define RNNKERN_INLINE static inline __attribute__((always_inline))

template <class T>
RNNKERN_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::Unaligned*>(p);
}
template <class T>
RNNKERN_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VectorOf<T>::Unaligned*>(p) = v;
}
template <class T>
RNNKERN_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // x - 0, not x + 0: keeps the sign of a negative zero
}

// The first n elements only, zeros behind them; the rest of memory is not touched.
template <class T>
RNNKERN_INLINE Vec<T> load_n(const T* p, Index n) {
  if (n >= kLanes<T>) return load(p);
  alignas(RNNKERN_VECTOR_BYTES) T part[kLanes<T>] = {};
  for (Index i = 0; i < n; ++i) part[i] = p[i];
  return load<T>(part);
}
template <class T>
RNNKERN_INLINE void store_n(T* p, Vec<T> v, Index n) {
  if (n >= kLanes<T>) return store(p, v);
  alignas(RNNKERN_VECTOR_BYTES) T part[kLanes<T>];
  store<T>(part, v);
  for (Index i = 0; i < n; ++i) p[i] = part[i];
}

#if defined(__AVX512F__)
RNNKERN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm512_fmadd_ps(a, b, c);
}
RNNKERN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm512_fmadd_pd(a, b, c);
}
#elif defined(__AVX2__)
RNNKERN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm256_fmadd_ps(a, b, c);
}
RNNKERN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm256_fmadd_pd(a, b, c);
}
#elif defined(__aarch64__)
RNNKERN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return vfmaq_f32(c, a, b);
}
RNNKERN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return vfmaq_f64(c, a, b);
}
#else
RNNKERN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return a * b + c; }
RNNKERN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return a * b + c; }
#endif

// Correctly rounded; the compiler makes one instruction of it (-fno-math-errno).
RNNKERN_INLINE Vec<float> square_root(Vec<float> x) {
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
RNNKERN_INLINE Vec<double> square_root(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
}

// x limited to [low, high]; nan stays nan.
template <class V>
RNNKERN_INLINE V limit(V x, V low, V high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// Constants of e^r = 1 + r + r^2 (1/2 + r w(r)) on |r| <= ln(2)/2, w by the Remez algorithm with
// weight r^2: off by 0.23 of a float's and 0.003 of a double's half-ULP of e^r - 1.
template <class T>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr float w[] = {0x1.5554b2p-3f, 0x1.5554c8p-5f, 0x1.1226eep-7f, 0x1.6d7186p-10f};
  static constexpr float log2_e = 0x1.715476p+0f, ln2_high = 0x1.62e400p-1f,
                         ln2_low = 0x1.7f7d1cp-20f;
  static constexpr float round = 0x1.8p23f;  // x + round - round: x to an integer
  // 2^n with n from -126 to 127; 1 / (1 + e^highest) is subnormal, hence zero.
  static constexpr float lowest = -87.0f, highest = 88.3f;
  static constexpr float saturated = -20.0f;  // tanh(10) is 1 in float
  static constexpr int mantissa = 23;
  static constexpr std::uint32_t one = 0x3f800000, sign = 0x80000000;
};
template <>
struct Exponential<double> {
  static constexpr double w[] = {
      0x1.5555555555559p-3,  0x1.5555555555559p-5,  0x1.111111110f6c7p-7,  0x1.6c16c16c14a60p-10,
      0x1.a01a01afdf443p-13, 0x1.a01a01af6f2dep-16, 0x1.71ddf85b5b99fp-19, 0x1.27e4c7ac239afp-22,
      0x1.af5ebb603d707p-26, 0x1.1f92e4be0be08p-29};
  static constexpr double log2_e = 0x1.71547652b82fep+0, ln2_high = 0x1.62e42fee00000p-1,
                          ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double round = 0x1.8p52;
  static constexpr double lowest = -708.0, highest = 709.4;
  static constexpr double saturated = -40.0;
  static constexpr int mantissa = 52;
  static constexpr std::uint64_t one = 0x3ff0000000000000, sign = 0x8000000000000000;
};

template <class T>
struct Power {
  Vec<T> scale;    // 2^n
  Vec<T> minus_1;  // e^r - 1, where x = n ln 2 + r
};

// e^x as scale * (1 + minus_1), for x in [lowest, highest].
template <class T>
RNNKERN_INLINE Power<T> power(Vec<T> x) {
  using E = Exponential<T>;
  using Bits = typename VectorOf<T>::Bits;
  const Vec<T> shifted = fma(x, splat(E::log2_e), splat(E::round));
  const Vec<T> n = shifted - E::round;
  Vec<T> r = fma(n, splat(-E::ln2_high), x);
  r = fma(n, splat(-E::ln2_low), r);
  constexpr int terms = static_cast<int>(sizeof(E::w) / sizeof(T));
  Vec<T> w = splat(E::w[terms - 1]);
#pragma GCC unroll 16
  for (int k = terms - 2; k >= 0; --k) w = fma(w, r, splat(E::w[k]));
  const Vec<T> half = fma(w, r, splat(T(0.5)));
  // The integer n stands in the low bits of `shifted`: moved up, it is added to the exponent. What
  // comes of nan is of no account, r is nan then.
  const Bits scale = (reinterpret_cast<Bits>(shifted) << E::mantissa) + E::one;
  return {reinterpret_cast<Vec<T>>(scale), fma(r * r, half, r)};
}

// 1 / (1 + e^-x). Any x; at most 3 ULP (float, measured over every float:
// tests/test_activations.py).
template <class T>
RNNKERN_INLINE Vec<T> sigmoid(Vec<T> x) {
  using E = Exponential<T>;
  const Power<T> e = power<T>(limit(-x, splat(E::lowest), splat(E::highest)));
  return T(1) / (T(1) + fma(e.scale, e.minus_1, e.scale));
}

// tanh x = -m / (2 + m) with m = e^(-2|x|) - 1, x's sign put back. Any x; at most 3 ULP (float).
template <class T>
RNNKERN_INLINE Vec<T> hyperbolic_tangent(Vec<T> x) {
  using E = Exponential<T>;
  using Bits = typename VectorOf<T>::Bits;
  const Bits sign = reinterpret_cast<Bits>(x) & E::sign;
  const Vec<T> magnitude = reinterpret_cast<Vec<T>>(reinterpret_cast<Bits>(x) & ~E::sign);
  const Vec<T> y = magnitude * T(-2);
  const Power<T> e = power<T>(y < E::saturated ? splat(E::saturated) : y);
  const Vec<T> m = fma(e.scale, e.minus_1, e.scale - T(1));
  const Vec<T> result = (T(0) - m) / (m + T(2));
  return reinterpret_cast<Vec<T>>(reinterpret_cast<Bits>(result) | sign);
}

}  // namespace rnnkern::RNNKERN_ISA

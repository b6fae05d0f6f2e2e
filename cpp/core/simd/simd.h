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
#define RNNKERN_MEMBER inline __attribute__((always_inline))

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
#if defined(__AVX512F__)
RNNKERN_INLINE unsigned first_lanes(Index n) { return n <= 0 ? 0u : (1u << n) - 1u; }
RNNKERN_INLINE Vec<float> load_some(const float* p, Index n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(first_lanes(n)), p);
}
RNNKERN_INLINE Vec<double> load_some(const double* p, Index n) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(n)), p);
}
RNNKERN_INLINE void store_some(float* p, Vec<float> v, Index n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(first_lanes(n)), v);
}
RNNKERN_INLINE void store_some(double* p, Vec<double> v, Index n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(n)), v);
}
#elif defined(__AVX2__)
alignas(64) inline constexpr std::int32_t kLaneMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
RNNKERN_INLINE __m256i first_lanes(Index lanes32) {
  const std::int32_t* masks = kLaneMasks + 8 - most(0, lanes32);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(masks));
}
RNNKERN_INLINE Vec<float> load_some(const float* p, Index n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
RNNKERN_INLINE Vec<double> load_some(const double* p, Index n) {
  return _mm256_maskload_pd(p, first_lanes(2 * n));
}
RNNKERN_INLINE void store_some(float* p, Vec<float> v, Index n) {
  _mm256_maskstore_ps(p, first_lanes(n), v);
}
RNNKERN_INLINE void store_some(double* p, Vec<double> v, Index n) {
  _mm256_maskstore_pd(p, first_lanes(2 * n), v);
}
#else
template <class T>
RNNKERN_INLINE Vec<T> load_some(const T* p, Index n) {
  alignas(RNNKERN_VECTOR_BYTES) T part[kLanes<T>] = {};
  for (Index i = 0; i < n; ++i) part[i] = p[i];
  return load<T>(part);
}
template <class T>
RNNKERN_INLINE void store_some(T* p, Vec<T> v, Index n) {
  alignas(RNNKERN_VECTOR_BYTES) T part[kLanes<T>];
  store<T>(part, v);
  for (Index i = 0; i < n; ++i) p[i] = part[i];
}
#endif
template <class T>
RNNKERN_INLINE Vec<T> load_n(const T* p, Index n) {
  return n >= kLanes<T> ? load(p) : load_some(p, n);
}
template <class T>
RNNKERN_INLINE void store_n(T* p, Vec<T> v, Index n) {
  if (n >= kLanes<T>) return store(p, v);
  store_some(p, v, n);
}

// Elements of a and b in turns: those of the first halves, of the second halves.
template <class T>
RNNKERN_INLINE void zip(Vec<T> a, Vec<T> b, Vec<T>& first, Vec<T>& second) {
  if constexpr (kLanes<T> == 2) {
    first = __builtin_shufflevector(a, b, 0, 2);
    second = __builtin_shufflevector(a, b, 1, 3);
  } else if constexpr (kLanes<T> == 4) {
    first = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    second = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  } else if constexpr (kLanes<T> == 8) {
    first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    first = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    second =
        __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
}

// Rows become columns.
template <class T>
RNNKERN_INLINE void transpose(Vec<T> (&v)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
#pragma GCC unroll 4
  for (int width = 1; width < n; width *= 2) {
    Vec<T> out[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) zip<T>(v[i], v[i + n / 2], out[2 * i], out[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) v[i] = out[i];
  }
}

// A vector of doubles from elements of either type.
RNNKERN_INLINE Vec<double> as_doubles(const double* p) { return load(p); }
RNNKERN_INLINE Vec<double> as_doubles(const float* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p));
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(_mm_loadu_ps(p));  // of the vector type GCC 12 makes several instructions
#else
  typedef float Half __attribute__((vector_size(RNNKERN_VECTOR_BYTES / 2), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Half*>(p), Vec<double>);
#endif
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

// The products of the lower halves of 64-bit elements.
using WideBits = VectorOf<double>::Bits;
#if defined(__AVX512F__)
RNNKERN_INLINE WideBits multiply_halves(WideBits a, WideBits b) {
  return reinterpret_cast<WideBits>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
#elif defined(__AVX2__)
RNNKERN_INLINE WideBits multiply_halves(WideBits a, WideBits b) {
  return reinterpret_cast<WideBits>(
      _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
#elif defined(__x86_64__)
RNNKERN_INLINE WideBits multiply_halves(WideBits a, WideBits b) {
  return reinterpret_cast<WideBits>(
      _mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
#else
RNNKERN_INLINE WideBits multiply_halves(WideBits a, WideBits b) {
  return reinterpret_cast<WideBits>(vmull_u32(vmovn_u64(reinterpret_cast<uint64x2_t>(a)),
                                              vmovn_u64(reinterpret_cast<uint64x2_t>(b))));
}
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

// Two vectors side by side: what the cells' maths works on, so that the machine finds the second's
// operations to do while it waits for the first's.
template <class V>
struct Pair {
  V first, second;
};
template <class V>
RNNKERN_INLINE Pair<V> operator+(Pair<V> a, Pair<V> b) {
  return {a.first + b.first, a.second + b.second};
}
template <class V>
RNNKERN_INLINE Pair<V> operator/(Pair<V> a, Pair<V> b) {
  return {a.first / b.first, a.second / b.second};
}
template <class V>
RNNKERN_INLINE Pair<V> operator-(Pair<V> a, Pair<V> b) {
  return {a.first - b.first, a.second - b.second};
}
template <class V>
RNNKERN_INLINE Pair<V> operator*(Pair<V> a, Pair<V> b) {
  return {a.first * b.first, a.second * b.second};
}
template <class V, class T>
RNNKERN_INLINE Pair<V> operator-(T a, Pair<V> b) {
  return {a - b.first, a - b.second};
}
template <class V>
RNNKERN_INLINE Pair<V> fma(Pair<V> a, Pair<V> b, Pair<V> c) {
  return {fma(a.first, b.first, c.first), fma(a.second, b.second, c.second)};
}

// f of one vector, or of each of two.
template <class V, class F>
RNNKERN_INLINE V each(V v, const F& f) {
  return f(v);
}
template <class V, class F>
RNNKERN_INLINE Pair<V> each(Pair<V> v, const F& f) {
  return {f(v.first), f(v.second)};
}
template <class V, class F>
RNNKERN_INLINE V each(V a, V b, const F& f) {
  return f(a, b);
}
template <class V, class F>
RNNKERN_INLINE Pair<V> each(Pair<V> a, Pair<V> b, const F& f) {
  return {f(a.first, b.first), f(a.second, b.second)};
}

template <class T, int N>
struct UnitsOf {
  typedef Vec<T> Type;
};
template <class T>
struct UnitsOf<T, 2> {
  typedef Pair<Vec<T>> Type;
};
template <class T, int N>
using Units = typename UnitsOf<T, N>::Type;

template <class V>
inline constexpr bool kIsPair = false;
template <class V>
inline constexpr bool kIsPair<Pair<V>> = true;

// V is Vec<T> or Pair<Vec<T>>; at(i) points to vector i's elements, left(i) says how many there
// are.
template <class T, class V, class At>
RNNKERN_INLINE V load_each(const At& at) {
  if constexpr (!kIsPair<V>)
    return load<T>(at(0));
  else
    return {load<T>(at(0)), load<T>(at(1))};
}
template <class T, class V, class At, class Left>
RNNKERN_INLINE V load_each(const At& at, const Left& left) {
  if constexpr (!kIsPair<V>)
    return load_n<T>(at(0), left(0));
  else
    return {load_n<T>(at(0), left(0)), load_n<T>(at(1), left(1))};
}
// Each vector of one value throughout.
template <class T, class V, class Value>
RNNKERN_INLINE V splat_each(const Value& value) {
  if constexpr (!kIsPair<V>)
    return splat<T>(value(0));
  else
    return {splat<T>(value(0)), splat<T>(value(1))};
}
template <class T, class V, class At>
RNNKERN_INLINE void store_each(const At& at, V v) {
  if constexpr (!kIsPair<V>) {
    store<T>(at(0), v);
  } else {
    store<T>(at(0), v.first);
    store<T>(at(1), v.second);
  }
}
template <class T, class V, class At, class Left>
RNNKERN_INLINE void store_each(const At& at, V v, const Left& left) {
  if constexpr (!kIsPair<V>) {
    store_n<T>(at(0), v, left(0));
  } else {
    store_n<T>(at(0), v.first, left(0));
    store_n<T>(at(1), v.second, left(1));
  }
}

// The larger and the smaller of two; b where one is nan.
#if defined(__AVX512F__)
// All lanes, by a mask: of the intrinsics without one, GCC 12 warns.
RNNKERN_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) {
  return _mm512_maskz_max_ps(0xffff, a, b);
}
RNNKERN_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) {
  return _mm512_maskz_max_pd(0xff, a, b);
}
RNNKERN_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) {
  return _mm512_maskz_min_ps(0xffff, a, b);
}
RNNKERN_INLINE Vec<double> smaller(Vec<double> a, Vec<double> b) {
  return _mm512_maskz_min_pd(0xff, a, b);
}
#elif defined(__AVX2__)
RNNKERN_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a, b); }
RNNKERN_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a, b); }
RNNKERN_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a, b); }
RNNKERN_INLINE Vec<double> smaller(Vec<double> a, Vec<double> b) { return _mm256_min_pd(a, b); }
#else
template <class V>
RNNKERN_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
RNNKERN_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}
#endif

// Whether all elements are zero, of a vector of zeros and nans.
template <class T>
RNNKERN_INLINE bool all_zero(Vec<T> v) {
  alignas(RNNKERN_VECTOR_BYTES) T values[kLanes<T>];
  store<T>(values, v);
  T sum = T(0);
  for (Index i = 0; i < kLanes<T>; ++i) sum += values[i];
  return sum == T(0);
}

// x limited to [low, high]; nan stays nan.
template <class V>
RNNKERN_INLINE V limit(V x, V low, V high) {
  return smaller(high, larger(low, x));
}

// `kept` where v lies in [-bound, bound] or is nan, zero elsewhere.
template <class T>
RNNKERN_INLINE Vec<T> where_within(Vec<T> v, Vec<T> bound, Vec<T> kept) {
  const Vec<T> not_above = v > bound ? Vec<T>{} : kept;
  return v < -bound ? Vec<T>{} : not_above;
}
template <class T>
RNNKERN_INLINE Pair<Vec<T>> where_within(Pair<Vec<T>> v, Vec<T> bound, Pair<Vec<T>> kept) {
  return {where_within<T>(v.first, bound, kept.first),
          where_within<T>(v.second, bound, kept.second)};
}

// Constants of e^r = 1 + r + r^2 p(r) on |r| <= ln(2)/2, p but for its first term by the Remez
// algorithm with weight r^2: off by 0.23 of a float's and 0.003 of a double's half-ULP of e^r - 1.
template <class T>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr float p[] = {0.5f, 0x1.5554b2p-3f, 0x1.5554c8p-5f, 0x1.1226eep-7f,
                                0x1.6d7186p-10f};
  static constexpr float log2_e = 0x1.715476p+0f;
  static constexpr float ln2 = 0x1.62e430p-1f;  // off by 1.9e-9
  static constexpr float ln2_high = 0x1.62e400p-1f, ln2_low = 0x1.7f7d1cp-20f;
  // x + round - round: x to an integer n. The sum's low bits are n plus the exponent's bias.
  static constexpr float round = 0x1.8p23f + 127;
  // 2^n with n from -126 to 127; 1 / (1 + e^highest) is subnormal, hence zero.
  static constexpr float lowest = -87.0f, highest = 88.3f;
  static constexpr float saturated = -10.0f;  // tanh(10) is 1 in float
  static constexpr int mantissa = 23;
  static constexpr std::uint32_t sign = 0x80000000;
};
template <>
struct Exponential<double> {
  static constexpr double p[] = {0.5,
                                 0x1.5555555555559p-3,
                                 0x1.5555555555559p-5,
                                 0x1.111111110f6c7p-7,
                                 0x1.6c16c16c14a60p-10,
                                 0x1.a01a01afdf443p-13,
                                 0x1.a01a01af6f2dep-16,
                                 0x1.71ddf85b5b99fp-19,
                                 0x1.27e4c7ac239afp-22,
                                 0x1.af5ebb603d707p-26,
                                 0x1.1f92e4be0be08p-29};
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  static constexpr double ln2 = 0x1.62e42fefa39efp-1;  // off by 2.3e-17
  static constexpr double ln2_high = 0x1.62e42fee00000p-1, ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double round = 0x1.8p52 + 1023;
  static constexpr double lowest = -708.0, highest = 709.4;
  static constexpr double saturated = -20.0;
  static constexpr int mantissa = 52;
  static constexpr std::uint64_t sign = 0x8000000000000000;
};

// e^(F x) = scale (1 + F rest).
template <class T>
struct Power {
  Vec<T> scale;  // 2^n
  Vec<T> rest;   // (e^r - 1) / F, where F x = n ln 2 + r
};

// For F x in [lowest, highest]. F is a power of two of either sign: what it multiplies are
// constants, exactly, and no operation is spent on it. `ln2_parts`: one will do where |n| is small.
template <class T, int F, int ln2_parts = 2>
RNNKERN_INLINE Power<T> power(Vec<T> x) {
  using E = Exponential<T>;
  using Bits = typename VectorOf<T>::Bits;
  constexpr T f = F;
  const Vec<T> shifted = fma(x, splat(f * E::log2_e), splat(E::round));
  const Vec<T> n = shifted - E::round;
  Vec<T> r = fma(n, splat((ln2_parts == 1 ? E::ln2 : E::ln2_high) / -f), x);  // r / F
  if constexpr (ln2_parts == 2) r = fma(n, splat(E::ln2_low / -f), r);
  const Vec<T> r2 = r * r;
  constexpr int terms = static_cast<int>(sizeof(E::p) / sizeof(T));
  const auto term = [](int k) {
    T c = E::p[k];
    for (int i = 0; i <= k; ++i) c *= f;
    return splat(c);
  };
  // Two terms at a time: half the chain that one at a time would be.
  static_assert(terms % 2 == 1);
  Vec<T> p = term(terms - 1);
#pragma GCC unroll 8
  for (int k = terms - 3; k >= 0; k -= 2) p = fma(p, r2, fma(term(k + 1), r, term(k)));
  // n and the bias, moved up, are the exponent. What comes of nan is of no account, r is nan then.
  const Bits scale = reinterpret_cast<Bits>(shifted) << E::mantissa;
  return {reinterpret_cast<Vec<T>>(scale), fma(r2, p, r)};
}

// e^x for x up to 0; zero below where it would be subnormal. nan stays.
template <class T>
RNNKERN_INLINE Vec<T> exponential(Vec<T> x) {
  const Power<T> e = power<T, 1>(x);
  return x < Exponential<T>::lowest ? Vec<T>{} : fma(e.scale, e.rest, e.scale);
}

// 1 / (1 + e^-x). Any x; at most 3 ULP (float, measured over every float:
// tests/test_activations.py).
template <class T>
RNNKERN_INLINE Vec<T> sigmoid(Vec<T> x) {
  using E = Exponential<T>;
  const Power<T> e = power<T, -1>(limit(x, splat(-E::highest), splat(-E::lowest)));
  return T(1) / fma(-e.scale, e.rest, T(1) + e.scale);
}

template <class T>
RNNKERN_INLINE Pair<Vec<T>> sigmoid(Pair<Vec<T>> x) {
  return {sigmoid<T>(x.first), sigmoid<T>(x.second)};
}

// tanh x = m / (1 - m) with m = (1 - e^(-2|x|)) / 2, x's sign put back. Any x; at most 3 ULP
// (float).
template <class T>
RNNKERN_INLINE Vec<T> hyperbolic_tangent(Vec<T> x) {
  using E = Exponential<T>;
  using Bits = typename VectorOf<T>::Bits;
  const Bits sign = reinterpret_cast<Bits>(x) & E::sign;
  const Vec<T> negative = reinterpret_cast<Vec<T>>(reinterpret_cast<Bits>(x) | E::sign);
  const Power<T> e = power<T, 2, 1>(larger(splat(E::saturated), negative));
  const Vec<T> m = fma(-e.scale, e.rest, fma(e.scale, splat(T(-0.5)), splat(T(0.5))));
  const Vec<T> result = m / (T(1) - m);
  return reinterpret_cast<Vec<T>>(reinterpret_cast<Bits>(result) | sign);
}
template <class T>
RNNKERN_INLINE Pair<Vec<T>> hyperbolic_tangent(Pair<Vec<T>> x) {
  return {hyperbolic_tangent<T>(x.first), hyperbolic_tangent<T>(x.second)};
}

}  // namespace rnnkern::RNNKERN_ISA

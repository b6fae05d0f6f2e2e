// Activations that are chosen at run time: ONNX's list, with its formulas and constants. At a kink
// the slope is the one to its left, but zero at both kinks of HardSigmoid.
#pragma once

#include "contract.h"

namespace rnnkern::RNNKERN_ISA {

template <class T>
RNNKERN_INLINE Vec<T> magnitude(Vec<T> a) {
  return larger(a, -a);
}

// e^a - 1 for a up to 0; -1 where that is what it rounds to.
template <class T>
RNNKERN_INLINE Vec<T> exponential_less_one(Vec<T> a) {
  const Power<T> e = power<T, 1>(larger(splat(Exponential<T>::lowest), a));
  return fma(e.scale, e.rest, e.scale - T(1));
}

// log(1 + u) for u from 0 to 1: 2 atanh(s) with s = u / (2 + u), at most 1/3. What is left out of
// the series is below 2e-9 of it (float) and 2e-18 (double).
template <class T>
RNNKERN_INLINE Vec<T> log_one_plus(Vec<T> u) {
  const Vec<T> s = u / (u + T(2)), q = s * s;
  constexpr int terms = sizeof(T) == 4 ? 8 : 17;
  Vec<T> series = splat(T(1) / T(2 * terms + 1));
#pragma GCC unroll 16
  for (int k = terms - 1; k > 0; --k) series = fma(series, q, splat(T(1) / T(2 * k + 1)));
  return fma(s + s, series * q, s + s);
}

// log(1 + e^a) = max(a, 0) + log(1 + e^-|a|).
template <class T>
RNNKERN_INLINE Vec<T> softplus(Vec<T> a) {
  return larger(Vec<T>{}, a) + log_one_plus<T>(exponential<T>(-magnitude<T>(a)));
}

// One of ONNX's activations; of an argument that is first clipped to [-bound, bound], and whose
// gradient passes where it was within.
template <class T>
struct Activated {
  Activated(const Activation& of, double clip)
      : kind(of.kind),
        alpha(splat(static_cast<T>(of.alpha))),
        beta(splat(static_cast<T>(of.beta))),
        bound(splat(static_cast<T>(clip))) {}

  template <class V>
  RNNKERN_MEMBER V value(V a) const {
    return each(a, [this](Vec<T> v) { return value_of(*this, limit(v, -bound, bound)); });
  }
  template <class V>
  RNNKERN_MEMBER V slope(V a) const {
    return each(a, [this](Vec<T> v) { return where_within<T>(v, bound, slope_of(*this, v)); });
  }

 private:
  __attribute__((noinline)) static Vec<T> value_of(const Activated& f, Vec<T> a) {
    switch (f.kind) {
      case ActivationKind::relu:
        return a < T(0) ? Vec<T>{} : a;
      case ActivationKind::tanh:
        return hyperbolic_tangent<T>(a);
      case ActivationKind::sigmoid:
        return sigmoid<T>(a);
      case ActivationKind::affine:
        return fma(f.alpha, a, f.beta);
      case ActivationKind::leaky_relu:
        return a > T(0) ? a : f.alpha * a;
      case ActivationKind::thresholded_relu:
        return a > f.alpha ? a : Vec<T>{};
      case ActivationKind::scaled_tanh:
        return f.alpha * hyperbolic_tangent<T>(f.beta * a);
      case ActivationKind::hard_sigmoid:
        return limit(fma(f.alpha, a, f.beta), Vec<T>{}, splat(T(1)));
      case ActivationKind::elu:
        return a > T(0) ? a : f.alpha * exponential_less_one<T>(smaller(Vec<T>{}, a));
      case ActivationKind::softsign:
        return a / (magnitude<T>(a) + T(1));
      case ActivationKind::softplus:
        break;
    }
    return softplus<T>(a);
  }
  __attribute__((noinline)) static Vec<T> slope_of(const Activated& f, Vec<T> a) {
    const Vec<T> one = splat(T(1)), zero{};
    switch (f.kind) {
      case ActivationKind::relu:
        return a > T(0) ? one : zero;
      case ActivationKind::tanh: {
        const Vec<T> t = hyperbolic_tangent<T>(a);
        return T(1) - t * t;
      }
      case ActivationKind::sigmoid: {
        const Vec<T> s = sigmoid<T>(a);
        return s * (T(1) - s);
      }
      case ActivationKind::affine:
        return f.alpha;
      case ActivationKind::leaky_relu:
        return a > T(0) ? one : f.alpha;
      case ActivationKind::thresholded_relu:
        return a > f.alpha ? one : zero;
      case ActivationKind::scaled_tanh: {
        const Vec<T> t = hyperbolic_tangent<T>(f.beta * a);
        return f.alpha * f.beta * (T(1) - t * t);
      }
      case ActivationKind::hard_sigmoid: {
        const Vec<T> line = fma(f.alpha, a, f.beta), below_one = line < T(1) ? f.alpha : zero;
        return line > T(0) ? below_one : zero;
      }
      case ActivationKind::elu:
        return a > T(0) ? one : f.alpha * exponential<T>(smaller(zero, a));
      case ActivationKind::softsign: {
        const Vec<T> root = T(1) / (magnitude<T>(a) + T(1));
        return root * root;
      }
      case ActivationKind::softplus:
        break;
    }
    return sigmoid<T>(a);
  }

  ActivationKind kind;
  Vec<T> alpha, beta, bound;
};

}  // namespace rnnkern::RNNKERN_ISA

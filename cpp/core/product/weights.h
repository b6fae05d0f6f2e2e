// The formats that a product's panels are stored in: how a vector of T is read from a panel of W,
// and how packing writes it.
#pragma once

#include "simd/simd.h"

namespace rnnkern::RNNKERN_ISA {

// float or double, as the arithmetic.
template <class T>
RNNKERN_INLINE Vec<T> load_panel(const T* from) {
  return load(from);
}
template <class T>
RNNKERN_INLINE void store_panel(T* to, Vec<T> v) {
  store<T>(to, v);
}

}  // namespace rnnkern::RNNKERN_ISA

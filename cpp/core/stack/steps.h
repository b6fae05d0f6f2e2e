// Parts of sequences. Inlined everywhere, so that no instruction set lends its code to another.
#pragma once

#include "problem.h"

namespace rnnkern {

// A sequence from a step on.
template <class T>
__attribute__((always_inline)) inline Sequence<T> from_step(Sequence<T> s, Index step) {
  if (s.data) s.data += step * s.time_stride;
  return s;
}
__attribute__((always_inline)) inline Dropout from_step(Dropout dropout, Index step) {
  dropout.first += step;
  return dropout;
}
template <class T>
__attribute__((always_inline)) inline Sequence<const T> read_only(const Sequence<T>& s) {
  return {s.data, s.time_stride, s.row_stride};
}

}  // namespace rnnkern

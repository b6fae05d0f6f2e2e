// What the modules around a layer read and write.
#pragma once

#include "problem.h"

namespace rnnkern {

// Rows of x and y are one behind the other. `rows` counts those that are read and written: all, or
// those that `order` lists.
template <class T>
struct LinearCall {
  Index rows, I, O;
  const Index* order;  // [rows]; null: row r is the r-th
  const T* x;          // [any, I]
  const T* weight;     // [O, I]
  const T* bias;       // [O]; null: none
  T* y;                // [any, O]
  int threads;         // at most this many
  Interrupt interrupt;
};

template <class T>
struct LinearGradientCall {
  Index rows, I, O;
  const Index* order;
  const T* x;       // [any, I]
  const T* weight;  // [O, I]
  const T* dy;      // [any, O]
  T* dx;            // [any, I]
  T* dweight;       // [O, I]
  T* dbias;         // [O]; null: none
  int threads;      // at most this many
  Interrupt interrupt;
};

template <class T>
struct CrossEntropyCall {
  Index rows, V;
  const T* logits;              // [rows, V]
  const std::int64_t* targets;  // [rows] 0 to V - 1 where the row counts
  const double* weights;        // [rows] at least 0; 0: the row is not read
  bool mean;                    // divide by the sum of the weights
  T* gradient;                  // [rows, V] dL/dlogits; may be `logits` itself
  double* losses;               // [rows] each row's, times its weight
  int threads;                  // at most this many
  Interrupt interrupt;
};

template <class T>
struct SumRowsCall {
  Index rows, N, C;
  const std::int64_t* ids;  // [rows] 0 to N - 1
  const T* values;          // [rows, C]
  T* table;                 // [N, C] each row the sum of those with its id
  int threads;              // at most this many
};

}  // namespace rnnkern

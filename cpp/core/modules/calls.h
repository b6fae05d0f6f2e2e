// What the modules around a layer read and write.
#pragma once

#include "problem.h"

namespace rnnkern {

// The real steps of each row of a batch of sequences (T, B, ...).
struct StepsOfRows {
  Index T;
  const Index* count;  // [B]
  const Index* steps;  // [B, T] rising; of row b the first count[b]
};

// Queries [Tq, B, K] attend to keys [Tk, B, K] and values [Tk, B, V]. Steps that are not real are
// not read, nor written to.
template <class T>
struct AttentionInputs {
  Index B, K, V;
  StepsOfRows queries, keys;
  const T* query;
  const T* key;
  const T* value;
  const T* v;  // [K] of additive attention; null: dot products
  T scale;     // of dot products
};

template <class T>
struct AttentionCall {
  AttentionInputs<T> in;
  T* weights;   // [Tq, B, Tk]
  T* context;   // [Tq, B, V]
  int threads;  // at most this many
  Interrupt interrupt;
};

template <class T>
struct AttentionGradientCall {
  AttentionInputs<T> in;
  const T* weights;   // [Tq, B, Tk]
  const T* dcontext;  // [Tq, B, V]
  T* dquery;          // [Tq, B, K]
  T* dkey;            // [Tk, B, K]; null: only dquery is wanted
  T* dvalue;          // [Tk, B, V]
  T* dv_of_rows;      // [B, K] zeros; null where v is
  T* dv;              // [K] their sum
  int threads;        // at most this many
  Interrupt interrupt;
};

// A linear-chain conditional random field. Steps that are not real are not read, nor written to.
template <class T>
struct CrfInputs {
  Index B, L;
  StepsOfRows steps;
  const T* emissions;    // [T, B, L]
  const T* start;        // [L]
  const T* end;          // [L]
  const T* transitions;  // [L, L] from, to
};

template <class T>
struct CrfCall {
  CrfInputs<T> in;
  const std::int64_t* labels;  // [T, B] 0 to L - 1 at real steps; null: none
  double factor;               // of the gradients
  double* log_partition;       // [B]
  double* losses;              // [B] log partition less the labels' score; null without labels
  // dL/demissions: the marginals, less 1 at the label, times the factor. Null: not wanted.
  T* demissions;    // [T, B, L]
  T* dstart;        // [L]; null: the parameters' gradients are not wanted
  T* dend;          // [L]
  T* dtransitions;  // [L, L]
  int threads;      // at most this many
  Interrupt interrupt;
};

template <class T>
struct CrfDecodeCall {
  CrfInputs<T> in;
  std::int64_t* paths;  // [T, B]
  double* scores;       // [B]
  int threads;          // at most this many
  Interrupt interrupt;
};

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

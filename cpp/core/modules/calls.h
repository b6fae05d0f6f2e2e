// What the modules around a layer read and write.
#pragma once

#include <type_traits>

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

// Targets that are spread over the classes: of a row, class j counts soft_j scale_j + base_j;
// without `soft` base_j, and the class of `targets` its scale besides.
template <class T>
struct SpreadTargets {
  const T* soft;   // [rows, V]; null: none
  const T* scale;  // [V]
  const T* base;   // [V]; null: the class of `targets` counts 1, the others nothing
  Index stride;    // of scale and base: 1, or 0: one cache line of each for all classes
};

template <class T>
struct CrossEntropyCall {
  Index rows, V;
  const T* logits;              // [rows, V]
  const std::int64_t* targets;  // [rows] 0 to V - 1 where the row counts
  const double* weights;        // [rows] at least 0; 0: the row is not read
  bool mean;                    // divide by the sum of the weights, or of `shares`
  T* gradient;                  // [rows, V] dL/dlogits; may be `logits` itself
  double* losses;               // [rows] each row's, times its weight
  int threads;                  // at most this many
  Interrupt interrupt;
  SpreadTargets<T> spread = {};
  const double* shares = nullptr;  // [rows] what a mean divides by the sum of; null: weights
};

template <class T>
struct TakeRowsCall {
  Index rows, C;
  const std::int64_t* ids;  // [rows] of the table
  const T* table;           // [N, C]
  T* values;                // [rows, C] the table's rows
  int threads;              // at most this many
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

// A loss of each element of the targets, of outputs alike; of quantile K outputs share a target,
// and of gaussian K means precede K logarithms of variances.
enum class PointwiseLoss { binary_cross_entropy, mean_squared_error, huber, quantile, gaussian };

template <class T>
struct PointwiseLossCall {
  PointwiseLoss kind;
  Index rows, K;          // K losses a row
  const T* outputs;       // [rows, K]; of gaussian [rows, 2 K]
  const T* targets;       // [rows, K]; of quantile [rows]
  const T* parameters;    // [K]: what a positive counts, quantiles; [1]: delta; null
  const double* weights;  // [rows] or, if `each`, [rows, K]; 0: the element is not read
  bool each, mean;        // mean: divide by the sum of the elements' weights
  T* gradient;            // like outputs, which it may be
  double* losses;         // [rows, K] each element's, times its weight; null
  double* sums;           // [rows] workspace
  int threads;            // at most this many
  Interrupt interrupt;
};

// The rows are those of LinearCall.
template <class T>
struct LayerNormCall {
  Index rows, C;
  const Index* order;
  const T* x;       // [any, C]
  const T* weight;  // [C]
  const T* bias;    // [C]; null: none
  double epsilon;   // beside the variance
  T* y;             // [any, C]
  double* moments;  // [rows, 2]: mean, 1 / sqrt(variance + epsilon)
  int threads;      // at most this many
  Interrupt interrupt;
};

template <class T>
struct LayerNormGradientCall {
  Index rows, C;
  const Index* order;
  const T* x;       // [any, C]
  const T* weight;  // [C]
  const T* dy;      // [any, C]
  const double* moments;
  T* dx;       // [any, C]
  T* dweight;  // [C]
  T* dbias;    // [C]; null: none
  int threads;
  Interrupt interrupt;
};

// y = x mask / (1 - p). A mask's element is a function of seed, training step, time step, row and
// channel; of a variational mask the time step is 0. In backward, x and y are gradients.
template <class T>
struct DropoutCall {
  Index steps, B, C;
  const std::int64_t* places;  // [steps, B] time steps, -1: y is zero; null: each is its own
  bool variational;
  double p;
  std::uint64_t seed, step;
  Index first_row;  // the row of a larger batch that row 0 is
  const T* x;       // [steps, B, C]
  T* y;
  int threads;
  Interrupt interrupt;
};

template <class T>
struct PoolingCall {
  // Of a step, of as many bytes as T.
  using Place = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  Index steps, B, C;
  const bool* real;  // [steps, B] which steps count; null: all
  const T* x;        // [steps, B, C]
  T* y;              // [B, C]; zeros where no step counts
  Place* places;     // [B, C] steps of the largest values; null: y is the mean
  int threads;
  Interrupt interrupt;
};

template <class T>
struct PoolingGradientCall {
  Index steps, B, C;
  const bool* real;
  const T* dy;                                   // [B, C]
  const typename PoolingCall<T>::Place* places;  // [B, C] where dy goes; null: to all real steps
  T* dx;                                         // [steps, B, C]
  int threads;
  Interrupt interrupt;
};

}  // namespace rnnkern

// One optimizer step: its rule, and what it reads and writes of one array.
#pragma once

#include "problem.h"

namespace rnnkern {

enum class Optimizer : int { sgd, rmsprop, adam, adamw };

// The table of optimizers' names, in the order of Optimizer.
inline constexpr const char* kOptimizers[] = {"sgd", "rmsprop", "adam", "adamw"};

// What a step does alike to all arrays.
struct OptimizerRule {
  Optimizer kind;
  double scale;     // the clip's factor of the gradient
  double momentum;  // SGD, RMSprop; 0 where `first` is null
  bool nesterov;    // SGD
  double beta1;     // Adam, AdamW: decay of `first`
  double beta2;     // Adam, AdamW, RMSprop (its alpha): decay of `second`
  double eps;
  double correction1, correction2;  // Adam, AdamW: 1 - beta1^t, sqrt(1 - beta2^t)
  bool dry;                         // write to `finite` alone
  int threads;                      // at most this many
};

template <class T>
struct OptimizerStep : OptimizerRule {
  Index n;
  T* parameter;       // [n] read and written
  const T* gradient;  // [n]
  T* first;           // [n] velocity (SGD, RMSprop) or first moment (Adam, AdamW); null: not kept
  T* second;          // [n] second moment (RMSprop, Adam, AdamW); null for SGD
  double lr;
  double l1, l2;        // penalties: gradient + l1 sign(p) + l2 p
  double weight_decay;  // AdamW: decoupled
  // [n / columns] rising: the gradient is of these rows of [rows, columns] arrays alone, and no
  // others are read and written. Null: of all n elements.
  const std::int64_t* ids;
  Index rows, columns;
  // Becomes 0 if a new parameter or moment is not finite; steps may share it. Null: not wanted.
  unsigned char* finite;
};

}  // namespace rnnkern

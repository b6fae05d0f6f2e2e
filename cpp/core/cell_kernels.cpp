// The maths of some cells for one instruction set: the build compiles this file for a few rows of
// the table of kinds at a time (RNNKERN_CELLS names them) and each set (RNNKERN_ISA). As in
// kernels.cpp, no C++ standard library in here.
#include "cells/all.h"
#include "recurrence/cell_functions.h"

namespace rnnkern::RNNKERN_ISA {
namespace {

// The cell's struct, by its row.
#define RNNKERN_ALIAS(kind, Cell, ...) \
  template <class T>                   \
  using kind##_struct = Cell<T>;
RNNKERN_KINDS(RNNKERN_ALIAS)
#undef RNNKERN_ALIAS

}  // namespace

#define RNNKERN_CELL(kind)                                                                       \
  extern const CellFunctions<float> kind##_f32;                                                  \
  extern const CellFunctions<double> kind##_f64;                                                 \
  constexpr CellFunctions<float> kind##_f32 = CellRow<kind##_struct<float>, float>::functions(); \
  constexpr CellFunctions<double> kind##_f64 = CellRow<kind##_struct<double>, double>::functions();
RNNKERN_CELLS
#undef RNNKERN_CELL

}  // namespace rnnkern::RNNKERN_ISA

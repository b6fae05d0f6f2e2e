// The maths of one cell for one instruction set: the build compiles this file once for each row of
// the table of kinds (RNNKERN_CELL names it) and each set (RNNKERN_ISA). As in kernels.cpp, no C++
// standard library in here.
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

#define RNNKERN_JOIN_OF(a, b) a##b
#define RNNKERN_JOIN(a, b) RNNKERN_JOIN_OF(a, b)
#define RNNKERN_STRUCT RNNKERN_JOIN(RNNKERN_CELL, _struct)
#define RNNKERN_F32 RNNKERN_JOIN(RNNKERN_CELL, _f32)
#define RNNKERN_F64 RNNKERN_JOIN(RNNKERN_CELL, _f64)

extern const CellFunctions<float> RNNKERN_F32;
extern const CellFunctions<double> RNNKERN_F64;
constexpr CellFunctions<float> RNNKERN_F32 = CellRow<RNNKERN_STRUCT<float>, float>::functions();
constexpr CellFunctions<double> RNNKERN_F64 = CellRow<RNNKERN_STRUCT<double>, double>::functions();

}  // namespace rnnkern::RNNKERN_ISA

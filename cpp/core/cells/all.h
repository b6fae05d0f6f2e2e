// The one place that knows all cells: a cell's header is included here, its row is in kinds.h.
#pragma once

#include "general.h"
#include "gru.h"
#include "ind_rnn.h"
#include "layer_norm.h"
#include "lstm.h"
#include "min_gru.h"
#include "min_lstm.h"
#include "noisy.h"
#include "rg_lru.h"
#include "rnn.h"
#include "slstm.h"

namespace rnnkern::RNNKERN_ISA {

// Calls use(cell) with the cell of a kind.
template <class T, class Use>
auto with_cell(Kind kind, const CellConstants& constants, const Use& use) {
#define RNNKERN_CASE(kind, Cell, ...) \
  case Kind::kind:                    \
    return use(Cell<T>(constants));
  switch (kind) { RNNKERN_KINDS(RNNKERN_CASE) }
#undef RNNKERN_CASE
  __builtin_unreachable();
}

}  // namespace rnnkern::RNNKERN_ISA

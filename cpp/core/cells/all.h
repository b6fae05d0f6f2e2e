// The one place that knows all cells.
#pragma once

#include "gru.h"
#include "lstm.h"
#include "rnn.h"

namespace rnnkern::RNNKERN_ISA {

// Calls use(Cell<T>{}) with the cell of a kind.
template <class T, class Use>
auto with_cell(Kind kind, const Use& use) {
  switch (kind) {
    case Kind::rnn_relu:
      return use(RnnRelu<T>{});
    case Kind::lstm:
      return use(Lstm<T>{});
    case Kind::gru:
      return use(Gru<T>{});
    case Kind::gru_reset_before:
      return use(GruResetBefore<T>{});
    case Kind::rnn_tanh:
      break;
  }
  return use(RnnTanh<T>{});
}

}  // namespace rnnkern::RNNKERN_ISA

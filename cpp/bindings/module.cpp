#include "layer.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of rnnkern.";
  rnnkern::bind_runtime(m);
  rnnkern::bind_layer(m);
  rnnkern::bind_stream(m);
  rnnkern::bind_optim(m);
}

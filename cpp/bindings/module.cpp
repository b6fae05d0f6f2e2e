#include "layer.h"

// Calls share nothing but atomics: the module needs no interpreter lock. What a caller hands to two
// calls at once is the caller's to guard, as with NumPy's arrays; a stream guards itself.
PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.doc() = "The compiled core of rnnkern.";
  rnnkern::bind_runtime(m);
  rnnkern::bind_layer(m);
  rnnkern::bind_stream(m);
  rnnkern::bind_optim(m);
  rnnkern::bind_attention(m);
  rnnkern::bind_crf(m);
  rnnkern::bind_cross_entropy(m);
  rnnkern::bind_dropout(m);
  rnnkern::bind_embedding(m);
  rnnkern::bind_layer_norm(m);
  rnnkern::bind_linear(m);
  rnnkern::bind_xla(m);
  rnnkern::bind_pointwise_loss(m);
  rnnkern::bind_pooling(m);
}

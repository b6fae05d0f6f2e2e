// RTNeural's recurrent layers behind C functions, their sizes fixed at compile time; contenders.py
// compiles it.
#include <RTNeural/RTNeural.h>

#include <algorithm>
#include <vector>

namespace {

using Rows = std::vector<std::vector<float>>;

// A matrix (rows, columns) the other way round, as RTNeural takes weights.
Rows transposed(const float* matrix, int rows, int columns) {
  Rows all(columns, std::vector<float>(rows));
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) all[c][r] = matrix[r * columns + c];
  return all;
}

struct Network {
  virtual void run(const float* x, float* y, int steps) = 0;
};

template <int H, class Layer>
struct Of final : Network {
  RTNeural::ModelT<float, H, H, Layer> model;
  alignas(64) float input[H];

  template <class Bias>
  Of(const float* w, const float* u, const Bias& bias, int rows) {
    auto& layer = model.template get<0>();
    layer.setWVals(transposed(w, rows, H));
    layer.setUVals(transposed(u, rows, H));
    layer.setBVals(bias);
    model.reset();
  }
  void run(const float* x, float* y, int steps) override {
    for (int t = 0; t < steps; ++t, x += H, y += H) {
      std::copy_n(x, H, input);
      model.forward(input);
      std::copy_n(model.getOutputs(), H, y);
    }
  }
};

template <int H>
Network* of(int rows, const float* w, const float* u, const float* b_ih, const float* b_hh) {
  const std::vector<float> first(b_ih, b_ih + rows), second(b_hh, b_hh + rows);
  if (rows == 3 * H)
    return new Of<H, RTNeural::GRULayerT<float, H, H>>(w, u, Rows{first, second}, rows);
  std::vector<float> sum(first);
  for (int i = 0; i < rows; ++i) sum[i] += second[i];
  return new Of<H, RTNeural::LSTMLayerT<float, H, H>>(w, u, sum, rows);
}

}  // namespace

extern "C" {
// Weights (rows, H), the gates one below the other: i, f, g, o or z, r, n. Null for other sizes. It
// lives as long as the process.
void* rtneural_new(int H, int rows, const float* w, const float* u, const float* b_ih,
                   const float* b_hh) {
  switch (H) {
    case 16:
      return of<16>(rows, w, u, b_ih, b_hh);
    case 32:
      return of<32>(rows, w, u, b_ih, b_hh);
    case 64:
      return of<64>(rows, w, u, b_ih, b_hh);
    default:
      return nullptr;
  }
}
// x and y (steps, H); the state goes on from call to call.
void rtneural_run(void* network, const float* x, float* y, int steps) {
  static_cast<Network*>(network)->run(x, y, steps);
}
}

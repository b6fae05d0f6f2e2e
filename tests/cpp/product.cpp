// The product on weights of other formats than its arithmetic's, for tests/test_product.py: each
// element is the chain of fused multiply-adds over rising k on the values that the format keeps.
// Exits with 1 and says so at the first fault.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "product/panels.h"

namespace rnnkern::RNNKERN_ISA {

// Weights kept in half the bytes of a double. All that a format needs.
struct Halved {
  float value;
};
template <class T>
Vec<T> load_panel(const Halved* from) {
  Vec<T> v{};
  for (int i = 0; i < kLanes<T>; ++i) v[i] = from[i].value;
  return v;
}
template <class T>
void store_panel(Halved* to, Vec<T> v) {
  for (int i = 0; i < kLanes<T>; ++i) to[i].value = static_cast<float>(v[i]);
}
double kept(double w, const Halved*) { return static_cast<float>(w); }
template <class T>
T kept(T w, const T*) {
  return w;
}

// Wrong elements of a product of G gates.
template <int G, class T, class W>
int faults(CancelToken& token, Index rows, Index H, Index K) {
  const auto value = [](Index i) { return T(1) / static_cast<T>(i % 101 + 3) - T(0.03); };
  std::vector<T> w(G * H * K), x(rows * K), bias(G * padded<T>(H)), out(rows * G * padded<T>(H));
  for (Index i = 0; i < G * H * K; ++i) w[i] = value(i);
  for (Index i = 0; i < rows * K; ++i) x[i] = value(7 * i + 5);
  for (Index i = 0; i < G * padded<T>(H); ++i) bias[i] = value(3 * i);
  const Index blocks = blocks_of<T>(H);
  std::vector<char> room(blocks * G * K * kLanes<T> * sizeof(W) + kLineBytes);
  const auto address = reinterpret_cast<std::uintptr_t>(room.data());
  W* const panels = reinterpret_cast<W*>(address + (-address) % kLineBytes);
  pack_gates<G>(token, w.data(), 0, H, Heads<T>::of(K, 1), Range{0, blocks}, panels);

  // Rows of their own, each on a cache line.
  std::vector<char> more(out.size() * sizeof(T) + bias.size() * sizeof(T) + 2 * kLineBytes);
  const auto start = reinterpret_cast<std::uintptr_t>(more.data());
  T* const aligned = reinterpret_cast<T*>(start + (-start) % kLineBytes);
  T* const shared = aligned + out.size();
  std::memcpy(shared, bias.data(), bias.size() * sizeof(T));
  std::vector<const T*> a(rows);
  std::vector<T*> to(rows);
  for (Index r = 0; r < rows; ++r) {
    a[r] = x.data() + r * K;
    to[r] = aligned + r * G * padded<T>(H);
  }
  Index place[G];
  for (int g = 0; g < G; ++g) place[g] = g * padded<T>(H);
  product<G>(token, rows, a.data(), Depth{1, K, 1, {0}}, static_cast<const W*>(panels),
             Range{0, blocks}, false,
             Target<T>{to.data(), shared, false, false, padded<T>(H), place}, [](Index, int) {});

  int wrong = 0;
  for (Index r = 0; r < rows; ++r)
    for (int g = 0; g < G; ++g)
      for (Index j = 0; j < H; ++j) {
        T sum = bias[g * padded<T>(H) + j];
        for (Index k = 0; k < K; ++k)
          sum = std::fma(x[r * K + k], kept(w[(g * H + j) * K + k], panels), sum);
        wrong += to[r][place[g] + j] != sum;
      }
  return wrong;
}

template <class T, class W>
int all_faults(CancelToken& token) {
  int wrong = 0;
  for (const Index rows : {1, 2, 5, 13})
    for (const Index H : {1, 7, 16, 37})
      for (const Index K : {1, 5, 33}) {
        wrong += faults<1, T, W>(token, rows, H, K) + faults<2, T, W>(token, rows, H, K);
        wrong += faults<3, T, W>(token, rows, H, K) + faults<4, T, W>(token, rows, H, K);
      }
  return wrong;
}

}  // namespace rnnkern::RNNKERN_ISA

int main() {
  using namespace rnnkern::RNNKERN_ISA;
  int wrong[3] = {1, 1, 1};
  parallel(1, {}, [&](rnnkern::CancelToken& token, int, int) {
    wrong[0] = all_faults<float, float>(token);
    wrong[1] = all_faults<double, double>(token);
    wrong[2] = all_faults<double, Halved>(token);
  });
  std::printf("%d %d %d\n", wrong[0], wrong[1], wrong[2]);
  return wrong[0] || wrong[1] || wrong[2];
}

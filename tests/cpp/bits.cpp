// Prints a hash of every result of the core for fixed problems, one line a case, so that runs of it
// on different instruction sets (emulated ones, too) can be compared by eye or by diff.
//
//   bits [set [few]]    the set to use; the best that runs here if none is named
//
// `few`: a quarter of the cases, for Valgrind and emulators (see `among_few`).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "dispatch.h"
#include "stack/schedule.h"

namespace {

using namespace rnnkern;

// Numbers in [-1, 1) that are exact in float, from a linear congruential generator.
struct Numbers {
  std::uint64_t state = 1;
  template <class T>
  std::vector<T> operator()(Index n) {
    std::vector<T> out(static_cast<std::size_t>(n));
    for (T& value : out) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      value = static_cast<T>(static_cast<std::int32_t>(state >> 40) - (1 << 23)) / T(1 << 23);
    }
    return out;
  }
};

struct Hash {
  std::uint64_t value = 14695981039346656037u;  // FNV-1a
  template <class T>
  void add(const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    for (std::size_t i = 0; i < values.size() * sizeof(T); ++i)
      value = (value ^ bytes[i]) * 1099511628211u;
  }
};

void* workspace(Index bytes) {
  return std::aligned_alloc(64, static_cast<std::size_t>(bytes + 64));
}

template <class T>
void run(const Kernels& kernels, Kind kind, Index T_, Index B, Index I, Index H, bool ragged,
         const Clip& clip, Precision precision = Precision::full) {
  const TypedKernels<T>& use = kernels.of<T>();
  const KindInfo& info = kKinds[static_cast<int>(kind)];
  const Index G = info.gates, line = 64 / static_cast<Index>(sizeof(T));
  bool has[kRoles] = {};
  int times[kRoles] = {};
  for (const ParameterInfo* p = info.parameters; p->name; ++p)
    has[p->role] = true, times[p->role] = p->times;
  const auto padded = [&](Index n) { return (n + line - 1) / line * line; };
  const Index P = has[projection_matrix] ? (H + 1) / 2 : H, D = 2, C = D * P;
  const bool clips = !std::isinf(clip.norm);
  int states = 0, heads = 1;
  while (info.states[states].name) ++states;
  for (const ParameterInfo* p = info.parameters; p->name; ++p)
    if (p->columns == Extent::head && clips && H > 1)
      for (heads = 2; H % heads;) ++heads;
  Numbers numbers;
  std::vector<Index> lengths;
  for (Index b = 0; b < B; ++b) lengths.push_back(ragged ? (b * 7 + 3) % (T_ + 1) : T_);
  const RowSchedule schedule = ragged ? RowSchedule(T_, lengths) : RowSchedule(T_, B);
  const Index alive = schedule.alive_rows();

  struct Arrays {
    std::vector<T> parameters[kRoles], first[kMostStates], last[kMostStates];
    std::vector<T> saved, carried, projected, moments;
    std::vector<T> d_parameters[kRoles], d_last[kMostStates], d_first[kMostStates];
  };
  const auto x = numbers.operator()<T>(T_ * B * I), dy = numbers.operator()<T>(T_ * B * C);
  std::vector<T> y(static_cast<std::size_t>(T_ * B * C)), dx(static_cast<std::size_t>(T_ * B * I));
  Arrays arrays[2];
  Layer<T> layer{I, {x.data(), B * I, I}, {y.data(), B * C, C}, {y.data(), B * C, C}, {}};
  LayerGradient<T> gradient{{dy.data(), B * C, C}, {dx.data(), B * I, I}, {}};
  for (Index d = 0; d < D; ++d) {
    Arrays& a = arrays[d];
    const auto make = [&](std::vector<T>& v, Index n) {
      return (v = numbers.operator()<T>(n)).data();
    };
    // The numbers are drawn for every cell alike, whether it has such an array or not.
    Direction<T>& to = layer.direction[d];
    DirectionGradient<T>& back = gradient.direction[d];
    const Index sizes[kRoles] = {G * H * I,
                                 G * H * P / heads,
                                 G * H,
                                 G * H,
                                 times[projection_matrix] * P * H,
                                 times[unit_vectors] * H,
                                 times[input_gain] * G * H,
                                 times[recurrent_gain] * G * H,
                                 times[state_gain] * H,
                                 times[state_bias] * H};
    const Index widths[] = {P, H, H, H};
    const int drawn = std::max(2, states);
    const auto given = [&](int role, const T* values) { return has[role] ? values : nullptr; };
    for (int r = 0; r < kRoles; ++r) to.parameters[r] = given(r, make(a.parameters[r], sizes[r]));
    for (int i = 0; i < drawn; ++i) to.first[i] = make(a.first[i], B * widths[i]);
    for (int i = 0; i < drawn; ++i) to.last[i] = make(a.last[i], B * widths[i]);
    to.saved = make(a.saved, alive * info.saved * padded(H));
    to.carried = make(a.carried, alive * (drawn - 1) * padded(H));
    if (has[projection_matrix]) to.projected = make(a.projected, alive * padded(P));
    if (has[input_gain]) to.moments = make(a.moments, alive * kMoments);
    for (int r = 0; r < kRoles; ++r)
      back.parameters[r] = const_cast<T*>(given(r, make(a.d_parameters[r], sizes[r])));
    for (int i = 0; i < drawn; ++i) back.last[i] = make(a.d_last[i], B * widths[i]);
    for (int i = 0; i < drawn; ++i) back.first[i] = make(a.d_first[i], B * widths[i]);
  }
  ForwardCall<T> forward{};
  forward.kind = kind, forward.constants = {clips ? 0.4 : INFINITY,
                                            0.3,
                                            clips ? 0.8 : INFINITY,
                                            {{ActivationKind::hard_sigmoid, 0.2, 0.5},
                                             {ActivationKind::softsign, 0, 0},
                                             {ActivationKind::softplus, 0, 0}},
                                            {0.25, 0.5, 0.125},
                                            heads,
                                            ragged,
                                            precision};
  forward.dropout = {0, 12345, 6, 7, 0, ragged};
  forward.L = 1, forward.D = D, forward.H = H, forward.P = P;
  forward.rows = schedule.view(), forward.layers = &layer, forward.threads = 1;
  void* forward_workspace = workspace(use.forward_workspace(forward));
  use.forward(forward, forward_workspace);
  std::free(forward_workspace);
  BackwardCall<T> backward{};
  backward.kind = kind, backward.constants = forward.constants;
  backward.dropout = forward.dropout;
  backward.L = 1, backward.D = D, backward.H = H, backward.P = P;
  backward.rows = schedule.view(), backward.layers = &layer, backward.gradients = &gradient;
  backward.clip = clip, backward.threads = 1;
  void* backward_workspace = workspace(use.backward_workspace(backward));
  const GradientNorm norm = use.backward(backward, backward_workspace);
  std::free(backward_workspace);

  Hash hash;
  hash.add(y), hash.add(dx), hash.add(std::vector<double>{norm.norm, norm.scale});
  for (const Arrays& a : arrays) {
    for (const auto& state : a.last) hash.add(state);
    for (const auto& parameter : a.d_parameters) hash.add(parameter);
    for (const auto& state : a.d_first) hash.add(state);
  }
  std::printf("%-17s %s%d T%-2d B%-2d I%-2d H%-3d %s %s %016llx\n", info.name,
              precision == Precision::full ? "f" : "bf",
              static_cast<int>(precision == Precision::full ? sizeof(T) * 8 : 16),
              static_cast<int>(T_), static_cast<int>(B), static_cast<int>(I), static_cast<int>(H),
              ragged ? "ragged" : "full  ", std::isinf(clip.norm) ? "free   " : "clipped",
              static_cast<unsigned long long>(hash.value));
}

template <class T>
void activations(const Kernels& kernels) {
  std::vector<T> x, y;
  for (int i = -4000; i <= 4000; ++i) x.push_back(static_cast<T>(i) / T(37));
  for (int i = -140; i < 20; ++i)
    x.push_back(std::ldexp(T(1.1), i)), x.push_back(std::ldexp(T(-1.3), i));
  y.resize(x.size());
  Hash hash;
  for (auto* f : {kernels.of<T>().sigmoid, kernels.of<T>().tanh}) {
    f(x.data(), y.data(), static_cast<Index>(x.size()));
    hash.add(y);
  }
  std::printf("activations f%d %016llx\n", static_cast<int>(sizeof(T) * 8),
              static_cast<unsigned long long>(hash.value));
}

// The loss and its gradient, of rows of 1 to 77 classes, one of three ruled out.
template <class T>
void losses(const Kernels& kernels) {
  Numbers numbers;
  Hash hash;
  for (Index V = 1; V < 78; ++V) {
    const Index rows = 5;
    std::vector<T> logits = numbers.operator()<T>(rows * V);
    for (std::size_t i = 0; i < logits.size(); ++i)
      logits[i] = i % 3 == 1 && V > 2 ? T(-INFINITY) : logits[i] * T(40);
    std::vector<std::int64_t> targets;
    std::vector<double> weights, each(rows);
    for (Index r = 0; r < rows; ++r)
      targets.push_back(r * 31 % V), weights.push_back(static_cast<double>(r) / 3);
    each.push_back(kernels.of<T>().modules->cross_entropy({rows,
                                                           V,
                                                           logits.data(),
                                                           targets.data(),
                                                           weights.data(),
                                                           true,
                                                           logits.data(),
                                                           each.data(),
                                                           1,
                                                           {}}));
    hash.add(logits), hash.add(each);
  }
  std::printf("losses f%d %016llx\n", static_cast<int>(sizeof(T) * 8),
              static_cast<unsigned long long>(hash.value));
}

constexpr Index kUnits[] = {1, 7, 17, 33, 130};

// A quarter of a kind's cases, in which each number of units meets both types, full and ragged
// rows, and calls with and without clips; and each of these eight combinations occurs. A number of
// units has one combination and its opposite; which one changes from kind to kind.
bool among_few(int kind, bool is_double, bool ragged, bool clips, int units) {
  const int at = is_double * 4 + ragged * 2 + clips, one = (kind + units) % 4;
  return at == one || at == 7 - one;
}

}  // namespace

int main(int count, char** words) {
  const Kernels* set = count > 1 ? find_kernels(words[1]) : &kernels();
  if (!set || !set->runs_here()) {
    std::fprintf(stderr, "bits: no instruction set '%s' here\n", words[1]);
    return 2;
  }
  std::fprintf(stderr, "set: %s\n", set->name);
  activations<float>(*set);
  activations<double>(*set);
  losses<float>(*set);
  losses<double>(*set);
  const double off = INFINITY;
  const bool few = count > 2 && std::strcmp(words[2], "few") == 0;
  for (int kind = 0; kind < kKindCount; ++kind)
    for (const bool ragged : {false, true})
      for (const Clip& clip : {Clip{off, off, off, off}, Clip{0.05, 0.5, 0.3, 1.0}})
        for (int units = 0; units < 5; ++units) {
          const Index H = kUnits[units];
          const Index B = H == 130 ? 3 : 9, T_ = H == 130 ? 4 : 11;
          const Index I = kKinds[kind].reads_x ? H : H == 17 ? 16 : H / 2 + 2;
          const auto left_out = [&](bool is_double) {
            return few && !among_few(kind, is_double, ragged, clip.norm < off, units);
          };
          if (!left_out(false))
            run<float>(*set, static_cast<Kind>(kind), T_, B, I, H, ragged, clip);
          if (!left_out(true))
            run<double>(*set, static_cast<Kind>(kind), T_, B, I, H, ragged, clip);
          for (const Bf16Sums sums : {Bf16Sums::pairs, Bf16Sums::floats}) {
            if ((H != 17 && H != 33) || left_out(sums == Bf16Sums::floats)) continue;
            bf16_sums = sums;
            run<float>(*set, static_cast<Kind>(kind), T_, B, I, H, ragged, clip,
                       Precision::bf16_products);
          }
        }
  return 0;
}

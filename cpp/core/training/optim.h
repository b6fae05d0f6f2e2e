// The optimizers: the clip's factor, the penalties and the update in one pass over memory. Every
// element is updated on its own, hence the same bits on any number of threads. The formulas'
// owner is src/rnnkern/reference.py.
#pragma once

#include "threads/team.h"
#include "training/optim_step.h"

namespace rnnkern::RNNKERN_ISA {

// The sum of the squares of all n values; not finite if a value is not, or if it is too large for
// a double. Summed by place modulo a cache line, the same order on every instruction set.
template <class T>
static double sum_of_squares(const T* values, Index n) {
  const std::uint64_t saved = enter_float_environment();
  constexpr Index line = kLine<T>;
  double lanes[line] = {};
  const auto add_line = [&](const T* from, Index count) {
    for (Index j = 0; j < count; ++j) {
      const double value = static_cast<double>(from[j]);
      lanes[j] += value * value;
    }
  };
  const Index whole = n / line * line;
  for (Index i = 0; i < whole; i += line) add_line(values + i, line);
  add_line(values + whole, n - whole);
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  leave_float_environment(saved);
  return sum;
}

// The rules: p, the moments m (OptimizerStep::first) and v (second) after a step along g, the
// clipped and penalized gradient. A moment that is not kept comes in as zeros. `second` says
// whether a rule has v; a new m that is not finite makes p so, too.

// Polyak 1964; Nesterov's momentum as in Sutskever et al. 2013, in PyTorch's form.
template <class T>
struct Sgd {
  static constexpr bool second = false;
  explicit Sgd(const OptimizerStep<T>& s)
      : lr(splat(static_cast<T>(s.lr))),
        momentum(splat(static_cast<T>(s.momentum))),
        nesterov(s.nesterov) {}
  void update(Vec<T>& p, Vec<T> g, Vec<T>& m, Vec<T>&) const {
    m = fma(momentum, m, g);
    p = fma(-lr, nesterov ? fma(momentum, m, g) : m, p);
  }
  Vec<T> lr, momentum;
  bool nesterov;
};

// Tieleman & Hinton 2012, Coursera lecture 6.5, in PyTorch's form: eps outside the root.
template <class T>
struct RmsProp {
  static constexpr bool second = true;
  explicit RmsProp(const OptimizerStep<T>& s)
      : lr(splat(static_cast<T>(s.lr))),
        momentum(splat(static_cast<T>(s.momentum))),
        alpha(splat(static_cast<T>(s.beta2))),
        one_minus_alpha(splat(static_cast<T>(1 - s.beta2))),
        eps(splat(static_cast<T>(s.eps))) {}
  void update(Vec<T>& p, Vec<T> g, Vec<T>& m, Vec<T>& v) const {
    v = fma(alpha, v, one_minus_alpha * (g * g));
    m = fma(momentum, m, g / (square_root(v) + eps));
    p = fma(-lr, m, p);
  }
  Vec<T> lr, momentum, alpha, one_minus_alpha, eps;
};

// Kingma & Ba 2014, arXiv 1412.6980 algorithm 1, and AdamW, Loshchilov & Hutter 2019,
// arXiv 1711.05101 algorithm 2, in PyTorch's form: the decay is lr * weight_decay.
template <class T>
struct Adam {
  static constexpr bool second = true;
  explicit Adam(const OptimizerStep<T>& s)
      : beta1(splat(static_cast<T>(s.beta1))),
        one_minus_beta1(splat(static_cast<T>(1 - s.beta1))),
        beta2(splat(static_cast<T>(s.beta2))),
        one_minus_beta2(splat(static_cast<T>(1 - s.beta2))),
        eps(splat(static_cast<T>(s.eps))),
        rate(splat(static_cast<T>(s.lr / s.correction1))),
        root_of_v_hat(splat(static_cast<T>(1 / s.correction2))),
        decay(splat(static_cast<T>(s.kind == Optimizer::adamw ? s.lr * s.weight_decay : 0))) {}
  void update(Vec<T>& p, Vec<T> g, Vec<T>& m, Vec<T>& v) const {
    m = fma(beta1, m, one_minus_beta1 * g);
    v = fma(beta2, v, one_minus_beta2 * (g * g));
    p = fma(-decay, p, p);
    p = fma(-rate, m / fma(root_of_v_hat, square_root(v), eps), p);
  }
  Vec<T> beta1, one_minus_beta1, beta2, one_minus_beta2, eps;
  Vec<T> rate;           // lr m_hat / m
  Vec<T> root_of_v_hat;  // sqrt(v_hat) / sqrt(v)
  Vec<T> decay;
};

// One step with a rule, on the thread's part of the array; a dry one writes nothing. Returns
// whether all new values are finite. By value: no store can change it.
template <class Rule, bool dry, class T>
static bool update_range(const OptimizerStep<T> s, Range range) {
  using V = Vec<T>;
  using Bits = typename VectorOf<T>::Bits;
  const Rule rule(s);
  const V scale = splat(static_cast<T>(s.scale)), l2 = splat(static_cast<T>(s.l2));
  const V l1 = splat(static_cast<T>(s.l1)), none{};
  Bits nonfinite{};  // x - x is 0, or nan where x is not finite
  const auto at = [&](Index i, Index n) __attribute__((always_inline)) {
    V p = load_n(s.parameter + i, n);
    V m = s.first ? load_n(s.first + i, n) : none;
    V v = none;
    if constexpr (Rule::second) v = load_n(s.second + i, n);
    const V sparse = s.l1 == 0 ? none : p > none ? l1 : p < none ? -l1 : none;  // l1 sign(p)
    const V g = fma(scale, load_n(s.gradient + i, n), fma(l2, p, sparse));
    rule.update(p, g, m, v);
    nonfinite |= reinterpret_cast<Bits>(p - p);
    if constexpr (Rule::second) nonfinite |= reinterpret_cast<Bits>(v - v);
    if constexpr (dry) return;
    store_n(s.parameter + i, p, n);
    if (s.first) store_n(s.first + i, m, n);
    if constexpr (Rule::second) store_n(s.second + i, v, n);
  };
  Index i = range.first;
  for (; i + kLanes<T> <= range.last; i += kLanes<T>) at(i, kLanes<T>);
  if (i < range.last) at(i, range.last - i);
  bool finite = true;
  for (Index lane = 0; lane < kLanes<T>; ++lane) finite = finite && nonfinite[lane] == 0;
  return finite;
}

template <template <class> class Rule, class T>
static bool update_with(const OptimizerStep<T>& s, Range range) {
  return s.dry ? update_range<Rule<T>, true>(s, range) : update_range<Rule<T>, false>(s, range);
}

template <class T>
static bool update(const OptimizerStep<T>& s, Range range) {
  switch (s.kind) {
    case Optimizer::sgd:
      return update_with<Sgd>(s, range);
    case Optimizer::rmsprop:
      return update_with<RmsProp>(s, range);
    case Optimizer::adam:
    case Optimizer::adamw:
      return update_with<Adam>(s, range);
  }
  return false;
}

// Lines of a step, or of each of its rows.
template <class T>
static Index lines_of(const OptimizerStep<T>& s) {
  return ceil_div(s.ids ? s.columns : s.n, kLine<T>);
}
template <class T>
static Index rows_of(const OptimizerStep<T>& s) {
  return s.ids ? (s.columns ? s.n / s.columns : 0) : 1;
}

// The rows of a step that begin on these of its lines.
template <class T>
static bool update_rows(const OptimizerStep<T>& s, Range lines) {
  const Index of_row = lines_of(s), last = ceil_div(lines.last, of_row);
  bool finite = true;
  for (Index r = ceil_div(lines.first, of_row); r < last; ++r) {
    OptimizerStep<T> row = s;
    const Index at = s.ids[r] * s.columns;
    row.parameter += at, row.gradient += r * s.columns;
    if (row.first) row.first += at;
    if (row.second) row.second += at;
    finite = update(row, {0, s.columns}) && finite;
  }
  return finite;
}

// `count` steps, one array's or one member's part of it each. Threads share the lines of all.
template <class T>
static void optimizer_steps(const OptimizerStep<T>* steps, Index count) {
  constexpr Index fewest_of_a_thread = 1 << 14;  // elements that are worth a thread's meeting
  Index lines = 0;
  for (Index i = 0; i < count; ++i) lines += rows_of(steps[i]) * lines_of(steps[i]);
  if (lines == 0) return;
  const Index worthwhile = most(1, least(steps->threads, lines * kLine<T> / fewest_of_a_thread));
  // Not to be interrupted: parameters and moments are updated all or not at all.
  parallel(static_cast<int>(worthwhile), Interrupt{}, [&](CancelToken&, int thread, int threads) {
    const Range mine = share(lines, thread, threads);
    Index first = 0;  // line of the step at hand
    for (Index i = 0; i < count; ++i) {
      const OptimizerStep<T>& step = steps[i];
      const Index own = rows_of(step) * lines_of(step);
      const Range part{most(mine.first - first, 0), least(mine.last - first, own)};
      const Range elements{part.first * kLine<T>, least(part.last * kLine<T>, step.n)};
      first += own;
      if (part.size() <= 0) continue;
      if (!(step.ids ? update_rows(step, part) : update(step, elements)) && step.finite)
        __atomic_store_n(step.finite, 0, __ATOMIC_RELAXED);
    }
  });
}

}  // namespace rnnkern::RNNKERN_ISA

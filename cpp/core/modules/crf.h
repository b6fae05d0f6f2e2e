// A linear-chain conditional random field: its loss with gradients, its marginals, the best path.
// The formulas' owner is src/rnnkern/reference/crf.py.
//
// All sums are in doubles. With alpha the logarithm of the sum over all paths that end in a label,
//
//   alpha_t[j] = e_t[j] + log sum over i of exp(alpha_{t-1}[i] + transitions[i, j])
//
// takes one product of exp(alpha_{t-1} - top) with exp(transitions - top of the column), and one
// exponential and one logarithm a label. Terms below e^-708 of the largest are lost there: a sum so
// small that this matters is computed anew, with an exponential a term (`sum_exactly`). Going back,
//
//   p_{t-1}[i] = sum over j of p_t[j] P(i | j),   P(i | j) = exp(alpha_{t-1}[i] + transitions[i, j]
//                                                               - alpha_t[j] + e_t[j])
//
// is a product, too, with the same factors; no quantity there is above 1.
//
// A thread takes some rows at a time, whose steps share the products. Each row's chains are its
// own, over rising labels and steps; gradients of parameters are added up by rising row.
#pragma once

#include "modules/cross_entropy.h"
#include "modules/linear.h"

namespace rnnkern::RNNKERN_ISA {

// ln x of normal x above zero.
RNNKERN_INLINE Vec<double> logarithm(Vec<double> x) {
  using Bits = VectorOf<double>::Bits;
  constexpr std::uint64_t root_half = 0x3fe6a09e667f3bcd, one = 0x3ff0000000000000;
  // x = m 2^n, m from sqrt(1/2) to sqrt(2); n + 1023 in the exponent's place.
  const Bits moved = reinterpret_cast<Bits>(x) - root_half + one;
  const Vec<double> m = reinterpret_cast<Vec<double>>((moved & 0x000fffffffffffff) + root_half);
  const Vec<double> n =
      reinterpret_cast<Vec<double>>((moved >> 52) | 0x4330000000000000) - (0x1p52 + 1023);
  // ln m = 2 atanh s = 2 s (1 + s^2/3 + s^4/5 + ...), s^2 < 0.03: what is left out is below 1e-18.
  const Vec<double> s = (m - 1.0) / (m + 1.0), q = s * s, twice = s + s;
  Vec<double> series = splat(1.0 / 23);
#pragma GCC unroll 10
  for (int k = 21; k > 1; k -= 2) series = fma(series, q, splat(1.0 / k));
  const Vec<double> low = fma(n, splat(0x1.a39ef35793c76p-33), twice * q * series);
  return fma(n, splat(0x1.62e42fee00000p-1), twice + low);
}

inline constexpr double kMinusInfinity = -__builtin_inf();
inline constexpr double kSmallestSum = 0x1p-930;  // e^-708 is a share of 1e-28 of it
inline constexpr Index kExactOperations = 20;     // of a vector, for a term of `sum_exactly`

inline constexpr Index kCrfRows = kMostRows;  // of the batch, that a thread takes at a time
inline constexpr Index kBytesOfGradients = Index{4}
                                           << 20;  // of the rows between two sums over them

// What all threads read. Sums behind the last label are of ones, and e^alpha is 0 there.
struct CrfTables {
  double* transitions;  // [L, pitch]
  double* powers;       // [L, pitch] exp(transitions - tops)
  double* tops;         // [pitch] the largest of each column
  double* start;        // [pitch]
  double* end;          // [pitch]
  double* forward;      // panels of `powers`
  double* backward;     // panels of its transpose
};

// One row of the batch in work.
struct CrfRow {
  double* alpha;   // [T, pitch]
  double* powers;  // [T, pitch] exp(alpha - its largest)
  double* sums;    // [T, pitch] over the label before; going back, p over them
  double* p;       // [pitch] marginals of a step
  double* before;  // [pitch] of the step before
  double top;      // the largest alpha of the last step
  Index b, count;
};

// Workspace of one thread.
struct CrfWorkspace {
  CrfRow rows[kCrfRows];
  CrfRow* alive[kCrfRows];
  double* e;            // [pitch] emissions of a step
  const double** from;  // [rows of a product]
  double** to;
  double* panels;    // [T, pitch]
  double* products;  // [L, pitch]
};

// Workspace of one thread.
struct CrfDecodeWorkspace {
  double* e;          // [pitch] emissions of a step
  double* best;       // [pitch] of paths that end in a label
  double* next;       // [pitch]
  double* came_from;  // [T, pitch] the label before
};

// The sum of e^(x - shift) of some x.
struct PowerSum {
  double shift, sum;
  double logarithm_of_all() const {
    return sum == 0 ? kMinusInfinity : shift + logarithm(sum);  // nan stays
  }
};
inline double shift_of(double top) { return top == kMinusInfinity ? 0 : top; }

template <class T>
class Crf {
  using V = Vec<double>;
  static constexpr Index lanes = kLanes<double>;

 public:
  explicit Crf(const CrfInputs<T>& in)
      : in_(in), pitch_(padded<double>(in.L)), blocks_(pitch_ / lanes) {}

  Index pitch() const { return pitch_; }
  // Of a row of the batch: of transitions [L, pitch], start [pitch] and end [pitch].
  Index gradients() const { return (in_.L + 2) * pitch_; }

  int threads(int most_threads) const {
    constexpr double of_label = 150, of_pair = 8;  // operations, at most
    const double L = as_double(in_.L), steps = as_double(in_.steps.T) * as_double(in_.B);
    return capped(most_threads, steps * L * (of_label + of_pair * L) / kFlopsOfAThread);
  }

  CrfTables tables(Arena& arena) const {
    const Index square = in_.L * pitch_;
    CrfTables own;
    own.transitions = arena.allocate<double>(square);
    own.powers = arena.allocate<double>(square);
    own.tops = arena.allocate<double>(pitch_);
    own.start = arena.allocate<double>(pitch_);
    own.end = arena.allocate<double>(pitch_);
    own.forward = arena.allocate<double>(square);
    own.backward = arena.allocate<double>(square);
    return own;
  }
  CrfWorkspace workspace(Arena& arena) const {
    const Index all = in_.steps.T * pitch_;
    CrfWorkspace own;
    for (CrfRow& row : own.rows) {
      row.alpha = arena.allocate<double>(all);
      row.powers = arena.allocate<double>(all);
      row.sums = arena.allocate<double>(all);
      row.p = arena.allocate<double>(pitch_);
      row.before = arena.allocate<double>(pitch_);
    }
    own.e = arena.allocate<double>(pitch_);
    own.from = arena.allocate<const double*>(most(kCrfRows, in_.L));
    own.to = arena.allocate<double*>(most(kCrfRows, in_.L));
    own.panels = arena.allocate<double>(all);
    own.products = arena.allocate<double>(in_.L * pitch_);
    return own;
  }
  CrfDecodeWorkspace decode_workspace(Arena& arena) const {
    CrfDecodeWorkspace own;
    own.e = arena.allocate<double>(pitch_);
    own.best = arena.allocate<double>(pitch_);
    own.next = arena.allocate<double>(pitch_);
    own.came_from = arena.allocate<double>(in_.steps.T * pitch_);
    return own;
  }

  void prepare(CancelToken& token, const CrfTables& own) const {
    const Index L = in_.L;
    const auto widen = [&](const T* from, double* to) {
      for (Index j = 0; j < pitch_; ++j)
        to[j] = j < L ? static_cast<double>(from[j]) : kMinusInfinity;
    };
    widen(in_.start, own.start);
    widen(in_.end, own.end);
    for (Index j = 0; j < pitch_; ++j) own.tops[j] = kMinusInfinity;
    for (Index i = 0; i < L; ++i) {
      double* const row = own.transitions + i * pitch_;
      widen(in_.transitions + i * L, row);
      for (Index j = 0; j < L; ++j) own.tops[j] = row[j] > own.tops[j] ? row[j] : own.tops[j];
    }
    for (Index i = 0; i < L; ++i) {
      double* const row = own.powers + i * pitch_;
      for (Index j = 0; j < pitch_; j += lanes)
        store(row + j,
              exponential<double>(load(own.transitions + i * pitch_ + j) - load(own.tops + j)));
      for (Index j = 0; j < pitch_; ++j)
        if (own.tops[j] == kMinusInfinity) row[j] = j < L ? 0 : 1;
    }
    const Range all{0, blocks_};
    pack_columns<double>(
        token, [&](Index i) { return own.powers + i * pitch_; }, L, pitch_, all, own.forward);
    for (Index j = 0; j < L; ++j)
      for (Index i = 0; i < pitch_; ++i)
        own.backward[(i / lanes * L + j) * lanes + i % lanes] =
            i < L ? own.powers[i * pitch_ + j] : 0;
  }

  // Rows first to first + n of the batch. gradients: [n, gradients()]; null: not wanted.
  void run(CancelToken& token, const CrfTables& tables, CrfWorkspace& own, Index first, Index n,
           const CrfCall<T>& call, double* gradients) const {
    for (Index r = 0; r < n; ++r) {
      own.rows[r].b = first + r;
      own.rows[r].count = in_.steps.count[first + r];
    }
    for (Index j = 0; j < pitch_; ++j) own.e[j] = 0;
    if (!forward(token, tables, own, n)) return;
    for (Index r = 0; r < n; ++r) finish(tables, own.rows[r], call);
    if (!call.demissions) return;
    if (gradients)
      for (Index i = 0; i < n * this->gradients(); ++i) gradients[i] = 0;
    if (!backward(token, tables, own, n, call, gradients)) return;
    if (!gradients) return;
    for (Index r = 0; r < n; ++r)
      of_transitions(token, tables, own, own.rows[r], call, gradients + r * this->gradients());
  }

  // The best path of row b; the lowest label of several that are as good.
  void decode(CancelToken& token, const CrfTables& tables, CrfDecodeWorkspace& own, Index b,
              const CrfDecodeCall<T>& call) const {
    const Index count = in_.steps.count[b], L = in_.L;
    call.scores[b] = 0;
    if (count == 0) return;
    for (Index j = 0; j < pitch_; ++j) own.e[j] = 0;
    for (Index s = 0; s < count; ++s) {
      widen_emissions(b, s, own.e);
      for (Index j = 0; j < pitch_; j += lanes) {
        V best = load(tables.start + j), from{};
        if (s > 0) {
          best = own.best[0] + load(tables.transitions + j);
          for (Index i = 1; i < L; ++i) {
            const V other = own.best[i] + load(tables.transitions + i * pitch_ + j);
            from = other > best ? splat(as_double(i)) : from;
            best = other > best ? other : best;
          }
        }
        store(own.next + j, best + load(own.e + j));
        store(own.came_from + s * pitch_ + j, from);
      }
      double* const done = own.next;
      own.next = own.best, own.best = done;
      if (!go_on(token, L * blocks_ * 4)) return;
    }
    Index label = 0;
    for (Index j = 0; j < L; ++j) own.best[j] += tables.end[j];
    for (Index j = 1; j < L; ++j)
      if (own.best[j] > own.best[label]) label = j;
    call.scores[b] = own.best[label];
    for (Index s = count - 1; s >= 0; --s) {
      call.paths[at(b, s)] = label;
      label = static_cast<Index>(own.came_from[s * pitch_ + label]);
    }
  }

 private:
  // Where the s-th real step of row b is.
  Index at(Index b, Index s) const { return in_.steps.steps[b * in_.steps.T + s] * in_.B + b; }

  void widen_emissions(Index b, Index s, double* to) const {
    const T* const from = in_.emissions + at(b, s) * in_.L;
    for (Index j = 0; j < in_.L; ++j) to[j] = static_cast<double>(from[j]);
  }

  static double largest(const double* x, Index n) {
    V tops = splat(kMinusInfinity);
    for (Index j = 0; j < n; j += lanes) tops = larger(tops, load(x + j));
    double top = kMinusInfinity;
    for (Index i = 0; i < lanes; ++i) top = tops[i] > top ? tops[i] : top;
    return top;
  }

  // Rows with a step s.
  Index alive_at(CrfWorkspace& own, Index n, Index s) const {
    Index alive = 0;
    for (Index r = 0; r < n; ++r)
      if (own.rows[r].count > s) own.alive[alive++] = &own.rows[r];
    return alive;
  }
  static Index longest(const CrfWorkspace& own, Index n) {
    Index steps = 0;
    for (Index r = 0; r < n; ++r) steps = most(steps, own.rows[r].count);
    return steps;
  }
  void multiply(CancelToken& token, const CrfWorkspace& own, Index rows, Index K, Index stride,
                const double* panels) const {
    product<1>(token, rows, own.from, Depth{1, K, stride, {0}}, panels, Range{0, blocks_}, false,
               Target<double>{own.to, nullptr, true, false, pitch_}, [](Index, int) {});
  }

  // alpha of all steps.
  bool forward(CancelToken& token, const CrfTables& tables, CrfWorkspace& own, Index n) const {
    const Index steps = longest(own, n);
    for (Index s = 0; s < steps; ++s) {
      const Index alive = alive_at(own, n, s);
      if (s > 0) {
        for (Index i = 0; i < alive; ++i) {
          own.from[i] = own.alive[i]->powers + (s - 1) * pitch_;
          own.to[i] = own.alive[i]->sums + s * pitch_;
        }
        multiply(token, own, alive, in_.L, 1, tables.forward);
      }
      Index exact = 0;
      for (Index i = 0; i < alive; ++i) exact += advance(tables, own, *own.alive[i], s);
      if (!go_on(token, alive * blocks_ * 60 + exact * kExactOperations)) return false;
    }
    return true;
  }

  // How many terms were summed exactly.
  Index advance(const CrfTables& tables, CrfWorkspace& own, CrfRow& row, Index s) const {
    double* const alpha = row.alpha + s * pitch_;
    const double* const sums = row.sums + s * pitch_;
    widen_emissions(row.b, s, own.e);
    V small{};
    for (Index j = 0; j < pitch_; j += lanes) {
      V x = load(tables.start + j);
      if (s > 0) {
        const V sum = load(sums + j);
        small += sum >= kSmallestSum ? V{} : splat(1.0);  // nan, too
        x = (row.top + load(tables.tops + j)) + logarithm(sum);
      }
      store(alpha + j, x + load(own.e + j));
    }
    Index exact = 0;
    if (!all_zero<double>(small))
      for (Index j = 0; j < in_.L; ++j) {
        if (sums[j] >= kSmallestSum) continue;
        alpha[j] = sum_exactly(tables, alpha - pitch_, j).logarithm_of_all() + own.e[j];
        exact += in_.L;
      }
    row.top = shift_of(largest(alpha, pitch_));
    for (Index j = 0; j < pitch_; j += lanes)
      store(row.powers + s * pitch_ + j, exponential<double>(load(alpha + j) - row.top));
    return exact;
  }

  // The sum of exp(alpha[i] + transitions[i, j]) over i.
  PowerSum sum_exactly(const CrfTables& tables, const double* alpha, Index j) const {
    double top = kMinusInfinity;
    for (Index i = 0; i < in_.L; ++i) {
      const double x = alpha[i] + tables.transitions[i * pitch_ + j];
      top = x > top ? x : top;
    }
    PowerSum of{shift_of(top), 0};
    for (Index i = 0; i < in_.L; ++i) of.sum += power(tables, alpha, i, j, of.shift);
    return of;
  }
  double power(const CrfTables& tables, const double* alpha, Index i, Index j, double shift) const {
    return exponential<double>(splat(alpha[i] + tables.transitions[i * pitch_ + j] - shift))[0];
  }

  // The log partition, the loss, and the marginals of the last step.
  void finish(const CrfTables& tables, CrfRow& row, const CrfCall<T>& call) const {
    call.log_partition[row.b] = 0;
    if (call.labels) call.losses[row.b] = 0;
    if (row.count == 0) return;
    const double* const alpha = row.alpha + (row.count - 1) * pitch_;
    for (Index j = 0; j < pitch_; j += lanes)
      store(row.p + j, load(alpha + j) + load(tables.end + j));
    PowerSum all{shift_of(largest(row.p, pitch_)), 0};
    for (Index j = 0; j < pitch_; j += lanes)
      store(row.p + j, exponential<double>(load(row.p + j) - all.shift));
    for (Index j = 0; j < in_.L; ++j) all.sum += row.p[j];
    for (Index j = 0; j < pitch_; j += lanes) store(row.p + j, load(row.p + j) / all.sum);
    const double log_partition = call.log_partition[row.b] = all.logarithm_of_all();
    if (!call.labels) return;
    double score = 0;
    for (Index s = 0; s < row.count; ++s) {
      const Index to = label(row, call, s);
      score +=
          s == 0 ? tables.start[to] : tables.transitions[label(row, call, s - 1) * pitch_ + to];
      score += static_cast<double>(in_.emissions[at(row.b, s) * in_.L + to]);
    }
    score += tables.end[label(row, call, row.count - 1)];
    call.losses[row.b] = log_partition - score;
  }
  Index label(const CrfRow& row, const CrfCall<T>& call, Index s) const {
    return static_cast<Index>(call.labels[at(row.b, s)]);
  }

  // The marginals of all steps, from the last to the first.
  bool backward(CancelToken& token, const CrfTables& tables, CrfWorkspace& own, Index n,
                const CrfCall<T>& call, double* gradients) const {
    const auto of_row = [&](const CrfRow& row) {
      return gradients ? gradients + (row.b - own.rows[0].b) * this->gradients() : nullptr;
    };
    for (Index s = longest(own, n) - 1; s >= 0; --s) {
      const Index alive = alive_at(own, n, s);
      Index exact = 0;
      for (Index i = 0; i < alive; ++i) {
        CrfRow& row = *own.alive[i];
        hand_out(row, s, call, of_row(row));
        if (s == 0) continue;
        double* const sums = row.sums + s * pitch_;
        for (Index j = 0; j < pitch_; j += lanes) {
          const V sum = load(sums + j);
          store(sums + j, sum >= kSmallestSum ? load(row.p + j) / sum : V{});
        }
        own.from[i] = sums, own.to[i] = row.before;
      }
      if (s > 0) {
        multiply(token, own, alive, in_.L, 1, tables.backward);
        for (Index i = 0; i < alive; ++i)
          exact += go_back(tables, *own.alive[i], s, of_row(*own.alive[i]));
      }
      if (!go_on(token, alive * blocks_ * 20 + exact * kExactOperations)) return false;
    }
    return true;
  }

  // What step s has in the gradients of emissions, of start and of end.
  void hand_out(const CrfRow& row, Index s, const CrfCall<T>& call, double* gradients) const {
    T* const to = call.demissions + at(row.b, s) * in_.L;
    const Index right = call.labels ? label(row, call, s) : -1;
    for (Index j = 0; j < in_.L; ++j)
      to[j] = static_cast<T>(call.factor * (row.p[j] - (j == right ? 1.0 : 0.0)));
    if (!gradients) return;
    double* const start = gradients + in_.L * pitch_;
    for (Index j = 0; j < in_.L; ++j) {
      const double slope = row.p[j] - (j == right ? 1.0 : 0.0);
      if (s == 0) start[j] = slope;
      if (s == row.count - 1) start[pitch_ + j] = slope;
    }
  }

  // The marginals of step s - 1, from those of step s; how many terms were summed exactly.
  Index go_back(const CrfTables& tables, CrfRow& row, Index s, double* gradients) const {
    Index exact = 0;
    const double* const alpha = row.alpha + (s - 1) * pitch_;
    const double* const shares = row.sums + s * pitch_;
    for (Index i = 0; i < pitch_; i += lanes)
      store(row.before + i, load(row.before + i) * load(row.powers + (s - 1) * pitch_ + i));
    for (Index j = 0; j < in_.L; ++j) {
      if (shares[j] != 0 || row.p[j] == 0) continue;
      const PowerSum of = sum_exactly(tables, alpha, j);
      exact += 2 * in_.L;
      for (Index i = 0; i < in_.L; ++i) {
        const double pair = row.p[j] * (power(tables, alpha, i, j, of.shift) / of.sum);
        row.before[i] += pair;
        if (gradients) gradients[i * pitch_ + j] += pair;
      }
    }
    double* const done = row.p;
    row.p = row.before, row.before = done;
    return exact;
  }

  // Of transitions: the marginals of pairs, summed over the steps, less the labels' pairs.
  void of_transitions(CancelToken& token, const CrfTables& tables, CrfWorkspace& own,
                      const CrfRow& row, const CrfCall<T>& call, double* gradients) const {
    if (row.count < 2) return;
    const Index pairs = row.count - 1;
    pack_columns<double>(
        token, [&](Index s) { return row.sums + (s + 1) * pitch_; }, pairs, pitch_,
        Range{0, blocks_}, own.panels);
    for (Index i = 0; i < in_.L; ++i) {
      own.from[i] = row.powers + i;
      own.to[i] = own.products + i * pitch_;
    }
    multiply(token, own, in_.L, pairs, pitch_, own.panels);
    for (Index i = 0; i < in_.L * pitch_; i += lanes)
      store(gradients + i,
            fma(load(own.products + i), load(tables.powers + i), load(gradients + i)));
    for (Index s = 0; s < pairs; ++s)
      gradients[label(row, call, s) * pitch_ + label(row, call, s + 1)] -= 1;
  }

  const CrfInputs<T>& in_;
  Index pitch_, blocks_;
};

// What a call takes of its workspace.
template <class T>
struct CrfParts {
  CrfTables tables;
  Index at_once;      // rows of the batch between two sums over them
  double* gradients;  // [at_once, gradients()]
  double* total;      // [gradients()]
  Index used;         // behind them, the threads' own

  CrfParts(const Crf<T>& all, const CrfCall<T>& call, int threads, Arena arena)
      : tables(all.tables(arena)), at_once(most(1, call.in.B)), gradients(nullptr), total(nullptr) {
    if (call.dstart) {
      const Index bytes = all.gradients() * static_cast<Index>(sizeof(double));
      at_once = least(at_once, most(threads * kCrfRows, kBytesOfGradients / bytes));
      gradients = arena.allocate<double>(at_once * all.gradients());
      total = arena.allocate<double>(all.gradients());
    }
    used = arena.used;
  }
};

template <class T>
Index crf_bytes_of_thread(const Crf<T>& all) {
  Arena arena{nullptr};
  all.workspace(arena);
  return arena.used;
}

template <class T>
Index crf_workspace(const CrfCall<T>& call) {
  const Crf<T> all(call.in);
  const int threads = all.threads(call.threads);
  return CrfParts<T>(all, call, threads, Arena{nullptr}).used + threads * crf_bytes_of_thread(all);
}

template <class T>
void crf(const CrfCall<T>& call, void* workspace) {
  const Crf<T> all(call.in);
  char* const base = static_cast<char*>(workspace);
  const int threads = all.threads(call.threads);
  const CrfParts<T> parts(all, call, threads, Arena{base});
  const Index bytes = crf_bytes_of_thread(all), of_row = all.gradients(), pitch = all.pitch();
  const Index L = call.in.L, B = call.in.B;
  parallel(1, call.interrupt,
           [&](CancelToken& token, int, int) { all.prepare(token, parts.tables); });
  for (Index i = 0; call.dstart && i < of_row; ++i) parts.total[i] = 0;
  for (Index first = 0; first < B; first += parts.at_once) {
    const Index rows = least(parts.at_once, B - first);
    parallel(threads, call.interrupt, [&](CancelToken& token, int thread, int count) {
      Arena arena{base + parts.used + thread * bytes};
      CrfWorkspace own = all.workspace(arena);
      const Index group = least(kCrfRows, most(1, rows / count));
      in_parts(token, {0, ceil_div(rows - thread * group, count * group)}, 1,
               [&](Index turn, Index) {
                 const Index row = (turn * count + thread) * group;
                 all.run(token, parts.tables, own, first + row, least(group, rows - row), call,
                         call.dstart ? parts.gradients + row * of_row : nullptr);
               });
    });
    if (!call.dstart) continue;
    const std::uint64_t saved = enter_float_environment();
    for (Index r = 0; r < rows; ++r)
      for (Index i = 0; i < of_row; ++i) parts.total[i] += parts.gradients[r * of_row + i];
    leave_float_environment(saved);
  }
  if (!call.dstart) return;
  const std::uint64_t saved = enter_float_environment();
  const auto rounded = [&](const double* from, T* to) {
    for (Index j = 0; j < L; ++j) to[j] = static_cast<T>(call.factor * from[j]);
  };
  for (Index i = 0; i < L; ++i) rounded(parts.total + i * pitch, call.dtransitions + i * L);
  rounded(parts.total + L * pitch, call.dstart);
  rounded(parts.total + (L + 1) * pitch, call.dend);
  leave_float_environment(saved);
}

template <class T>
Index crf_decode_workspace(const CrfDecodeCall<T>& call) {
  const Crf<T> all(call.in);
  Arena arena{nullptr};
  all.tables(arena);
  Arena of_thread{nullptr};
  all.decode_workspace(of_thread);
  return arena.used + all.threads(call.threads) * of_thread.used;
}

template <class T>
void crf_decode(const CrfDecodeCall<T>& call, void* workspace) {
  const Crf<T> all(call.in);
  Arena arena{static_cast<char*>(workspace)};
  const CrfTables tables = all.tables(arena);
  Arena of_thread{nullptr};
  all.decode_workspace(of_thread);
  parallel(1, call.interrupt, [&](CancelToken& token, int, int) { all.prepare(token, tables); });
  parallel(all.threads(call.threads), call.interrupt,
           [&](CancelToken& token, int thread, int count) {
             Arena of_own{arena.base + arena.used + thread * of_thread.used};
             CrfDecodeWorkspace own = all.decode_workspace(of_own);
             in_parts(token, {0, ceil_div(call.in.B - thread, count)}, 1, [&](Index turn, Index) {
               all.decode(token, tables, own, turn * count + thread, call);
             });
           });
}

}  // namespace rnnkern::RNNKERN_ISA

// Attention of queries to keys and values, and its gradients. The formula's owner is
// src/rnnkern/reference/attention.py.
//
// Each row of the batch is computed by one thread, of its real steps alone. Each element is one
// chain of multiply-adds: of a score over the units, of a context and of dq over the keys, of the
// gradients of keys and values over the queries. The sums of softmax and of its derivative are in
// doubles, by key modulo a cache line. So neither threads nor padding leave a trace in the bits.
#pragma once

#include "modules/linear.h"

namespace rnnkern::RNNKERN_ISA {

// s becomes softmax(scale s) of n elements, in memory for whole cache lines.
template <class T>
static void softmax_row(T* s, Index n, T scale) {
  constexpr Index line = kLine<T>, lanes = kLanes<T>, pairs = kLanes<double>;
  for (Index i = n; i < padded<T>(n); ++i) s[i] = -__builtin_inff();  // of which e^x is 0
  Vec<T> tops[line / lanes];
  for (Vec<T>& top : tops) top = splat(T(-__builtin_inff()));
  for (Index j = 0; j < n; j += line)
    for (Index i = 0; i < line; i += lanes) {
      const Vec<T> x = load(s + j + i) * scale;
      store(s + j + i, x);
      tops[i / lanes] = larger(tops[i / lanes], x);
    }
  T top = -__builtin_inff();
  for (const Vec<T> some : tops)
    for (Index i = 0; i < lanes; ++i) top = some[i] > top ? some[i] : top;

  Vec<double> sums[line / pairs] = {};
  for (Index j = 0; j < n; j += line) {
    for (Index i = 0; i < line; i += lanes) store(s + j + i, exponential<T>(load(s + j + i) - top));
    for (Index i = 0; i < line; i += pairs) sums[i / pairs] += as_doubles(s + j + i);
  }
  double sum = 0;
  for (const Vec<double> some : sums)
    for (Index i = 0; i < pairs; ++i) sum += some[i];
  const T share = static_cast<T>(1 / sum);
  for (Index j = 0; j < n; j += lanes) store(s + j, load(s + j) * share);
}

// ds = scale p (dp - sum of p dp), in place of dp, of n elements in memory for whole cache lines.
template <class T>
static void softmax_row_gradient(T* p, T* dp, Index n, T scale) {
  constexpr Index line = kLine<T>, lanes = kLanes<T>, pairs = kLanes<double>;
  for (Index i = n; i < padded<T>(n); ++i) p[i] = dp[i] = T(0);
  Vec<double> sums[line / pairs] = {};
  for (Index j = 0; j < n; j += line)
    for (Index i = 0; i < line; i += pairs)
      sums[i / pairs] = fma(as_doubles(p + j + i), as_doubles(dp + j + i), sums[i / pairs]);
  double sum = 0;
  for (const Vec<double> some : sums)
    for (Index i = 0; i < pairs; ++i) sum += some[i];
  const Vec<T> mean = splat(static_cast<T>(sum));
  for (Index j = 0; j < n; j += lanes) store(dp + j, scale * (load(p + j) * (load(dp + j) - mean)));
}

// Blocks of the transpose of some rows that lie anywhere: block, then k, then row of the block;
// zeros behind the last row.
template <class T, class Row>
void pack_transposed(CancelToken& token, const Row& row, Range rows, Index K, T* out) {
  constexpr Index lanes = kLanes<T>;
  for (Index first = rows.first; first < rows.last; first += lanes) {
    T* const panel = out + (first - rows.first) * K;
    for (Index k = 0; k < K; k += lanes) {
      Vec<T> v[lanes];
      for (Index i = 0; i < lanes; ++i)
        v[i] = first + i < rows.last ? load_n(row(first + i) + k, K - k) : Vec<T>{};
      transpose<T>(v);
      for (Index i = 0; i < least(lanes, K - k); ++i) store_panel<T>(panel + (k + i) * lanes, v[i]);
    }
    if (!go_on(token, 2 * K)) return;
  }
}

// Workspace of one thread.
template <class T>
struct AttentionWorkspace {
  T* panels;
  T* weights;      // [kRowsAtOnce, padded keys] of one row of the batch
  T* slopes;       // likewise: the gradients of the weights, then of the scores
  const T** from;  // [kRowsAtOnce]
  T** to;          // [kRowsAtOnce]
};

template <class T>
class Attention {
 public:
  explicit Attention(const AttentionInputs<T>& in)
      : in_(in),
        pitch_(padded<T>(in.keys.T)),
        blocks_(least(panels_of_chain<T>(most(in.K, in.V)), blocks_of<T>(in.keys.T))),
        chain_(least(chain_of_panels<T>(kPanelsAtOnce), most(in.queries.T, in.keys.T))) {}

  // `products`: of each query and key, as long as the keys and the values.
  int threads(int most_threads, double products) const {
    constexpr double of_tanh = 20;  // operations of a unit of additive attention, at most
    constexpr double of_read = 8;   // that take as long as reading an element of a key
    const double width = as_double(in_.K) * (in_.v ? of_tanh : 2) + 2 * as_double(in_.V);
    const double of_key = as_double(in_.queries.T) * width + of_read * as_double(in_.K + in_.V);
    const double operations = products * as_double(in_.B) * as_double(in_.keys.T) * of_key;
    const int worthwhile = capped(most_threads, operations / kFlopsOfAThread);
    return static_cast<int>(least(worthwhile, most(1, in_.B)));
  }

  AttentionWorkspace<T> workspace(Arena& arena) const {
    const Index of_blocks = most(blocks_ * most(in_.K, in_.V), kPanelsAtOnce * chain_);
    AttentionWorkspace<T> own;
    own.panels = arena.allocate<T>(most(of_blocks, 2 * in_.keys.T) * kLanes<T>);
    own.weights = arena.allocate<T>(kRowsAtOnce * pitch_);
    own.slopes = arena.allocate<T>(kRowsAtOnce * pitch_);
    own.from = arena.allocate<const T*>(kRowsAtOnce);
    own.to = arena.allocate<T*>(kRowsAtOnce);
    return own;
  }

  void forward(CancelToken& token, const AttentionWorkspace<T>& own, Index b,
               const AttentionCall<T>& call) const {
    const Index keys = in_.keys.count[b];
    if (keys == 0) return;
    in_parts(token, {0, in_.queries.count[b]}, kRowsAtOnce, [&](Index first, Index count) {
      const auto query = [&](Index i) { return in_.query + at(in_.queries, b, first + i) * in_.K; };
      const auto key = [&](Index k) { return in_.key + at(in_.keys, b, k) * in_.K; };
      if (in_.v)
        additive_scores(token, own, count, query, keys, key);
      else
        inner_products(token, own, count, query, keys, key, in_.K, own.weights);
      for (Index i = 0; i < count; ++i) {
        T* const p = own.weights + i * pitch_;
        softmax_row(p, keys, in_.v ? T(1) : in_.scale);
        T* const to = call.weights + at(in_.queries, b, first + i) * in_.keys.T;
        for (Index k = 0; k < keys; ++k) to[step(in_.keys, b, k)] = p[k];
      }
      weighted_sums(
          token, own, count, [&](Index i) { return own.weights + i * pitch_; }, 1, keys,
          [&](Index k) { return in_.value + at(in_.keys, b, k) * in_.V; }, in_.V,
          [&](Index i) { return call.context + at(in_.queries, b, first + i) * in_.V; }, false);
    });
  }

  void backward(CancelToken& token, const AttentionWorkspace<T>& own, Index b,
                const AttentionGradientCall<T>& call) const {
    const Index keys = in_.keys.count[b], queries = in_.queries.count[b];
    if (keys == 0) return;
    in_parts(token, {0, queries}, kRowsAtOnce, [&](Index first, Index count) {
      const auto query = [&](Index i) { return in_.query + at(in_.queries, b, first + i) * in_.K; };
      const auto key = [&](Index k) { return in_.key + at(in_.keys, b, k) * in_.K; };
      const auto value = [&](Index k) { return in_.value + at(in_.keys, b, k) * in_.V; };
      const auto dcontext = [&](Index i) {
        return call.dcontext + at(in_.queries, b, first + i) * in_.V;
      };
      inner_products(token, own, count, dcontext, keys, value, in_.V, own.slopes);
      for (Index i = 0; i < count; ++i) {
        const T* const from = call.weights + at(in_.queries, b, first + i) * in_.keys.T;
        T* const p = own.weights + i * pitch_;
        for (Index k = 0; k < keys; ++k) p[k] = from[step(in_.keys, b, k)];
        softmax_row_gradient(p, own.slopes + i * pitch_, keys, in_.v ? T(1) : in_.scale);
      }
      const auto dquery = [&](Index i) {
        return call.dquery + at(in_.queries, b, first + i) * in_.K;
      };
      const auto dkey = [&](Index k) { return call.dkey + at(in_.keys, b, k) * in_.K; };
      const auto weight = [&](Index k) { return own.weights + k; };
      const auto slope = [&](Index k) { return own.slopes + k; };
      const bool accumulate = first > 0;
      if (in_.v && call.dkey)
        additive_gradient<true>(token, own, count, query, dquery, keys, key, dkey,
                                call.dv_of_rows + b * in_.K, accumulate, first + count == queries);
      else if (in_.v)
        additive_gradient<false>(token, own, count, query, dquery, keys, key, dkey, nullptr,
                                 accumulate, true);
      else
        weighted_sums(
            token, own, count, [&](Index i) { return own.slopes + i * pitch_; }, 1, keys, key,
            in_.K, dquery, false);
      if (!call.dkey) return;
      if (!in_.v)
        weighted_sums(token, own, keys, slope, pitch_, count, query, in_.K, dkey, accumulate);
      weighted_sums(
          token, own, keys, weight, pitch_, count, dcontext, in_.V,
          [&](Index k) { return call.dvalue + at(in_.keys, b, k) * in_.V; }, accumulate);
    });
  }

 private:
  static Index step(const StepsOfRows& of, Index b, Index i) { return of.steps[b * of.T + i]; }
  Index at(const StepsOfRows& of, Index b, Index i) const { return step(of, b, i) * in_.B + b; }

  // Some blocks of rows, transposed, at a time: use(first row, blocks).
  template <class Row, class Use>
  void in_blocks(CancelToken& token, const AttentionWorkspace<T>& own, Index rows, const Row& row,
                 Index K, const Use& use) const {
    in_parts(token, {0, blocks_of<T>(rows)}, blocks_, [&](Index block, Index blocks) {
      const Index first = block * kLanes<T>;
      pack_transposed(token, row, Range{first, least(rows, first + blocks * kLanes<T>)}, K,
                      own.panels);
      use(first, blocks);
    });
  }

  // to[i, j] = the inner product of from(i) and row(j), which have K elements.
  template <class From, class Row>
  void inner_products(CancelToken& token, const AttentionWorkspace<T>& own, Index count,
                      const From& from, Index rows, const Row& row, Index K, T* to) const {
    if (count == 1) return inner_products_of_one(token, from(0), rows, row, K, to);
    in_blocks(token, own, rows, row, K, [&](Index first, Index blocks) {
      for (Index i = 0; i < count; ++i) {
        own.from[i] = from(i);
        own.to[i] = to + i * pitch_ + first;
      }
      product<1>(token, count, own.from, Depth{1, K, 1, {0}}, static_cast<const T*>(own.panels),
                 Range{0, blocks}, false,
                 Target<T>{own.to, nullptr, true, false, blocks * kLanes<T>}, [](Index, int) {});
    });
  }

  // to(i) = sum over k of from(i)[k stride] row(k), of `columns` elements; `accumulate`: added to
  // the values of to(i).
  template <class From, class Row, class To>
  void weighted_sums(CancelToken& token, const AttentionWorkspace<T>& own, Index count,
                     const From& from, Index stride, Index K, const Row& row, Index columns,
                     const To& to, bool accumulate) const {
    if (count == 1)
      return weighted_sum_of_one(token, from(0), stride, K, row, columns, to(0), accumulate);
    in_parts(token, {0, blocks_of<T>(columns)}, kPanelsAtOnce, [&](Index block, Index blocks) {
      const Index column = block * kLanes<T>;
      in_parts(token, {0, K}, chain_, [&](Index first, Index depth) {
        pack_columns<T>(
            token, [&](Index k) { return row(first + k) + column; }, depth, columns - column,
            Range{0, blocks}, own.panels);
        in_parts(token, {0, count}, kRowsAtOnce, [&](Index first_row, Index rows) {
          for (Index i = 0; i < rows; ++i) {
            own.from[i] = from(first_row + i) + first * stride;
            own.to[i] = to(first_row + i) + column;
          }
          product<1>(token, rows, own.from, Depth{1, depth, stride, {0}},
                     static_cast<const T*>(own.panels), Range{0, blocks}, false,
                     Target<T>{own.to, nullptr, !accumulate && first == 0, false, columns - column},
                     [](Index, int) {});
        });
      });
    });
  }

  // The same of one row, as a decoder's step has it: panels would be written to be read once. Two
  // blocks hide the latency of each other's chains. A cache line of a row is used up before the
  // next row: rows a power of two apart would drive each other out of the cache.
  template <class Row>
  void inner_products_of_one(CancelToken& token, const T* from, Index rows, const Row& row, Index K,
                             T* to) const {
    constexpr Index lanes = kLanes<T>, line = kLine<T>;
    for (Index first = 0; first < rows; first += 2 * lanes) {
      const T* rows_of[2][lanes];
      for (Index i = 0; i < 2 * lanes; ++i)  // repeats of the last row are not read
        rows_of[i / lanes][i % lanes] = row(least(first + i, rows - 1));
      Vec<T> sums[2] = {};
      for (Index k = 0; k < K; k += line)
        for (int block = 0; block < 2; ++block)
          for (Index j = k; j < least(k + line, K); j += lanes) {
            Vec<T> v[lanes];
            for (Index i = 0; i < lanes; ++i) v[i] = load_n(rows_of[block][i] + j, K - j);
            transpose<T>(v);
            if (j + lanes <= K) {
#pragma GCC unroll 16
              for (Index i = 0; i < lanes; ++i)
                sums[block] = fma(splat(from[j + i]), v[i], sums[block]);
            } else {
              for (Index i = 0; i < K - j; ++i)
                sums[block] = fma(splat(from[j + i]), v[i], sums[block]);
            }
          }
      store(to + first, sums[0]);
      if (first + lanes < rows) store(to + first + lanes, sums[1]);
      if (!go_on(token, 4 * K)) return;
    }
  }
  template <class Row>
  void weighted_sum_of_one(CancelToken& token, const T* from, Index stride, Index K, const Row& row,
                           Index columns, T* to, bool accumulate) const {
    constexpr Index lanes = kLanes<T>, wide = 8;
    Index column = 0;
    for (; column + wide * lanes <= columns; column += wide * lanes) {
      Vec<T> sums[wide];
#pragma GCC unroll 8
      for (Index v = 0; v < wide; ++v)
        sums[v] = accumulate ? load(to + column + v * lanes) : Vec<T>{};
      for (Index k = 0; k < K; ++k) {
        const T* const own = row(k) + column;
        const Vec<T> x = splat(from[k * stride]);
#pragma GCC unroll 8
        for (Index v = 0; v < wide; ++v) sums[v] = fma(x, load(own + v * lanes), sums[v]);
      }
#pragma GCC unroll 8
      for (Index v = 0; v < wide; ++v) store(to + column + v * lanes, sums[v]);
    }
    for (; column < columns; column += lanes) {
      const Index left = columns - column;
      Vec<T> sum = accumulate ? load_n(to + column, left) : Vec<T>{};
      for (Index k = 0; k < K; ++k)
        sum = fma(splat(from[k * stride]), load_n(row(k) + column, left), sum);
      store_n(to + column, sum, left);
    }
    go_on(token, K * ceil_div(columns, lanes));
  }

  // weights[i, k] = v tanh(query(i) + key(k)); vectors run over the keys.
  template <class Query, class Key>
  void additive_scores(CancelToken& token, const AttentionWorkspace<T>& own, Index count,
                       const Query& query, Index keys, const Key& key) const {
    constexpr Index lanes = kLanes<T>;
    const Index A = in_.K;
    in_blocks(token, own, keys, key, A, [&](Index first, Index blocks) {
      for (Index i = 0; i < count; ++i) {
        const T* const q = query(i);
        for (Index block = 0; block < blocks; ++block) {
          const T* const panel = own.panels + block * A * lanes;
          Vec<T> sum{};
          for (Index a = 0; a < A; ++a)
            sum = fma(splat(in_.v[a]), hyperbolic_tangent<T>(splat(q[a]) + load(panel + a * lanes)),
                      sum);
          store(own.weights + i * pitch_ + first + block * lanes, sum);
        }
        if (!go_on(token, blocks * A * kOperationsOfTanh)) return;
      }
    });
  }

  // With u = tanh(q + k) and g = ds (1 - u^2): dq = v sum of g over the keys, dk = v sum of g over
  // the queries, dv = sum of ds u over both. Vectors run over the units. `accumulate`: dk (without
  // its v) and dv hold the sums of earlier queries; `ends`: these are the last queries.
  template <bool all, class Query, class DQuery, class Key, class DKey>
  void additive_gradient(CancelToken& token, const AttentionWorkspace<T>& own, Index count,
                         const Query& query, const DQuery& dquery, Index keys, const Key& key,
                         const DKey& dkey, T* dv, bool accumulate, bool ends) const {
    constexpr Index lanes = kLanes<T>;
    T* const packed = own.panels;  // the keys: [keys, lanes]
    T* const sums = packed + keys * lanes;
    for (Index a = 0; a < in_.K; a += lanes) {
      const Index left = in_.K - a;
      for (Index k = 0; k < keys; ++k) {
        store(packed + k * lanes, load_n(key(k) + a, left));
        if (all) store(sums + k * lanes, accumulate ? load_n(dkey(k) + a, left) : Vec<T>{});
      }
      const Vec<T> v = load_n(in_.v + a, left);
      Vec<T> sum_v = all && accumulate ? load_n(dv + a, left) : Vec<T>{};
      for (Index i = 0; i < count; ++i) {
        const T* const slopes = own.slopes + i * pitch_;
        const Vec<T> q = load_n(query(i) + a, left);
        Vec<T> sum_q{};
        for (Index k = 0; k < keys; ++k) {
          const Vec<T> u = hyperbolic_tangent<T>(q + load(packed + k * lanes));
          const Vec<T> ds = splat(slopes[k]), du = ds * u, g = fma(-du, u, ds);
          sum_q += g;
          if (all) {
            sum_v += du;
            store(sums + k * lanes, load(sums + k * lanes) + g);
          }
        }
        store_n(dquery(i) + a, sum_q * v, left);
        if (!go_on(token, keys * kOperationsOfTanh)) return;
      }
      if (!all) continue;
      store_n(dv + a, sum_v, left);
      for (Index k = 0; k < keys; ++k) {
        const Vec<T> sum = load(sums + k * lanes);
        store_n(dkey(k) + a, ends ? sum * v : sum, left);
      }
    }
  }

  static constexpr Index kOperationsOfTanh = 20;

  const AttentionInputs<T>& in_;
  Index pitch_;   // of rows of weights and slopes
  Index blocks_;  // of rows that are transposed at a time
  Index chain_;   // of a sum of rows that is packed at a time
};

// Rows of the batch are handed out in turns: long ones are often adjacent.
template <class T, class Row>
void attention_rows(const Attention<T>& all, Index B, int threads, const Interrupt& interrupt,
                    void* workspace, const Row& row) {
  const Index bytes = bytes_of_thread(all);
  parallel(threads, interrupt, [&](CancelToken& token, int thread, int count) {
    Arena arena{static_cast<char*>(workspace) + thread * bytes};
    const AttentionWorkspace<T> own = all.workspace(arena);
    in_parts(token, {0, ceil_div(B - thread, count)}, 1,
             [&](Index turn, Index) { row(token, own, turn * count + thread); });
  });
}

template <class T>
Index attention_workspace(const AttentionCall<T>& call) {
  const Attention<T> all(call.in);
  return all.threads(call.threads, 1) * bytes_of_thread(all);
}
template <class T>
void attention(const AttentionCall<T>& call, void* workspace) {
  const Attention<T> all(call.in);
  attention_rows(all, call.in.B, all.threads(call.threads, 1), call.interrupt, workspace,
                 [&](CancelToken& token, const AttentionWorkspace<T>& own, Index b) {
                   all.forward(token, own, b, call);
                 });
}

template <class T>
Index attention_gradient_workspace(const AttentionGradientCall<T>& call) {
  const Attention<T> all(call.in);
  return all.threads(call.threads, 2) * bytes_of_thread(all);
}
template <class T>
void attention_gradient(const AttentionGradientCall<T>& call, void* workspace) {
  const Attention<T> all(call.in);
  attention_rows(all, call.in.B, all.threads(call.threads, 2), call.interrupt, workspace,
                 [&](CancelToken& token, const AttentionWorkspace<T>& own, Index b) {
                   all.backward(token, own, b, call);
                 });
  if (!call.dv) return;
  const std::uint64_t saved = enter_float_environment();
  for (Index a = 0; a < call.in.K; ++a) call.dv[a] = T(0);
  for (Index b = 0; b < call.in.B; ++b)
    for (Index a = 0; a < call.in.K; ++a) call.dv[a] += call.dv_of_rows[b * call.in.K + a];
  leave_float_environment(saved);
}

}  // namespace rnnkern::RNNKERN_ISA

// An affine map, y = x W^T + b, and its gradients. The formula's owner is
// src/rnnkern/reference/linear.py.
//
// Each element is one chain of multiply-adds: of y from the bias over the inputs, of dx from zero
// over the outputs, of dW from zero over the rows. So threads and blocks leave no trace in the
// bits. Each thread packs its own panels, a part at a time that stays in the second-level cache,
// so no thread waits for another.
#pragma once

#include "modules/calls.h"
#include "product/panels.h"

namespace rnnkern::RNNKERN_ISA {

// A thread packs at most about so many bytes before it multiplies, but always the panels of one
// tile, and of a chain that is cut at least this part.
inline constexpr Index kPackedBytes = 1 << 18;
inline constexpr Index kShortestChain = 64;
inline constexpr Index kRowsAtOnce = 128;    // of the operand that is not packed
inline constexpr Index kPanelsAtOnce = 16;   // that share a part of their chains
inline constexpr Index kRowsOfAThread = 32;  // for fewer, threads share columns instead of rows

// Workspace of one thread.
template <class T>
struct LinearWorkspace {
  T* panels;
  T* lines;        // of dy: [kRowsAtOnce / line, chain, line]
  T* bias;         // [padded O]
  const T** from;  // [kRowsAtOnce]
  T** to;          // [kRowsAtOnce]

  // `vectors`: of all panels together; `lines_of_dy`: cache lines.
  LinearWorkspace(Arena& arena, Index vectors, Index lines_of_dy, Index O)
      : panels(arena.allocate<T>(vectors * kLanes<T>)),
        lines(arena.allocate<T>(lines_of_dy * kLine<T>)),
        bias(arena.allocate<T>(padded<T>(O))),
        from(arena.allocate<const T*>(kRowsAtOnce)),
        to(arena.allocate<T*>(kRowsAtOnce)) {}
};

// Panels of whole chains of K that are packed at a time.
template <class T>
Index panels_of_chain(Index K) {
  const Index fit = kPackedBytes / (K * kLanes<T> * static_cast<Index>(sizeof(T)));
  return most(fit / kMostPanels, 1) * kMostPanels;
}
// The part of a chain that is packed at a time with so many panels.
template <class T>
Index chain_of_panels(Index panels) {
  return most(kShortestChain, kPackedBytes / (panels * kLanes<T> * static_cast<Index>(sizeof(T))));
}

// The rows and the blocks of columns of a product that a thread computes.
struct LinearShare {
  Range rows, blocks;
};
inline LinearShare linear_share(Index rows, Index blocks, int thread, int threads) {
  if (rows >= kRowsOfAThread * threads) return {share(rows, thread, threads), {0, blocks}};
  return {{0, rows}, share(blocks, thread, threads)};
}

// Calls body(first, n) for parts of a range, at most `size` each, until the call is to end.
template <class Body>
void in_parts(CancelToken& token, Range range, Index size, const Body& body) {
  for (Index first = range.first; first < range.last; first += size) {
    if (canceled(token)) return;
    body(first, least(size, range.last - first));
  }
}

template <class Call>
int linear_threads(const Call& call, double products) {
  const double flops = 2.0 * as_double(call.rows) * as_double(call.I) * as_double(call.O);
  return capped(call.threads, products * flops / kFlopsOfAThread);
}

template <class T>
class LinearForward {
 public:
  explicit LinearForward(const LinearCall<T>& call)
      : call_(call), panels_(least(panels_of_chain<T>(call.I), blocks_of<T>(call.O))) {}

  int threads() const { return linear_threads(call_, 1); }
  LinearWorkspace<T> workspace(Arena& arena) const {
    return {arena, panels_ * call_.I, 0, call_.O};
  }

  void work(CancelToken& token, const LinearWorkspace<T>& own, const LinearShare& mine) const {
    const Index I = call_.I, O = call_.O;
    if (call_.bias) pack_bias<T>(call_.bias, nullptr, 1, O, own.bias);
    const T* const bias = call_.bias ? own.bias : nullptr;
    in_parts(token, mine.blocks, panels_, [&](Index block, Index blocks) {
      const Index column = block * kLanes<T>;
      pack_gates<1>(token, call_.weight + column * I, 0, O - column, Heads<T>::of(I, 1),
                    Range{0, blocks}, own.panels);
      in_parts(token, mine.rows, kRowsAtOnce, [&](Index first, Index rows) {
        for (Index i = 0; i < rows; ++i) {
          const Index row = call_.order ? call_.order[first + i] : first + i;
          own.from[i] = call_.x + row * I;
          own.to[i] = call_.y + row * O + column;
        }
        product<1>(token, rows, own.from, Depth{1, I, 1, {0}}, static_cast<const T*>(own.panels),
                   Range{0, blocks}, false,
                   Target<T>{own.to, bias ? bias + column : nullptr, !bias, false, O - column},
                   [](Index, int) {});
      });
    });
  }

 private:
  const LinearCall<T>& call_;
  Index panels_;
};

template <class T>
class LinearBackward {
 public:
  explicit LinearBackward(const LinearGradientCall<T>& call)
      : call_(call),
        panels_(least(kPanelsAtOnce, blocks_of<T>(call.I))),
        chain_(chain_of_panels<T>(panels_)) {}

  int threads() const { return linear_threads(call_, 2); }
  LinearWorkspace<T> workspace(Arena& arena) const {
    return {arena, panels_ * chain_, kRowsAtOnce / kLine<T> * chain_, 0};
  }

  void inputs(CancelToken& token, const LinearWorkspace<T>& own, const LinearShare& mine) const {
    const Index I = call_.I, O = call_.O;
    in_parts(token, mine.blocks, panels_, [&](Index block, Index blocks) {
      const Index column = block * kLanes<T>;
      in_parts(token, {0, O}, chain_, [&](Index output, Index outputs) {
        pack_columns<T>(
            token, [&](Index k) { return call_.weight + (output + k) * I + column; }, outputs,
            I - column, Range{0, blocks}, own.panels);
        in_parts(token, mine.rows, kRowsAtOnce, [&](Index first, Index rows) {
          for (Index i = 0; i < rows; ++i) {
            own.from[i] = call_.dy + row(first + i) * O + output;
            own.to[i] = call_.dx + row(first + i) * I + column;
          }
          product<1>(token, rows, own.from, Depth{1, outputs, 1, {0}},
                     static_cast<const T*>(own.panels), Range{0, blocks}, false,
                     Target<T>{own.to, nullptr, output == 0, false, I - column}, [](Index, int) {});
        });
      });
    });
  }

  // dL/dW of the rows in some lines of outputs, and of some blocks of columns.
  void weights(CancelToken& token, const LinearWorkspace<T>& own, Range lines,
               Range blocks_of_mine) const {
    const Index I = call_.I, O = call_.O;
    constexpr Index line = kLine<T>;
    in_parts(token, blocks_of_mine, panels_, [&](Index block, Index blocks) {
      const Index column = block * kLanes<T>;
      in_parts(token, {0, call_.rows}, chain_, [&](Index first, Index rows) {
        pack_columns<T>(
            token, [&](Index k) { return call_.x + row(first + k) * I + column; }, rows, I - column,
            Range{0, blocks}, own.panels);
        in_parts(token, lines, kRowsAtOnce / line, [&](Index own_line, Index count) {
          const Index output = own_line * line, outputs = least(count * line, O - output);
          pack_lines(token, first, rows, output, outputs, own.lines);
          for (Index i = 0; i < outputs; ++i) {
            own.from[i] = own.lines + i / line * rows * line + i % line;
            own.to[i] = call_.dweight + (output + i) * I + column;
          }
          product<1>(token, outputs, own.from, Depth{1, rows, line, {0}},
                     static_cast<const T*>(own.panels), Range{0, blocks}, false,
                     Target<T>{own.to, nullptr, first == 0, false, I - column}, [](Index, int) {});
        });
      });
    });
  }

  // The sums of the rows of dy, of some lines of outputs.
  void bias(CancelToken& token, Range lines) const {
    const Index O = call_.O, begin = lines.first * kLine<T>;
    const Index end = least(lines.last * kLine<T>, O);
    for (Index j = begin; j < end; ++j) call_.dbias[j] = T(0);
    for (Index r = 0; r < call_.rows; ++r) {
      const T* const dy = call_.dy + row(r) * O;
      for (Index j = begin; j < end; j += kLanes<T>)
        store_n(call_.dbias + j, load_n(call_.dbias + j, end - j) + load_n(dy + j, end - j),
                end - j);
      if (!go_on(token, 3 * ceil_div(end - begin, kLanes<T>))) return;
    }
  }

  LinearShare share_of_inputs(int thread, int threads) const {
    return linear_share(call_.rows, blocks_of<T>(call_.I), thread, threads);
  }
  Index lines() const { return ceil_div(call_.O, kLine<T>); }

 private:
  Index row(Index r) const { return call_.order ? call_.order[r] : r; }

  // Some outputs of some rows of dy, a cache line of them for each row; zeros behind the last.
  void pack_lines(CancelToken& token, Index first, Index rows, Index output, Index outputs,
                  T* out) const {
    constexpr Index line = kLine<T>;
    const Index count = ceil_div(outputs, line);
    for (Index k = 0; k < rows; ++k) {
      const T* const dy = call_.dy + row(first + k) * call_.O + output;
      for (Index j = 0; j < count * line; j += kLanes<T>)
        store(out + j / line * rows * line + k * line + j % line, load_n(dy + j, outputs - j));
    }
    go_on(token, rows * count);
  }

  const LinearGradientCall<T>& call_;
  Index panels_, chain_;
};

template <class Work>
Index bytes_of_thread(const Work& work) {
  Arena arena{nullptr};
  work.workspace(arena);
  return arena.used;
}

template <class T>
Index linear_workspace(const LinearCall<T>& call) {
  const LinearForward<T> all(call);
  return all.threads() * bytes_of_thread(all);
}
template <class T>
void linear(const LinearCall<T>& call, void* workspace) {
  const LinearForward<T> all(call);
  const Index bytes = bytes_of_thread(all);
  parallel(all.threads(), call.interrupt, [&](CancelToken& token, int thread, int threads) {
    Arena arena{static_cast<char*>(workspace) + thread * bytes};
    all.work(token, all.workspace(arena),
             linear_share(call.rows, blocks_of<T>(call.O), thread, threads));
  });
}

template <class T>
Index linear_gradient_workspace(const LinearGradientCall<T>& call) {
  const LinearBackward<T> all(call);
  return all.threads() * bytes_of_thread(all);
}
template <class T>
void linear_gradient(const LinearGradientCall<T>& call, void* workspace) {
  const LinearBackward<T> all(call);
  const Index bytes = bytes_of_thread(all);
  const Index lines = all.lines(), blocks = blocks_of<T>(call.I);
  parallel(all.threads(), call.interrupt, [&](CancelToken& token, int thread, int threads) {
    Arena arena{static_cast<char*>(workspace) + thread * bytes};
    const LinearWorkspace<T> own = all.workspace(arena);
    // The side that is longer is shared, the other is packed by all.
    const Range mine = share(lines, thread, threads);
    if (call.O >= call.I)
      all.weights(token, own, mine, {0, blocks});
    else
      all.weights(token, own, {0, lines}, share(blocks, thread, threads));
    if (call.dbias) all.bias(token, mine);
    if (call.dx) all.inputs(token, own, all.share_of_inputs(thread, threads));
  });
}

}  // namespace rnnkern::RNNKERN_ISA

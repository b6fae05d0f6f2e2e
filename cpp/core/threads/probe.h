// What the machine can do at best, with the instruction set in use: fused multiply-adds on
// registers and reads from memory. The benchmarks hold the kernels' times against it.
#pragma once

#include "dispatch.h"
#include "threads/team.h"

namespace rnnkern::RNNKERN_ISA {

// As many vectors as stay in registers, with workspace for operands: more than the chains that hide
// the latency of a multiply-add or an add (8 to 16).
inline constexpr int kChains = kVectorRegisters * 3 / 4;

// The sum of use(watch, thread, threads) over all threads.
template <class Use>
static Probe probe(int threads, const Interrupt& interrupt, const Use& use) {
  Probe total{0, 0};
  parallel(threads, interrupt, [&](CancelToken& token, int thread, int count) {
    const Probe own = use(token, thread, count);
#pragma omp atomic  // not critical, which would export a symbol
    total.work += own.work;
#pragma omp atomic
    total.sum += own.sum;
  });
  return total;
}

template <class T>
static Probe sum_of_chains(const Vec<T>* chains, double work) {
  Probe own{work, 0};
  for (int j = 0; j < kChains; ++j)
    for (int i = 0; i < kLanes<T>; ++i) own.sum += static_cast<double>(chains[j][i]);
  return own;
}

// Each element of each chain goes `rounds` times from x to x / 2 + 1, starting at zero.
template <class T>
static Probe probe_fma(Index rounds, int threads, const Interrupt& interrupt) {
  return probe(threads, interrupt, [=](CancelToken& token, int, int) {
    Vec<T> chains[kChains] = {};
    Vec<T> half = splat(T(0.5)), one = splat(T(1));
    asm volatile("" : "+m"(half), "+m"(one));  // not known to the compiler, which would fold
    constexpr Index part = 4096;
    for (Index done = 0; done < rounds && go_on(token, part * kChains); done += part)
      for (Index round = least(part, rounds - done); round > 0; --round)
#pragma GCC unroll 32
        for (int j = 0; j < kChains; ++j) chains[j] = fma(chains[j], half, one);
    return sum_of_chains<T>(chains, 2.0 * static_cast<double>(rounds * kChains * kLanes<T>));
  });
}

// Sums up all n values `passes` times, each thread its own part of them.
template <class T>
static Probe probe_read(const T* values, Index n, Index passes, int threads,
                        const Interrupt& interrupt) {
  return probe(threads, interrupt, [=](CancelToken& token, int thread, int count) {
    const Range lines = share(ceil_div(n, kLine<T>), thread, count);
    const Index first = lines.first * kLine<T>, last = least(lines.last * kLine<T>, n);
    constexpr Index part = kChains * kLanes<T>;
    Vec<T> chains[kChains] = {};
    for (Index pass = 0; pass < passes && go_on(token, (last - first) / kLanes<T>); ++pass) {
      asm volatile("" ::: "memory");  // each pass reads anew
      Index i = first;
      for (; i + part <= last; i += part)
#pragma GCC unroll 32
        for (int j = 0; j < kChains; ++j) chains[j] += load(values + i + j * kLanes<T>);
      for (; i < last; i += kLanes<T>) chains[0] += load_n(values + i, last - i);
    }
    return sum_of_chains<T>(chains, static_cast<double>((last - first) * passes) * sizeof(T));
  });
}

}  // namespace rnnkern::RNNKERN_ISA

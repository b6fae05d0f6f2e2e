// The core on many threads: the same bits as the naive reference's on 1 to 12 threads, whether they
// share rows, units or both, also from several callers at once on the same weights; and calls that
// end early. What they meet at, and what a thread learns from its calls. For ThreadSanitizer and
// Valgrind, too. Exits with 1 and says so at the first fault.
//
//   threads [few]     `few`: half of the problems of each kind, for sanitizers
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "cases.h"

using namespace rnnkern;
using namespace rnnkern::testing;

namespace {

constexpr int kThreads = 8;

void require(bool condition, const std::string& text) {
  if (condition) return;
  std::printf("%s\n", text.c_str());
  std::exit(1);
}

// A problem so large that kThreads threads are worth their meeting.
Problem large_problem(Kind kind, Index D, bool units_shared) {
  Draw nothing(nullptr, 0);
  Problem p(nothing);
  const Index G = kKinds[static_cast<int>(kind)].gates;
  p.kind = kind, p.L = 2, p.D = D, p.I = 13, p.state = p.dstate = p.keep = true;
  bool heads = false;
  for (const ParameterInfo* of = p.info().parameters; of->name; ++of)
    heads = heads || of->columns == Extent::head;
  p.B = units_shared ? 2 : 4 * kThreads + 3;
  p.H = !units_shared ? 23 : heads ? 355 : G == 1 ? 325 : 165;
  p.P = p.has(projection_matrix) ? p.H - 3 : p.H;
  if (p.info().reads_x)
    p.I = p.H, p.L = D == 1 ? p.L : 1;  // outputs of two directions are no units
  p.constants = {
      0.7,
      0.3,
      0.9,
      {{ActivationKind::sigmoid, 0, 0}, {ActivationKind::tanh, 0, 0}, {ActivationKind::tanh, 0, 0}},
      {0.1, 0.2, 0.3}};
  p.dropout.training = true;
  if (heads) p.constants.heads = units_shared ? 5 : 23;  // divisors of H
  const Index recurrent = p.has(recurrent_matrix) ? 2 * p.P / p.constants.heads : 0;
  p.T = 1 + 8500000 / (2 * G * p.H * p.B * D * (p.I + recurrent + (p.L - 1) * D * p.P));
  p.clip = {0.5, 0.4, 0.3, 0.2};
  p.dropout.p = 0.25;
  p.ragged = !units_shared;
  for (Index b = 0; p.ragged && b < p.B; ++b) p.lengths.push_back(p.T - b % 3 * p.T / 4);
  return p;
}

bool never(void*) { return false; }
Interrupt asked_in_vain() {
  static thread_local Nanoseconds due;  // several threads call at once
  return {never, nullptr, &(due = 0)};
}

// Under memcheck workspace must stay what it is: undefined.
template <class T>
void run_kernels(const TypedKernels<T>& kernels, Outputs<T>& out, int threads) {
  ForwardCall<T> forward = out.forward_call(asked_in_vain());
  forward.threads = threads;
  set_threads(0);  // nothing is learned yet: all of them take part
  kernels.forward(forward, room_of(kernels.forward_workspace(forward)).get());
  BackwardCall<T> backward = out.backward_call(asked_in_vain());
  backward.threads = threads;
  set_threads(0);
  out.norm = kernels.backward(backward, room_of(kernels.backward_workspace(backward)).get());
}

template <class T>
void same_bits(const Kernels& set, Kind kind, Index D, bool units_shared) {
  const TypedKernels<T>& kernels = set.of<T>();
  const Problem p = large_problem(kind, D, units_shared);
  const RowSchedule schedule = p.ragged ? RowSchedule(p.T, p.lengths) : RowSchedule(p.T, p.B);
  const Inputs<T> inputs(p);
  const auto outputs = [&] {
    return Outputs<T>(inputs, schedule.view(), schedule.alive_rows(), false);
  };
  Outputs<T> expected = outputs();
  const Index* const lengths = p.ragged ? p.lengths.data() : nullptr;
  const std::uint64_t saved = enter_float_environment();
  naive::forward(expected.forward_call(), lengths);
  expected.norm = naive::backward(expected.backward_call(), lengths);
  leave_float_environment(saved);

  // The core's own choice; units or rows alone; teams of two and of three threads.
  std::vector<Grid> grids{{0, 1}};
  for (const int threads : {1, 2, 3, 5, kThreads})
    grids.push_back({threads, units_shared ? 1 : threads});
  const int directions = static_cast<int>(D);
  grids.push_back({4 * directions, 2}), grids.push_back({6 * directions, 2});
  for (const Grid grid : grids) {
    Outputs<T> ours = outputs();
    forced_grid = grid;
    run_kernels(kernels, ours, grid.threads > 0 ? grid.threads : kThreads);
    forced_grid = {0, 1};
    const std::string found = difference(ours, expected);
    require(found.empty(), std::to_string(grid.threads) + " threads, " +
                               std::to_string(grid.row_groups) + " teams: " + found + "\n  " +
                               p.text());
  }

  std::vector<Outputs<T>> each;
  for (int i = 0; i < 3; ++i) each.push_back(outputs());
  std::vector<std::thread> callers;
  for (Outputs<T>& out : each) callers.emplace_back([&] { run_kernels(kernels, out, 2); });
  for (std::thread& caller : callers) caller.join();
  for (const Outputs<T>& out : each) {
    const std::string found = difference(out, expected);
    require(found.empty(), "three callers: " + found + "\n  " + p.text());
  }
}

// Streams share what they packed, which is the same on one thread and on several.
template <class T>
void packed_weights(const Kernels& set, Kind kind) {
  const TypedKernels<T>& kernels = set.of<T>();
  Problem p = large_problem(kind, 1, true);
  p.keep = false, p.L = 1, p.T = 8, p.threads = 2;
  p.I = 1300;  // weights enough for several threads
  const Inputs<T> inputs(p);
  const Direction<T>& weights = inputs.directions[0];
  std::vector<Room> packed;
  for (const int threads : {1, kThreads}) {
    packed.push_back(room_of(kernels.packed_bytes(p.kind, p.constants, p.I, p.H, p.P)));
    set_threads(0);
    kernels.pack(p.kind, p.constants, weights, p.I, p.H, p.P, threads, {}, packed.back().get());
  }
  std::vector<Outputs<T>> each;
  for (std::size_t i = 0; i < 4; ++i) {
    each.emplace_back(inputs, RowSchedule(p.T, p.B).view(), p.T * p.B, false);
    Direction<T>& d = each.back().layers[0].direction[0];
    for (const T*& parameter : d.parameters) parameter = nullptr;
    d.packed = static_cast<const T*>(packed[i % 2].get());
  }
  std::vector<std::thread> callers;
  for (Outputs<T>& out : each)
    callers.emplace_back([&] {
      const ForwardCall<T> call = out.forward_call();
      kernels.forward(call, room_of(kernels.forward_workspace(call)).get());
    });
  for (std::thread& caller : callers) caller.join();
  for (const Outputs<T>& out : each) {
    const std::string found = difference(out, each[0]);
    require(found.empty(), "packed weights: " + found);
  }
}

// The workspace of a forward with checkpoints holds each of its segments: one of a single step may
// use more threads than one of two.
template <class T>
void segments(const Kernels& set) {
  static const TypedKernels<T>* real;
  static Index reserved, needed;
  real = &set.of<T>(), reserved = needed = 0;
  TypedKernels<T> watched = *real;
  watched.forward_workspace = [](const ForwardCall<T>& call) {
    const Index bytes = real->forward_workspace(call);
    reserved = std::max(reserved, bytes);
    return bytes;
  };
  watched.forward = [](const ForwardCall<T>& call, void*) {
    needed = std::max(needed, real->forward_workspace(call));
  };
  Sizes sizes{};
  sizes.kind = Kind::min_gru, sizes.I = 20000, sizes.H = sizes.P = 16, sizes.L = sizes.D = 1;
  TapeRecord<T> tape;
  tape.sizes = sizes, tape.B = 1, tape.rows = RowSchedule(3, 1), tape.segment = 2;
  tape.dropouts.resize(1);
  std::vector<T> x(3 * sizes.I), y(3 * sizes.H);
  tape.x = {{x.data(), sizes.I, sizes.I}, 0};
  const PackedWeights<T> packed(watched, sizes);
  ForwardArguments<T> arguments{};
  arguments.packed = &packed, arguments.keep = true;
  arguments.y = {{y.data(), sizes.H, sizes.H}, 0};
  set_threads(64);
  ForwardRun<T>(tape, arguments).run({});
  set_threads(0);
  require(needed > 0 && needed <= reserved, "segments: a workspace of " + std::to_string(reserved) +
                                                " bytes, and a call of " + std::to_string(needed));
}

// Steps on an array, and on every third row of it, of 7 elements each.
template <class T>
void optimizers(const Kernels& set, bool rows) {
  constexpr Index width = 7;
  const Index n = (Index{1} << 14) * kThreads * 3 / width * width;
  std::vector<std::int64_t> ids;
  for (Index row = 1; row < n / width; row += 3) ids.push_back(row);
  for (const Optimizer kind :
       {Optimizer::sgd, Optimizer::rmsprop, Optimizer::adam, Optimizer::adamw}) {
    std::vector<T> expected;
    for (const int threads : {1, 2, 3, 5, kThreads}) {
      std::vector<T> p(n), g(p), m(p), v(p);
      for (std::size_t i = 0; i < p.size(); ++i)
        p[i] = static_cast<T>(i % 97) - T(40), g[i] = static_cast<T>(i % 89) / T(7) - T(5);
      OptimizerStep<T> step{};
      step.kind = kind, step.scale = 0.5, step.lr = 0.01, step.momentum = 0.9, step.nesterov = true;
      step.beta1 = 0.9, step.beta2 = 0.99, step.eps = 1e-8, step.weight_decay = 0.1;
      step.correction1 = 0.1, step.correction2 = 0.1, step.threads = threads, step.n = n;
      if (rows) {
        step.ids = ids.data(), step.rows = n / width, step.columns = width;
        step.n = static_cast<Index>(ids.size()) * width;
      }
      step.l1 = 0.01, step.l2 = 0.02;
      step.parameter = p.data(), step.gradient = g.data();
      step.first = m.data(), step.second = kind == Optimizer::sgd ? nullptr : v.data();
      set.of<T>().optimizer_steps(&step, 1);
      p.insert(p.end(), m.begin(), m.end()), p.insert(p.end(), v.begin(), v.end());
      if (threads == 1) expected = p;
      require(p == expected, std::string("optimizer ") + kOptimizers[static_cast<int>(kind)] +
                                 " on " + std::to_string(threads) + " threads");
    }
  }
}

// The loss, in place, and an embedding's sums and look-up.
template <class T>
void modules(const Kernels& set) {
  constexpr Index rows = 4 * kThreads, V = (1 << 14) / 4 + 3;
  std::vector<std::int64_t> ids(rows);
  std::vector<double> weights(rows), expected;
  for (std::size_t r = 0; r < ids.size(); ++r)
    ids[r] = static_cast<std::int64_t>(r * 37 % 11), weights[r] = static_cast<double>(r % 3);
  for (const int threads : {1, 2, 3, 5, kThreads}) {
    std::vector<T> values(rows * V), table(11 * V);
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<T>(i % 97) / T(9) - T(4);
    std::vector<double> losses(rows);
    losses.push_back(set.of<T>().modules->cross_entropy({rows,
                                                         V,
                                                         values.data(),
                                                         ids.data(),
                                                         weights.data(),
                                                         true,
                                                         values.data(),
                                                         losses.data(),
                                                         threads,
                                                         {}}));
    set.of<T>().modules->sum_rows({rows, 11, V, ids.data(), values.data(), table.data(), threads});
    losses.insert(losses.end(), values.begin(), values.end());
    losses.insert(losses.end(), table.begin(), table.end());
    TakeRowsCall<T> call{rows, V, ids.data(), table.data(), values.data(), threads, {}};
    set.of<T>().modules->take_rows(call);
    losses.insert(losses.end(), values.begin(), values.end());
    if (threads == 1) expected = losses;
    require(losses == expected, "modules on " + std::to_string(threads) + " threads");
  }
}

// A call that would take minutes, of thousands of equal layers on the same arrays, and a caller who
// wants it to end when first asked: it is not asked twice.
template <class T>
void early_end(const Kernels& set, bool units_shared) {
  const TypedKernels<T>& kernels = set.of<T>();
  Problem p = large_problem(Kind::gru_reset_before, 1, units_shared);
  p.L = 1, p.I = p.H, p.dropout.p = 0;
  const RowSchedule schedule = p.ragged ? RowSchedule(p.T, p.lengths) : RowSchedule(p.T, p.B);
  const Inputs<T> inputs(p);
  Outputs<T> out(inputs, schedule.view(), schedule.alive_rows(), false);
  run_kernels(kernels, out, 1);
  constexpr Index L = 20000;
  std::vector<Layer<T>> layers(L, out.layers[0]);
  std::vector<LayerGradient<T>> gradients(L, out.gradients[0]);
  for (const int threads : {1, 2, 4}) {
    int times = 0;
    Nanoseconds due = 0;
    const Interrupt at_once{[](void* context) { return ++*static_cast<int*>(context) > 0; }, &times,
                            &due};
    const std::string text = std::to_string(threads) + " threads, " + p.text();
    ForwardCall<T> forward = out.forward_call(at_once);
    forward.L = L, forward.layers = layers.data(), forward.threads = threads;
    set_threads(0);
    kernels.forward(forward, room_of(kernels.forward_workspace(forward)).get());
    require(times == 1, "forward, asked " + std::to_string(times) + " times: " + text);
    BackwardCall<T> backward = out.backward_call(at_once);
    backward.L = L, backward.layers = layers.data(), backward.gradients = gradients.data();
    backward.threads = threads, times = 0, due = 0;
    set_threads(0);
    kernels.backward(backward, room_of(kernels.backward_workspace(backward)).get());
    require(times == 1, "backward, asked " + std::to_string(times) + " times: " + text);
  }
}

CancelToken watch_of(Stop& stop, bool calling) {
  return {&stop, calling, enter_float_environment(), kWorkBetweenPolls, 0};
}

// Far more threads than cores meet again and again: nobody passes before all have arrived, though
// most of them sleep meanwhile.
void crowded_barrier(int size) {
  constexpr int times = 300;
  std::vector<Barrier> barrier(barrier_places(size));
  Stop stop{asked_in_vain(), 0, 0};
  std::vector<int> reached(size, 0);  // each written by one, read by all after they met
  std::vector<int> wrong(size, 0);
  std::vector<std::thread> group;
  for (int i = 0; i < size; ++i)
    group.emplace_back([&, i] {
      CancelToken token = watch_of(stop, i == 0);
      for (int time = 1; time <= times; ++time) {
        reached[i] = time;
        if (!wait(barrier.data(), i, size, token)) ++wrong[i];
        wrong[i] += static_cast<int>(std::count(reached.begin(), reached.end(), time)) != size;
        if (!wait(barrier.data(), i, size, token)) ++wrong[i];
      }
      leave_float_environment(token.environment);
    });
  for (std::thread& one : group) one.join();
  require(std::count(wrong.begin(), wrong.end(), 0) == size,
          "a crowded barrier of " + std::to_string(size) + " let some pass");
}

// Who waits for a thread that does not come goes on asking the caller, and does not keep its core
// busy; both leave once the caller wants it.
void long_wait(bool end) {
  struct Asked {
    int times;
    bool end;
  } asked{0, end};
  Nanoseconds due = 0;
  Stop stop{{[](void* context) {
               Asked& a = *static_cast<Asked*>(context);
               return ++a.times == 2 && a.end;
             },
             &asked, &due},
            0,
            0};
  Barrier barrier;
  bool late = !end, early = !end;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    CancelToken token = watch_of(stop, false);
    late = wait(&barrier, 1, 2, token);
  });
  CancelToken token = watch_of(stop, true);
  const Nanoseconds before = thread_time(), begin = now();
  early = wait(&barrier, 0, 2, token);
  const Nanoseconds busy = thread_time() - before, took = now() - begin;
  leave_float_environment(token.environment);
  other.join();
  require(early == !end && late == !end, "a long wait: the two do not leave together");
  require(asked.times >= 2, "a long wait: asked " + std::to_string(asked.times) + " times");
  require(busy < took / 4, "a long wait: busy for " + std::to_string(busy) + " ns");
}

// A call's parts, each shorter than the time between two questions, share that time: the caller is
// asked as often as in one part. After a yes, the next part asks at once, and ends, too.
void parts_of_a_call() {
  using std::chrono::milliseconds;
  struct Asked {
    int times, last;
  } asked{0, 3};
  Nanoseconds due = 0;
  const Interrupt caller{[](void* context) {
                           Asked& a = *static_cast<Asked*>(context);
                           return ++a.times >= a.last;
                         },
                         &asked, &due};
  const auto part_of_a_third = [&](bool in_kernel) {
    ThrottledPoll poll(caller);
    if (in_kernel) {
      Stop stop{poll.interrupt(), 0, 0};
      CancelToken token = watch_of(stop, true);
      look(token);
      std::this_thread::sleep_for(milliseconds(40));
      look(token);
      leave_float_environment(token.environment);
    } else {
      poll.go_on();
      std::this_thread::sleep_for(milliseconds(40));
      poll.go_on();
    }
  };
  const Nanoseconds begin = now();
  for (int i = 0; i < 40 && asked.times < asked.last; ++i) part_of_a_third(i % 2 == 0);
  const Nanoseconds took = now() - begin;
  require(asked.times == asked.last, "parts of a call: the caller was not asked");
  require(took > 250 * 1000000LL, "parts of a call: asked too often");
  ThrottledPoll next(caller);
  require(!next.go_on() && asked.times == asked.last + 1, "parts of a call: a yes did not last");
}

// Calls that took longer than what was computed leave the thread to work alone, for a while and
// longer each time; gains, one slice lost after gains, and a number chosen by the program do not.
void learning() {
  constexpr Nanoseconds ms = 1000000;
  const auto rested = [] {  // how long it is left to work alone
    const Nanoseconds begin = now();
    while (usable_threads(3) == 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return now() - begin;
  };
  set_threads(0);
  require(usable_threads(3) == 3, "learning: not all threads to begin with");
  record_call(10 * ms, 19 * ms);
  record_call(5 * ms, 1 * ms);
  require(usable_threads(3) == 3, "learning: one slice lost was not forgiven");
  record_call(5 * ms, 1 * ms);
  require(usable_threads(3) == 1, "learning: still all threads");
  const Nanoseconds first = rested();
  record_call(5 * ms, 1 * ms);
  const Nanoseconds second = rested();
  require(first > 10 * ms && second > 30 * ms, "learning: back too soon");
  record_call(5 * ms, 1 * ms);
  std::thread([] {
    require(usable_threads(3) == 3, "learning: from another thread's calls");
  }).join();
  require(usable_threads(3) == 1, "learning: a third trial that failed changed nothing");
  set_threads(0);
  require(usable_threads(3) == 3, "learning: a choice of the program's does not count");
}

// A long rest ends once a busy thread of this process stops, and not because none is busy.
void neighbours() {
  constexpr Nanoseconds ms = 1000000;
  const auto fail = [] {  // so often that the rest is the longest
    set_threads(0);
    usable_threads(3);
    for (int i = 0; i < 8; ++i) record_call(5 * ms, 1 * ms);
    return now();
  };
  const auto still_alone = [](int looks) {  // as often as short calls come
    bool alone = true;
    for (int i = 0; i < looks && alone; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      alone = usable_threads(3) == 1;
    }
    return alone;
  };
  const auto late = [](Nanoseconds begin) { return now() - begin > 400 * ms; };  // a slow machine

  Nanoseconds begin = fail();
  const bool alone = still_alone(150);
  require(alone || late(begin), "neighbours: no rest, though none was seen to stop");
  require(late(begin) || alone_for() > 50 * ms, "neighbours: how long the rest is");
  // Where other processes leave the busy thread less than most of a core, this says nothing.
  for (int trial = 0; trial < 20; ++trial) {
    std::atomic<bool> over{false};
    Nanoseconds had = 0;
    begin = fail();
    std::thread busy([&] {
      while (!over.load()) {
      }
      had = thread_time();
    });
    const bool beside = still_alone(120);
    const Nanoseconds took = now() - begin;
    over.store(true);
    busy.join();
    const bool after = still_alone(100);
    if (late(begin) || 10 * had < 7 * took) continue;
    require(beside && !after, "neighbours: it does not matter whether one stops");
    require(alone_for() == 0, "neighbours: how long a rest is that has ended");
    break;
  }
  set_threads(0);
}

}  // namespace

int main(int count, char** words) {
  const bool few = count > 1 && std::strcmp(words[1], "few") == 0;
  for (const int size : {2, kBarrierGroup, kBarrierGroup + 1, 40})  // also in groups, one of one
    crowded_barrier(size);
  long_wait(false), long_wait(true);
  parts_of_a_call();
  learning();
  neighbours();
  require(!comparable_sets().empty(),
          "threads: no instruction set here that rounds as the naive does");
  for (const Kernels* set : comparable_sets()) {
    for (int k = 0; k < kKindCount; ++k)
      for (const Index D : {1, 2})
        for (const bool units_shared : {false, true}) {
          // Each kind in both types, both ways to share in both: half of the combinations. Few: of
          // a kind one problem in each type, with each way to share and each number of directions
          // once. Four kinds in a row have all eight.
          if (few && (k / 2 + D + units_shared) % 2) continue;
          const auto kind = static_cast<Kind>(k);
          (k + (few ? 0 : units_shared) + D) % 2 ? same_bits<float>(*set, kind, D, units_shared)
                                                 : same_bits<double>(*set, kind, D, units_shared);
        }
    packed_weights<float>(*set, Kind::lstm), packed_weights<double>(*set, Kind::gru);
    packed_weights<float>(*set, Kind::slstm);
    segments<float>(*set), segments<double>(*set);
    for (const bool rows : {false, true})
      optimizers<float>(*set, rows), optimizers<double>(*set, rows);
    modules<float>(*set), modules<double>(*set);
    for (const bool units_shared : {false, true})
      early_end<float>(*set, units_shared), early_end<double>(*set, units_shared);
    std::printf("%s: the same bits on all threads; calls end early when asked\n", set->name);
  }
  return 0;
}

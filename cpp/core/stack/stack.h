// Layers and directions: who runs when. One parallel region a call.
#pragma once

#include "recurrence/backward.h"
#include "recurrence/forward.h"
#include "stack/steps.h"
#include "training/random.h"

namespace rnnkern::RNNKERN_ISA {

// Work thresholds below which another thread costs more than it saves.
struct ThreadingThresholds {
  // A step alone takes as long for one row as for so many: it reads all weights once.
  static constexpr Index rows_of_a_step = 3;
  static constexpr double flops_of_a_call = 2e5;  // what a member's call takes besides its products
};
// Weights of one direction that each step reads.
template <class Call>
inline double weights_of_step(const CellLayout& cell, const Call& call) {
  const Index rows = cell.elementwise ? 0 : cell.gates * call.H;
  const Index projection = cell.projects ? call.P * call.H : 0;
  return as_double(rows * (call.P / call.constants.heads) + projection);
}
// Flops of the products of a whole forward.
template <class Call>
inline double work_of(const CellLayout& cell, const Call& call) {
  const Index inputs = call.layers[0].inputs + (call.L - 1) * call.D * call.P;  // of all layers
  const double weights =
      as_double(cell.gates * call.H * inputs) + as_double(call.L) * weights_of_step(cell, call);
  return 2 * as_double(call.rows.T * call.rows.B * call.D) * weights;
}
template <class T>
inline double work_to_share(const CellLayout& cell, const BackwardCall<T>& call) {
  return work_of(cell, call);
}
template <class T>
inline double work_to_share(const CellLayout& cell, const ForwardCall<T>& call) {
  const Index B = call.rows.B;
  const bool alone = call.rows.T == 1 && B > 0 && B < ThreadingThresholds::rows_of_a_step;
  return work_of(cell, call) *
         (alone ? as_double(ThreadingThresholds::rows_of_a_step) / as_double(B) : 1);
}
template <class T, class Call>
inline StepWork step_work_of(const CellLayout& cell, const Call& call) {
  constexpr double flops_of_a_lane = 15;  // per nanosecond, on a core with two units at 3.75 GHz
  const bool full = call.constants.precision == Precision::full;
  const Index weight_bytes = full ? sizeof(T) : sizeof(Bf16Pair) / kTerms<Bf16Pair>;
  const double steps = as_double(most(1, call.rows.T * call.L * call.D));
  return {call.D,
          call.rows.B,
          blocks_of<T>(call.H),
          work_of(cell, call) / steps,
          flops_of_a_lane * kLanes<T>,
          weights_of_step(cell, call) * as_double(weight_bytes),
          cell.elementwise ? 0 : as_double(call.P) * sizeof(T)};
}

// How the threads of a call share its work. Each thread has kFlopsOfAThread of it, or more.
template <class T, class Call>
inline Grid grid_of(const CellLayout& cell, const Call& call) {
  if (call.threads == 1) return {1, 1};
  if (forced_grid.threads > 0)
    return {static_cast<int>(least(forced_grid.threads, call.threads)), forced_grid.row_groups};
  const int threads = capped(call.threads, work_to_share(cell, call) / kFlopsOfAThread);
  return threads > 1 ? choose_grid(machine, step_work_of<T>(cell, call), threads) : Grid{1, 1};
}

// The threads of n members of an ensemble that run side by side, each on one of them. 0: they run
// in turn, each on all threads of its call, which takes less time.
template <class T, class Call>
inline int threads_of_members(const CellLayout& cell, const Call& call, Index n) {
  const double flops = work_of(cell, call) + ThreadingThresholds::flops_of_a_call;
  const int threads =
      capped(static_cast<int>(least(call.threads, n)), as_double(n) * flops / kFlopsOfAThread);
  const Grid grid = grid_of<T>(cell, call);
  if (forced_grid.threads > 0) return grid.threads > 1 ? 0 : 1;
  if (grid.threads == 1) return threads;
  const StepWork step = step_work_of<T>(cell, call);
  constexpr double loss = 1.1;  // threads start for each member; their rows are not quite even
  const double in_turn = loss * as_double(n) * step_time(machine, step, grid);
  const double side_by_side = as_double(ceil_div(n, threads)) * step_time(machine, step, {1, 1});
  return in_turn < side_by_side ? 0 : threads;
}

// Layers side by side: where a grid gains less, each thread runs whole layers, some steps behind
// the layer that it gets its input from.
struct LayerPipeline {
  int threads;  // 1: no line
  Index chunk;  // steps that a layer is behind: few, or threads wait; many, or weights come often
};
template <class T, class Call>
inline LayerPipeline pipeline_of(const CellLayout& cell, const Call& call, const Grid& grid) {
  constexpr Index fewest_steps = 32, chunks = 8;
  const LayerPipeline none{1, call.rows.T};
  const Index n = least(call.threads, call.L);
  if (call.D != 1 || n < 2 || call.rows.T < 2 * fewest_steps || forced_grid.threads > 0)
    return none;
  const int threads = capped(static_cast<int>(n), work_of(cell, call) / kFlopsOfAThread);
  if (threads == 1) return none;
  const Index chunk = most(fewest_steps, ceil_div(call.rows.T, chunks));
  const StepWork step = step_work_of<T>(cell, call);
  const double time = pipeline_time(machine, step, call.L, threads, call.rows.T, chunk);
  return time < step_time(machine, step, grid) ? LayerPipeline{threads, chunk} : none;
}

// The barriers of a call: all threads', and one for each team.
struct Barriers {
  int threads;
  Barrier* of;
  int count() const { return barrier_places(threads) + threads; }
  void allocate(Arena& arena, int n) {
    threads = n;
    of = arena.allocate<Barrier>(count());
  }
  void clear() const {
    for (int i = 0; i < count(); ++i) of[i] = Barrier{};
  }
  Team all(CancelToken& token, int thread, int started) const {
    return {thread, started, of, &token};
  }
  Barrier* teams() const { return of + barrier_places(threads); }  // one place for each thread
};

// to = a + b on the rows alive; zeros behind a row's end.
template <class T>
void add_sequences(const Schedule& rows, Index channels, Sequence<const T> a, Sequence<const T> b,
                   Sequence<T> to, const Team& team) {
  const Range steps = team.share_of(rows.T);
  for (Index t = steps.first; t < steps.last; ++t)
    for (Index r = 0; r < rows.B; ++r) {
      const Index row = row_of(rows, r);
      T* const sum = to.data + t * to.time_stride + row * to.row_stride;
      const T* const one = a.data + t * a.time_stride + row * a.row_stride;
      const T* const other = b.data + t * b.time_stride + row * b.row_stride;
      if (r < alive_at(rows, t))
        for (Index c = 0; c < channels; ++c) sum[c] = one[c] + other[c];
      else
        for (Index c = 0; c < channels; ++c) sum[c] = T(0);
      if (!team.worked(blocks_of<T>(channels))) return;
    }
}

// What a forward and a backward of a stack have in common.
template <class T, class Call>
struct Stack {
  using Number = T;
  const Call& call;
  const CellFunctions<T>& functions;
  const CellLayout& cell;
  Grid grid;
  LayerPipeline pipeline;
  int threads;
  Barriers barriers;
  Progress* progress;  // [L] of the layers in a pipeline, in chunks

  Stack(const CellFunctions<T>& of, const Call& c)
      : call(c),
        functions(of),
        cell(of.layout),
        grid(grid_of<T>(cell, c)),
        pipeline(pipeline_of<T>(cell, c, grid)),
        threads(pipeline.threads > 1 ? pipeline.threads : grid.threads) {}

  void allocate(Arena& arena) {
    barriers.allocate(arena, threads);
    progress = arena.allocate<Progress>(call.L);
  }
  void begin() const {
    barriers.clear();
    for (Index l = 0; l < call.L; ++l) progress[l] = Progress{};
  }
  const char* shared() const { return pipeline.threads > 1 ? "layers" : shared_in(grid, call.D); }
  template <class Work>
  void on_all_threads(const Work& work) const {
    record_sharing({shared(), threads, parallel(threads, call.interrupt, work)});
  }
  Index most_inputs() const {  // of a layer
    const Index first = call.layers[0].inputs;
    return call.L > 1 ? most(first, call.D * call.P) : first;
  }
  // What this one of `count` threads computes of each layer. There may be fewer than planned.
  WorkShare share_of(CancelToken& token, int thread, int count) const {
    return work_share_of(token, thread, {count, grid.row_groups}, call.D, call.rows.B,
                         blocks_of<T>(call.H), barriers.teams());
  }
  // Workspaces: one a direction; in a pipeline, one a thread.
  Index workspace_count() const { return pipeline.threads > 1 ? threads : call.D; }

  bool goes_back(Index d) const { return d == 1 || call.reverse; }
  bool drops(Index l) const { return l > 0 && call.dropout.p > 0; }
  Sequence<T> dropped() const {
    const Index C = call.D * call.P;
    return {call.dropped, call.rows.B * C, C};
  }
  Sequence<const T> input(Index l) const {  // of a layer, after dropout
    return drops(l) ? read_only(dropped()) : call.layers[l].x;
  }
  NoiseSource<T> noise(Index l, Index d) const {
    return {cell.noise, call.constants, call.dropout, call.rows, l, goes_back(d)};
  }
  void drop_input(Index l, Index from, Index steps, const Team& team) const {
    if (!drops(l)) return;
    apply_dropout(from_step(call.dropout, from), l, steps_of(call.rows, from, steps),
                  call.D * call.P, from_step(call.layers[l].x, from), from_step(dropped(), from),
                  team);
  }
};

// ---- forward ---------------------------------------------------------------------------------

template <class T, class W = T>
struct ForwardStack : Stack<T, ForwardCall<T>> {
  using Base = Stack<T, ForwardCall<T>>;
  using Base::barriers, Base::call, Base::cell, Base::drop_input, Base::functions, Base::pipeline,
      Base::progress, Base::threads;
  ForwardWorkspace<T, W>* workspaces;
  ForwardRowPointers<T>* row_ptrs;  // of each thread

  ForwardStack(const CellFunctions<T>& of, const ForwardCall<T>& c, Arena& arena) : Base(of, c) {
    const Index I = this->most_inputs(), count = this->workspace_count();
    const bool packed = call.layers[0].direction[0].packed != nullptr;
    Base::allocate(arena);
    workspaces = arena.allocate<ForwardWorkspace<T, W>>(count);
    ForwardWorkspace<T, W> workspace;
    for (Index i = 0; i < count; ++i) {
      workspace.allocate(arena, cell, call.constants, call.rows, I, call.H, call.P, packed,
                         pipeline.chunk);
      if (arena.base) workspaces[i] = workspace;
    }
    row_ptrs = arena.allocate<ForwardRowPointers<T>>(threads);
    for (int i = 0; i < threads; ++i) {
      ForwardRowPointers<T> pointers;
      pointers.allocate(arena, workspace.chunk, call.rows.B, call.P);
      if (call.constants.precision == Precision::bf16_products)
        pointers.allocate_rounded(arena, workspace.chunk, call.rows.B, I, call.H);
      if (arena.base) row_ptrs[i] = pointers;
    }
  }

  void run() const {
    Base::begin();
    this->on_all_threads(
        [&](CancelToken& token, int thread, int count) { work(token, thread, count); });
  }

  void work(CancelToken& token, int thread, int count) const {
    const Team all = barriers.all(token, thread, count);
    if (pipeline.threads > 1) {
      work_in_pipeline(token, thread, count);
      all.wait();  // here the calling thread asks whether to go on, when its own layers are done
      return;
    }
    const WorkShare part = this->share_of(token, thread, count);
    for (Index l = 0; l < call.L; ++l) {
      drop_input(l, 0, call.rows.T, all);
      const ForwardWeights<T, W>* weights[2];
      for (Index d = 0; d < call.D; ++d) weights[d] = &weights_of(l, d, workspaces[d], all);
      if (!all.wait()) return;
      const bool both = call.D == 2 && count == 1;
      for (Index d = 0; d < call.D; ++d)
        if (!part.idle && (both || d == part.direction))
          loop(l, d, workspaces[d], *weights[d], row_ptrs[thread], part).run();
      if (!all.wait()) return;
      if (!call.residual || l == 0) continue;
      add_input(l, 0, call.rows.T, all);
      if (!all.wait()) return;
    }
  }

  // This thread's layers, one after the other, each chunk once the layer below is through it.
  void work_in_pipeline(CancelToken& token, int thread, int count) const {
    const Team alone{0, 1, nullptr, &token};
    const WorkShare part{0, false, {0, call.rows.B}, {0, blocks_of<T>(call.H)}, alone};
    for (Index l = thread; l < call.L; l += count) {
      const ForwardWorkspace<T, W>& workspace = workspaces[thread];
      const ForwardWeights<T, W>& weights = weights_of(l, 0, workspace, alone);
      Forward<T, W> forward = loop(l, 0, workspace, weights, row_ptrs[thread], part);
      forward.load_initial_state();
      if (alone.stopped()) return;  // not all row pointers are set
      int chunks = 0;
      for (Index done = 0; done < call.rows.T; done += workspace.chunk) {
        const Index steps = least(workspace.chunk, call.rows.T - done);
        const Index first = call.reverse ? call.rows.T - done - steps : done;
        if (l > 0 && !reached(progress[l - 1], ++chunks, token)) return;
        drop_input(l, first, steps, alone);
        if (!forward.chunk(done)) return;
        if (call.residual && l > 0) add_input(l, first, steps, alone);
        advance(progress[l]);
      }
    }
  }

  bool only_last_outputs(Index l) const { return call.last_outputs && l + 1 == call.L; }
  void add_input(Index l, Index from, Index steps, const Team& team) const {
    const Layer<T>& layer = call.layers[l];
    if (only_last_outputs(l)) {
      for (Index d = 0; d < call.D; ++d) add_last_input(layer, d, from, steps, team);
      return;
    }
    add_sequences<T>(steps_of(call.rows, from, steps), call.D * call.P, from_step(layer.x, from),
                     from_step(read_only(layer.y), from), from_step(layer.out, from), team);
  }
  // Of the rows whose own last step is one of these. Rows are sorted: a later one ends no later.
  void add_last_input(const Layer<T>& layer, Index d, Index from, Index steps,
                      const Team& team) const {
    const bool back = this->goes_back(d);
    if (back && from > 0) return;  // all rows end at the first step
    const Range mine = team.share_of(call.rows.B);
    Index t = call.rows.T - 1;
    for (Index r = mine.first; r < mine.last; ++r) {
      while (t >= from && alive_at(call.rows, t) <= r) --t;
      if (t < from) return;
      if (!back && t >= from + steps) continue;
      const Index row = row_of(call.rows, r), column = d * call.P;
      const T* const x =
          layer.x.data + (back ? 0 : t) * layer.x.time_stride + row * layer.x.row_stride + column;
      T* const y = layer.out.data + row * layer.out.row_stride + column;
      for (Index c = 0; c < call.P; ++c) y[c] = x[c] + y[c];
      if (!team.worked(blocks_of<T>(call.P))) return;
    }
  }
  // A layer's weights, packed before, or now into a workspace's.
  const ForwardWeights<T, W>& weights_of(Index l, Index d, const ForwardWorkspace<T, W>& workspace,
                                         const Team& team) const {
    const Layer<T>& layer = call.layers[l];
    if (const T* packed = layer.direction[d].packed)
      return *reinterpret_cast<const ForwardWeights<T, W>*>(packed);
    workspace.weights.pack(functions, layer.direction[d], layer.inputs, team);
    return workspace.weights;
  }
  Forward<T, W> loop(Index l, Index d, const ForwardWorkspace<T, W>& workspace,
                     const ForwardWeights<T, W>& weights, const ForwardRowPointers<T>& pointers,
                     const WorkShare& part) const {
    const Layer<T>& layer = call.layers[l];
    const Sequence<T> y{layer.y.data + d * call.P, layer.y.time_stride, layer.y.row_stride};
    return {functions,
            cell,
            call.constants,
            call.rows,
            call.H,
            call.P,
            layer.inputs,
            this->input(l),
            y,
            layer.direction[d],
            this->goes_back(d),
            call.from_end,
            only_last_outputs(l),
            this->noise(l, d),
            workspace,
            weights,
            pointers,
            part};
  }
};

// ---- backward --------------------------------------------------------------------------------

template <class T, class W = T>
struct BackwardStack : Stack<T, BackwardCall<T>> {
  using Base = Stack<T, BackwardCall<T>>;
  using Base::barriers, Base::call, Base::cell, Base::drop_input, Base::drops, Base::functions,
      Base::pipeline, Base::progress, Base::threads, Base::workspace_count;
  BackwardWorkspace<T, W>* workspaces;
  BackwardRowPointers<T>* row_ptrs;  // of each thread
  double* squares;                   // [L, D, roles, square lanes]
  GradientNorm* result;

  BackwardStack(const CellFunctions<T>& of, const BackwardCall<T>& c, Arena& arena) : Base(of, c) {
    const Index I = this->most_inputs();
    Base::allocate(arena);
    workspaces = arena.allocate<BackwardWorkspace<T, W>>(workspace_count());
    result = arena.allocate<GradientNorm>(1);
    squares = arena.allocate<double>(call.L * call.D * kRoles * kSquareLanes<T>);
    BackwardWorkspace<T, W> workspace;
    for (Index i = 0; i < workspace_count(); ++i) {
      workspace.allocate(arena, cell, call.constants, call.rows, I, call.H, call.P,
                         call.gradients[0].direction[0].trace.dh != nullptr,
                         call.flow_penalty != 0.0, pipeline.chunk);
      if (arena.base) workspaces[i] = workspace;
    }
    row_ptrs = arena.allocate<BackwardRowPointers<T>>(threads);
    const Index n = most(most(call.rows.B, workspace.most_rows), cell.gates * call.H);
    for (int i = 0; i < threads; ++i) {
      BackwardRowPointers<T> pointers;
      pointers.allocate(arena, n);
      if (kTerms<W> > 1)
        pointers.rounded.allocate(arena, call.rows.B,
                                  most(cell.gates * padded<T>(call.H), padded<T>(call.P)));
      if (arena.base) row_ptrs[i] = pointers;
    }
  }

  void begin() const {
    Base::begin();
    for (Index i = 0; i < workspace_count(); ++i) *workspaces[i].finite = 1;
    *result = {0, 1, true};
  }
  GradientNorm run() const {
    begin();
    this->on_all_threads(
        [&](CancelToken& token, int thread, int count) { work(token, thread, count); });
    return *result;
  }

  void work(CancelToken& token, int thread, int count) const {
    const Team all = barriers.all(token, thread, count);
    if (pipeline.threads > 1) {
      const Team alone{0, 1, nullptr, &token};
      for (Index l = call.L - 1 - thread; l >= 0; l -= count)
        if (!layer(l, alone, thread)) break;
      if (!all.wait()) return;  // also of those that have left
    } else {
      for (Index l = call.L - 1; l >= 0; --l)
        if (!layer(l, all, thread)) return;
    }
    if (call.defer_finalize) return;
    if (thread == 0) *result = norm();
    if (!all.wait()) return;
    if (result->scale < 1.0) scale(all);
  }

  // One layer, by a team; in a line, by the thread alone, each chunk once the layer above is
  // through it. False: leave.
  bool layer(Index l, const Team& all, int thread) const {
    const bool in_pipeline = pipeline.threads > 1;
    const int count = all.size;
    const Schedule& rows = call.rows;
    const Layer<T>& layer = call.layers[l];
    const LayerGradient<T>& gradient = call.gradients[l];
    const Index C = call.D * call.P;
    const BackwardWorkspace<T, W>* const workspace = workspaces + (in_pipeline ? thread : 0);
    // From dx after dropout to dx before it, and past the layer.
    const auto complete_dx = [&](Index from, Index steps) {
      const Schedule part = steps_of(rows, from, steps);
      const Sequence<T> dx = from_step(gradient.dx, from);
      if (drops(l))
        apply_dropout(from_step(call.dropout, from), l, part, C, read_only(dx), dx, all);
      if (!call.residual || l == 0 || !gradient.dy.data) return true;
      if (!all.wait()) return false;
      add_sequences<T>(part, C, read_only(dx), from_step(gradient.dy, from), dx, all);
      return true;
    };
    if (!in_pipeline) drop_input(l, 0, rows.T, all);
    const Index last = call.D - 1;
    Backward<T, W> loops[2] = {loop(l, 0, workspace[0], row_ptrs[thread]),
                               loop(l, last, workspace[last], row_ptrs[thread])};
    loops[0].alone = loops[1].alone = count == 1;
    const WorkShare part = this->share_of(*all.token, all.index, count);
    const bool both = call.D == 2 && count == 1;
    const auto mine = [&](Index d) { return !part.idle && (both || d == part.direction); };

    if (!in_pipeline) zero_dx(layer, gradient, 0, rows.T, all);
    for (Index d = 0; d < call.D; ++d) {
      loops[d].pack(all);
      if (mine(d)) loops[d].load_initial_state(part, call.accumulate);
      const Range part_of_squares = all.share_of(workspace[d].all_square_rows() * kSquareLanes<T>);
      for (Index i = part_of_squares.first; i < part_of_squares.last; ++i)
        workspace[d].squares[i] = 0;
    }
    if (!all.wait()) return false;
    Index done = 0;
    int chunks = 0;
    do {  // once at least: a sequence of no steps has gradients of zero
      if (in_pipeline) {
        if (l + 1 < call.L && !reached(progress[l + 1], ++chunks, *all.token)) return false;
        loops[0].open_chunk(done);
        drop_input(l, loops[0].first_step, loops[0].steps, all);
        zero_dx(layer, gradient, loops[0].first_step, loops[0].steps, all);
      }
      for (Index d = 0; d < call.D; ++d) {
        loops[d].open_chunk(done);
        if (mine(d)) loops[d].through_time(part);
      }
      if (!all.wait()) return false;
      for (Index d = 0; d < call.D; ++d) loops[d].gather(all);
      if (!all.wait()) return false;
      for (Index d = 0; d < call.D; ++d) {
        loops[d].parameters(all, done == 0 && !call.accumulate,
                            loops[d].last_chunk(done) && !call.defer_finalize);
        loops[d].inputs(all);
        if (!all.wait()) return false;  // both directions add to the same dx
      }
      done += loops[0].steps;
      if (in_pipeline) {
        if (!complete_dx(loops[0].first_step, loops[0].steps)) return false;
        advance(progress[l]);
      }
    } while (done < rows.T);
    for (Index d = 0; d < call.D; ++d)
      if (mine(d)) loops[d].store_final_state(part, call.defer_finalize);
    if (!in_pipeline && !complete_dx(0, rows.T)) return false;
    if (all.index == 0 && !call.defer_finalize)
      for (Index d = 0; d < call.D; ++d) gather_squares(l, d, workspace[d]);
    return all.wait();
  }

  // A direction's time loop.
  Backward<T, W> loop(Index l, Index d, const BackwardWorkspace<T, W>& workspace,
                      const BackwardRowPointers<T>& pointers) const {
    const Layer<T>& layer = call.layers[l];
    const LayerGradient<T>& gradient = call.gradients[l];
    const Index column = d * call.P;
    const T* dy = gradient.dy.data ? gradient.dy.data + column : nullptr;
    return {functions,
            cell,
            call.constants,
            call.rows,
            call.H,
            call.P,
            layer.inputs,
            this->input(l),
            {layer.y.data + column, layer.y.time_stride, layer.y.row_stride},
            {dy, gradient.dy.time_stride, gradient.dy.row_stride},
            gradient.dx,
            call.D == 2,
            layer.direction[d],
            gradient.direction[d],
            call.clip,
            call.flow_penalty,
            this->goes_back(d),
            this->noise(l, d),
            workspace,
            pointers};
  }

  // Two directions reach a step of dx in an order that depends on chunks: both add to zeros.
  // One direction writes the rows alive, and the padding stays zero.
  void zero_dx(const Layer<T>& layer, const LayerGradient<T>& gradient, Index from, Index count,
               const Team& all) const {
    if (call.D == 1 && !call.rows.count) return;
    const Range steps = all.share_of(count);
    for (Index t = from + steps.first; t < from + steps.last; ++t)
      for (Index b = 0; b < call.rows.B; ++b) {
        for (Index i = 0; i < layer.inputs; ++i)
          gradient.dx.data[t * gradient.dx.time_stride + b * gradient.dx.row_stride + i] = T(0);
        if (!all.worked(blocks_of<T>(layer.inputs))) return;
      }
  }

  void gather_squares(Index l, Index d, const BackwardWorkspace<T, W>& workspace) const {
    constexpr Index lanes = kSquareLanes<T>;
    const double* from = workspace.squares;
    for (int r = 0; r < kRoles; ++r) {
      double* sum = squares + ((l * call.D + d) * kRoles + r) * lanes;
      for (Index i = 0; i < lanes; ++i) sum[i] = 0;
      const Index count = workspace.square_rows(static_cast<Role>(r));
      for (Index row = 0; row < count; ++row, from += lanes)
        for (Index i = 0; i < lanes; ++i) sum[i] += from[i];
    }
  }

  GradientNorm norm() const {
    double sum = 0;
    for (Index i = 0; i < call.L * call.D * kRoles * kSquareLanes<T>; ++i) sum += squares[i];
    const double norm = __builtin_sqrt(sum);
    bool finite = true;
    for (Index i = 0; i < workspace_count(); ++i) finite = finite && *workspaces[i].finite;
    finite = finite && norm < __builtin_inf();  // doubles whose squares overflow count as exploded
    const double scale = finite ? call.clip.norm / (norm + 1e-6) : 1.0;  // PyTorch's constant
    return {norm, scale < 1.0 ? scale : 1.0, finite};
  }

  // The pass that a norm which was exceeded costs.
  void scale(const Team& all) const {
    for (Index l = 0; l < call.L; ++l)
      for (Index d = 0; d < call.D; ++d) {
        const DirectionGradient<T>& g = call.gradients[l].direction[d];
        const Index extents[] = {cell.gates * call.H,   call.H, call.P,
                                 call.layers[l].inputs, 1,      call.P / call.constants.heads};
        for (const ParameterInfo* p = cell.info->parameters; p->name; ++p)
          if (T* const values = g.parameters[p->role])
            multiply(values, p->times * extents[int(p->rows)] * extents[int(p->columns)], all);
      }
  }
  void multiply(T* values, Index n, const Team& all) const {
    const double factor = result->scale;  // a float would be flushed to zero below 1.2e-38
    const Range mine = all.share_of(n);
    for (Index i = mine.first; i < mine.last; ++i)
      values[i] = static_cast<T>(static_cast<double>(values[i]) * factor);
  }
};

}  // namespace rnnkern::RNNKERN_ISA

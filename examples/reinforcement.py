"""Learn to remember by reinforcement: the T-maze (Bakker 2001, NeurIPS 14).

A signal at the start of a corridor says which way to turn at its end, many steps later. A GRU sees
one place at a time, so it has to remember. It learns by advantage actor-critic (Mnih et al. 2016,
arXiv:1602.01783): many mazes run side by side, one step of the GRU acts in all of them, and a
rollout of a fixed number of steps is one sequence, in which `resets` mark where episodes begin.

The usual way cuts a rollout into episodes and pads them. `finish` compares the two: the gradients
are the same, the padded way computes more.

`predict LENGTH` walks through mazes of that length and says how often the turn is right.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from run import Application, Training, learning_curve, main

import rnnkern as rk

MAZES, ROLLOUT = 64, 128  # side by side, and steps
FORWARD, UP, DOWN = range(3)
SIGHTS = 4  # signal up, signal down, corridor, junction
DISCOUNT, ENTROPY, VALUE = 0.98, 0.02, 0.5  # of later rewards; weights of two parts of the loss
RIGHT, WRONG, BUMP = 4.0, -0.1, -0.1  # rewards, Bakker's


class Mazes:
    """Many T-mazes. An episode ends at the junction, or after thrice the corridor's length."""

    def __init__(self, count: int, length: int, generator: np.random.Generator) -> None:
        self.length, self.generator = length, generator
        self.place = np.zeros(count, np.int64)
        self.age = np.zeros(count, np.int64)
        self.up = generator.random(count) < 0.5
        self.turns: list[bool] = []  # whether each turn was right

    def sights(self) -> np.ndarray:
        """What is seen, (count, SIGHTS)."""
        seen = np.zeros((len(self.place), SIGHTS), np.float32)
        start, end = self.place == 0, self.place == self.length
        seen[:, 0], seen[:, 1] = start & self.up, start & ~self.up
        seen[:, 2], seen[:, 3] = ~start & ~end, end
        return seen

    def act(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rewards, and which episodes are over; those begin anew."""
        at_end = self.place == self.length
        turned = at_end & (actions != FORWARD)
        right = turned & ((actions == UP) == self.up)
        moved = ~at_end & (actions == FORWARD)
        rewards = np.where(moved, 0.0, BUMP)
        rewards[turned] = np.where(right[turned], RIGHT, WRONG)
        self.turns += right[turned].tolist()
        self.place[moved] += 1
        self.age += 1
        over = turned | (self.age >= 3 * self.length)
        self.place[over], self.age[over] = 0, 0
        self.up[over] = self.generator.random(int(over.sum())) < 0.5
        return rewards.astype(np.float32), over


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def draw_actions(logits: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Sample from softmax(logits), by Gumbel's trick."""
    return np.argmax(logits - np.log(-np.log(generator.random(logits.shape))), axis=-1)


def loss_of(
    logits: np.ndarray, values: np.ndarray, actions: np.ndarray, returns: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Loss of actor and critic, and its gradients for logits and values; the mean of all steps."""
    p = softmax(logits)
    log_p = np.log(p + 1e-12)
    advantage = returns - values
    chosen = np.eye(p.shape[-1], dtype=np.float32)[actions]
    entropy = -(p * log_p).sum(-1, keepdims=True)
    n = advantage.size
    actor = -(advantage * (chosen * log_p).sum(-1)).sum() / n
    critic = VALUE * (advantage**2).sum() / n
    d_logits = advantage[..., None] * (p - chosen) + ENTROPY * p * (log_p + entropy)
    d_values = -2 * VALUE * advantage
    loss = actor + critic - ENTROPY * entropy.sum() / n
    return float(loss), (d_logits / n).astype(np.float32), (d_values / n).astype(np.float32)


def prepare(args: argparse.Namespace) -> Training:
    length = args.length or (10 if args.quick else 40)
    gru = rk.GRU(SIGHTS, 32, seed=args.seed)
    heads = rk.Linear(32, 3 + 1, seed=args.seed + 1)  # three actions and the value
    model = {"gru": gru, "heads": heads}
    optimizer = rk.Adam(model, lr=3e-3)
    # What a run needs to go on: where the mazes are, and the GRU's state.
    state = {
        "place": np.zeros(MAZES), "age": np.zeros(MAZES), "up": np.zeros(MAZES),
        "begins": np.ones(MAZES), "h": np.zeros((1, MAZES, 32), np.float32),
    }  # fmt: skip
    recent: list[bool] = []

    def step(number: int) -> float:
        generator = np.random.default_rng([args.seed, number])
        mazes = Mazes(MAZES, length, generator)
        if number:
            mazes.place[:], mazes.age[:] = state["place"], state["age"]
            mazes.up[:] = state["up"] > 0
        rollout = play(model, mazes, state["h"], state["begins"] > 0, ROLLOUT, generator)
        loss, of_gru, of_heads, h = gradients(model, rollout)
        optimizer.step({"gru": of_gru, "heads": of_heads}, max_norm=0.5)
        state["place"][:], state["age"][:], state["up"][:] = mazes.place, mazes.age, mazes.up
        state["begins"][:], state["h"][...] = rollout["over"][-1], h
        recent[:] = mazes.turns
        return loss

    def evaluate() -> dict[str, float]:
        return {"right turns": success(model, length, 8)}

    return Training(model, {"optimizer": optimizer, "mazes": state}, step, evaluate,
                    {"length": length})  # fmt: skip


def play(
    model: dict[str, Any], mazes: Mazes, h: np.ndarray, begins: np.ndarray, steps: int,
    generator: np.random.Generator,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Act for some steps in all mazes: what was seen, done and earned, (steps, mazes, ...)."""
    stream = model["gru"].stream(len(begins))
    stream.state = h
    kept: dict[str, list[np.ndarray]] = {n: [] for n in ("x", "action", "reward", "over")}
    over = begins
    for _ in range(steps):
        if over.any():
            stream.reset(np.flatnonzero(over))
        x = mazes.sights()
        logits = model["heads"](stream.step(x))[:, :3]
        action = draw_actions(logits, generator)
        reward, ended = mazes.act(action)
        for name, value in (("x", x), ("action", action), ("reward", reward), ("over", ended)):
            kept[name].append(value)
        over = ended
    after = model["heads"](stream.step(mazes.sights()))[:, 3]  # the value of what comes next
    found = {name: np.stack(values) for name, values in kept.items()}
    resets = np.concatenate([begins[None], found["over"][:-1]])
    return {**found, "resets": resets, "h": h.copy(), "after": np.where(over, 0, after)}


def returns_of(rollout: dict[str, np.ndarray]) -> np.ndarray:
    """Discounted rewards to the end of each episode, or to the value at the rollout's end."""
    later = rollout["after"]
    found = np.empty_like(rollout["reward"])
    for t in range(len(found) - 1, -1, -1):
        later = rollout["reward"][t] + DISCOUNT * later * ~rollout["over"][t]
        found[t] = later
    return found


def gradients(model: dict[str, Any], rollout: dict[str, np.ndarray]) -> tuple[Any, ...]:
    """One forward and one backward over all mazes, episodes behind one another in a row."""
    gru, heads = model["gru"], model["heads"]
    y, h, gru_tape = gru.forward(rollout["x"], rollout["h"], resets=rollout["resets"])
    out, heads_tape = heads.forward(y)
    loss, d_logits, d_values = loss_of(
        out[..., :3], out[..., 3], rollout["action"], returns_of(rollout)
    )
    of_heads = heads.backward(heads_tape, np.concatenate([d_logits, d_values[..., None]], -1))
    return loss, gru.backward(gru_tape, of_heads.x), of_heads, h


def gradients_by_padding(model: dict[str, Any], rollout: dict[str, np.ndarray]) -> tuple[Any, ...]:
    """The usual way: cut the rollout into episodes, pad them to the longest, train on those."""
    gru, heads = model["gru"], model["heads"]
    steps, count = rollout["over"].shape
    pieces, first_states = [], []
    for b in range(count):
        cuts = [0, *np.flatnonzero(rollout["resets"][1:, b]) + 1, steps]
        for start, stop in itertools.pairwise(cuts):
            fresh = start > 0 or rollout["resets"][0, b]
            pieces.append((b, start, stop))
            first_states.append(np.zeros(32, np.float32) if fresh else rollout["h"][0, b])
    returns = returns_of(rollout)
    longest = max(stop - start for _, start, stop in pieces)
    shape = longest, len(pieces)
    x, action = np.zeros((*shape, SIGHTS), np.float32), np.zeros(shape, np.int64)
    target, real = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for k, (b, start, stop) in enumerate(pieces):
        own = slice(0, stop - start)
        x[own, k], action[own, k] = rollout["x"][start:stop, b], rollout["action"][start:stop, b]
        target[own, k], real[own, k] = returns[start:stop, b], True
    y, _, gru_tape = gru.forward(x, np.stack(first_states)[None])
    out, heads_tape = heads.forward(y)
    p = loss_of(out[..., :3], out[..., 3], action, target)
    counts = (real * (real.size / real.sum()))[..., None].astype(np.float32)  # means of real steps
    dy = np.concatenate([p[1], p[2][..., None]], -1) * counts
    of_heads = heads.backward(heads_tape, dy)
    return p[0], gru.backward(gru_tape, of_heads.x), of_heads


def success(model: dict[str, Any], length: int, episodes: int, seed: int = 1) -> float:
    """The share of right turns at the ends of so many episodes in each of many mazes."""
    generator = np.random.default_rng([seed, length])
    mazes = Mazes(MAZES, length, generator)
    h = np.zeros((1, MAZES, 32), np.float32)
    play(model, mazes, h, np.ones(MAZES, bool), episodes * (length + 2), generator)
    return float(np.mean(mazes.turns)) if mazes.turns else 0.0


def finish(training: Training, args: argparse.Namespace) -> tuple[dict[str, Any], Figure]:
    length = training.about["length"]
    model = training.model
    generator = np.random.default_rng(0)
    h = np.zeros((1, MAZES, 32), np.float32)
    rollout = play(model, Mazes(MAZES, length, generator), h, np.ones(MAZES, bool), ROLLOUT,
                   generator)  # fmt: skip
    ways = {"resets": gradients, "padded episodes": gradients_by_padding}
    found = {name: way(model, rollout) for name, way in ways.items()}
    apart = max(
        float(np.abs(one.params[name] - other.params[name]).max() / np.abs(one.params[name]).max())
        for one, other in zip(found["resets"][1:3], found["padded episodes"][1:3], strict=True)
        for name in one.params
    )
    frames = {name: MAZES * ROLLOUT / seconds(lambda w=way: w(model, rollout), args.quick)
              for name, way in ways.items()}  # fmt: skip
    faster = frames["resets"] / frames["padded episodes"]
    lengths = sorted({max(2, length // 2), length, 2 * length, 4 * length})
    right = {each: success(model, each, 4 if args.quick else 16) for each in lengths}
    print(f"gradients differ by {apart:.1e} of the largest element")
    for name, rate in frames.items():
        print(f"{name:16} {rate:12,.0f} frames/s trained")
    print(f"resets are {faster:.1f} times as fast")
    for each, share in right.items():
        print(f"corridor of {each:4}: {share:.1%} of the turns right")
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right_axes = figure.subplots(1, 2)
    learning_curve(left, training, "loss")
    steps = [step for step, _ in training.held_out]
    shares = [figures["right turns"] for _, figures in training.held_out]
    right_axes.plot(steps, shares, "o-", color="#009e73")
    right_axes.axhline(0.5, color="0.5", linestyle="--", label="without memory")
    right_axes.set(xlabel="step", ylabel="share of right turns", ylim=(0, 1.02),
                   title=f"T-maze, corridor of {length}")  # fmt: skip
    right_axes.grid(alpha=0.3)
    right_axes.legend()
    figures = {"largest_relative_difference_of_gradients": apart, "frames_a_second": frames,
               "times_as_fast": faster, "right_turns_by_length": right}  # fmt: skip
    return figures, figure


def seconds(call: Any, quick: bool) -> float:
    """The median time of a call."""
    taken = []
    for _ in range(3 if quick else 20):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken))


def predict(model: dict[str, Any], about: dict[str, Any], args: argparse.Namespace) -> None:
    lengths = [int(text) for text in args.input] or [about["length"]]
    for length in lengths:
        share = success(model, length, 8, args.seed)
        print(f"corridor of {length}: {share:.1%} of the turns right")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--length", type=int, help="of the corridor (40; 10 with --quick)")


APPLICATION = Application(
    name="reinforcement",
    doc=__doc__,
    steps=1500,
    quick_steps=120,
    evaluate_every=100,
    prepare=prepare,
    finish=finish,
    predict=predict,
    inputs="LENGTH...",
    options=options,
)

if __name__ == "__main__":
    raise SystemExit(main(APPLICATION))

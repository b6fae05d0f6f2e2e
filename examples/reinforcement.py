"""Learn to remember by reinforcement: the T-maze (Bakker 2001, NeurIPS 14).

A signal at the start of a corridor says which way to turn at its end, many steps later. A GRU sees
one place at a time, so it has to remember. It learns by advantage actor-critic (Mnih et al. 2016,
arXiv:1602.01783): many mazes run side by side, one step of the GRU acts in all of them, and a
rollout of a fixed number of steps is one sequence, in which `resets` mark where episodes begin.

The usual way cuts a rollout into episodes and pads them. `finish` compares the two: the gradients
are the same, the padded way computes more.

`predict [LENGTH...]` walks through mazes of that length and says how often the turn is right.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from run import Application, Training, at_least, learning_curve, main

import rnnkern as rk

MAZES, ROLLOUT = 64, 128  # side by side, and steps
HIDDEN = 32
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


class Rollouts:
    """Rollouts that a model plays, each where the one before ended; `state` is what it needs."""

    def __init__(self, model: dict[str, Any], length: int, seed: int) -> None:
        self.model, self.length, self.seed = model, length, seed
        self.state = {
            "place": np.zeros(MAZES), "age": np.zeros(MAZES), "up": np.zeros(MAZES),
            "begins": np.ones(MAZES), "h": np.zeros((1, MAZES, HIDDEN), np.float32),
        }  # fmt: skip

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        state, generator = self.state, np.random.default_rng([self.seed, number])
        mazes = Mazes(MAZES, self.length, generator)
        if number:
            mazes.place[:], mazes.age[:] = state["place"], state["age"]
            mazes.up[:] = state["up"] > 0
        begins = state["begins"] > 0
        rollout = play(self.model, mazes, state["h"], begins, ROLLOUT, generator)
        state["place"][:], state["age"][:], state["up"][:] = mazes.place, mazes.age, mazes.up
        state["begins"][:], state["h"][...] = rollout["over"][-1], rollout["last"]
        return rollout


def prepare(args: argparse.Namespace) -> Training:
    length = args.length or (10 if args.quick else 40)
    model = {
        "gru": rk.GRU(SIGHTS, HIDDEN, seed=args.seed, compute=args.compute),
        "heads": rk.Linear(HIDDEN, 3 + 1, seed=args.seed + 1),  # three actions and the value
    }
    rollouts = Rollouts(model, length, args.seed)

    def evaluate() -> dict[str, float]:
        return {"right turns": success(model, length, 8)}

    return Training(
        model, rk.Adam(model, lr=3e-3), max_norm=0.5,
        next_batch=rollouts, gradients=partial(gradients, model), terms=lambda r: r["x"].shape[1],
        evaluate=evaluate, rows=lambda r: MAZES, part=mazes_of,
        state={"mazes": rollouts.state}, about={"length": length},
    )  # fmt: skip


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
    last = stream.state
    after = model["heads"](stream.step(mazes.sights()))[:, 3]  # the value of what comes next
    found = {name: np.stack(values) for name, values in kept.items()}
    resets = np.concatenate([begins[None], found["over"][:-1]])
    after = np.where(over, 0, after)
    return {**found, "resets": resets, "h": h.copy(), "last": last, "after": after}


def mazes_of(rollout: dict[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    """The rollout of some mazes."""
    return {n: a[rows] if n == "after" else a[:, rows] for n, a in rollout.items()}


def returns_of(rollout: dict[str, np.ndarray]) -> np.ndarray:
    """Discounted rewards to the end of each episode, or to the value at the rollout's end."""
    later = rollout["after"]
    found = np.empty_like(rollout["reward"])
    for t in range(len(found) - 1, -1, -1):
        later = rollout["reward"][t] + DISCOUNT * later * ~rollout["over"][t]
        found[t] = later
    return found


def gradients(
    model: dict[str, Any], rollout: dict[str, np.ndarray]
) -> tuple[float, dict[str, Any]]:
    """One forward and one backward over all mazes, episodes behind one another in a row."""
    y, _, of_gru = model["gru"].forward(rollout["x"], rollout["h"], resets=rollout["resets"])
    out, of_heads = model["heads"].forward(y)
    loss, d_logits, d_values = loss_of(
        out[..., :3], out[..., 3], rollout["action"], returns_of(rollout)
    )
    dy = np.concatenate([d_logits, d_values[..., None]], -1)
    heads = model["heads"].backward(of_heads, dy)
    return loss, {"gru": model["gru"].backward(of_gru, heads.x), "heads": heads}


def episodes_of(rollout: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The episodes of a rollout, padded to the longest: (steps, episodes, ...), and lengths."""
    begins = rollout["resets"].copy()
    begins[0] = True
    maze, first = np.nonzero(begins.T)
    ends = np.append(maze * len(begins) + first, begins.size)
    lengths = np.diff(ends)
    step = np.arange(lengths.max())[:, None]
    real = step < lengths
    place = np.where(real, first + step, 0), maze
    fresh = rollout["resets"][first, maze]
    h = np.where(fresh[:, None], 0, rollout["h"][0, maze]).astype(np.float32)
    found = {name: rollout[name][place] for name in ("x", "action")}
    return {**found, "target": returns_of(rollout)[place], "real": real, "lengths": lengths,
            "h": h[None]}  # fmt: skip


def gradients_by_padding(
    model: dict[str, Any], rollout: dict[str, np.ndarray]
) -> tuple[float, dict[str, Any]]:
    """The usual way: cut the rollout into episodes, pad them to the longest, train on those."""
    cut = episodes_of(rollout)
    y, _, of_gru = model["gru"].forward(cut["x"], cut["h"])
    out, of_heads = model["heads"].forward(y)
    loss, d_logits, d_values = loss_of(out[..., :3], out[..., 3], cut["action"], cut["target"])
    real = cut["real"]
    counts = (real * (real.size / real.sum()))[..., None].astype(np.float32)  # means of real steps
    dy = np.concatenate([d_logits, d_values[..., None]], -1) * counts
    heads = model["heads"].backward(of_heads, dy)
    return loss, {"gru": model["gru"].backward(of_gru, heads.x), "heads": heads}


def success(model: dict[str, Any], length: int, episodes: int, seed: int = 1) -> float:
    """The share of right turns at the ends of so many episodes in each of many mazes."""
    generator = np.random.default_rng([seed, length])
    mazes = Mazes(MAZES, length, generator)
    h = np.zeros((1, MAZES, HIDDEN), np.float32)
    play(model, mazes, h, np.ones(MAZES, bool), episodes * (length + 2), generator)
    return float(np.mean(mazes.turns)) if mazes.turns else 0.0


def finish(training: Training, args: argparse.Namespace) -> tuple[dict[str, Any], Figure]:
    length = training.about["length"]
    model = training.model
    generator = np.random.default_rng(0)
    h = np.zeros((1, MAZES, HIDDEN), np.float32)
    rollout = play(model, Mazes(MAZES, length, generator), h, np.ones(MAZES, bool), ROLLOUT,
                   generator)  # fmt: skip
    ways = {"resets": gradients, "padded episodes": gradients_by_padding}
    whole, padded = (way(model, rollout)[1] for way in ways.values())
    apart = max(
        float(np.abs(array - padded[part].params[name]).max() / np.abs(array).max())
        for part, grads in whole.items()
        for name, array in grads.params.items()
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
    right_axes.grid()
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
    for length in args.input or [about["length"]]:
        share = success(model, length, 8, args.seed)
        print(f"corridor of {length}: {share:.1%} of the turns right")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--length", type=at_least(1), help="of the corridor (40; 10 with --quick)")


APPLICATION = Application(
    name="reinforcement",
    doc=__doc__,
    steps=1500,
    quick_steps=120,
    evaluate_every=100,
    prepare=prepare,
    finish=finish,
    predict=predict,
    inputs="[LENGTH...]",
    count="*",
    read=at_least(1),
    draws=True,
    options=options,
)

if __name__ == "__main__":
    raise SystemExit(main(APPLICATION))

"""Digits read one pixel at a time: 64 steps, and 640 with each pixel held for ten.

scikit-learn's handwritten digits of 8 x 8 pixels, as a sequence of single grey values; the class is
asked for after the last one. 360 of the 1797 are held out. In training each image is moved by up to
a pixel, about every second time.
"""

import time
from typing import NamedTuple

import numpy as np
from figure import Figure, keep, options
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import rnnkern as rk

H, B = 128, 32


class Digits(NamedTuple):
    """Images (N, 8, 8) of values from 0 to 1, and their classes (N,)."""

    images: np.ndarray
    classes: np.ndarray


def learnt_and_held(quick: bool) -> tuple[Digits, Digits]:
    """The digits to learn from, and the 360 that are held out; with `quick` a few of each."""
    pixels, digits = load_digits(return_X_y=True)
    images = (pixels / pixels.max()).astype(np.float32).reshape(-1, 8, 8)
    images, held_images, digits, held_digits = train_test_split(
        images, digits, test_size=360, stratify=digits, random_state=0
    )
    n, held = (160, 60) if quick else (None, None)
    return Digits(images[:n], digits[:n]), Digits(held_images[:held], held_digits[:held])


def moved(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    places = sliding_window_view(np.pad(images, ((0, 0), (1, 1), (1, 1))), (8, 8), axis=(1, 2))
    down, right = rng.integers(3, size=(2, len(images)))
    as_it_is = rng.random(len(images)) < 0.5
    down[as_it_is] = right[as_it_is] = 1
    return places[np.arange(len(images)), down, right]


def sequence(images: np.ndarray, hold: int) -> np.ndarray:
    """(T, B, 1), T = 64 * hold."""
    return np.repeat(images.reshape(len(images), -1).T[..., None], hold, axis=0)


def last_h(state: np.ndarray | tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return (state[0] if isinstance(state, tuple) else state)[-1]


class Reader:
    """A layer, and an output layer on its last state."""

    def __init__(self, kind: type[rk.GRU] | type[rk.LSTM], T: int) -> None:
        rng = np.random.default_rng(0)
        self.layer = kind(1, H, seed=0, init="orthogonal")
        self.layer.params["weight_ih_l0"] *= 3  # one input: as much as several would say
        # What is to be remembered for up to T steps starts so (Tallec & Ollivier 2018).
        bias = np.log(rng.uniform(1, T - 1, H))
        second = slice(H, 2 * H)  # the GRU's z, the LSTM's f
        self.layer.params["bias_ih_l0"][second] = bias
        if kind is rk.LSTM:
            self.layer.params["bias_ih_l0"][:H] = -bias  # i
        self.out = rk.Linear(H, 10, seed=0)

    def right(self, x: np.ndarray, digits: np.ndarray) -> float:
        return float(np.mean(self.out(last_h(self.layer(x)[1])).argmax(axis=1) == digits))

    def gradients(self, x: np.ndarray, digits: np.ndarray) -> tuple[float, list]:
        """Mean cross-entropy, and its gradients."""
        _, state, tape = self.layer.forward(x)
        h = last_h(state)
        scores, out_tape = self.out.forward(h)
        loss, d_scores = rk.cross_entropy(scores, digits)
        of_out = self.out.backward(out_tape, d_scores)
        d_h = of_out.x[None]
        d_state = (d_h, np.zeros_like(d_h)) if isinstance(state, tuple) else d_h
        return loss, [self.layer.backward(tape, dstate=d_state), of_out]


def learn(
    kind: type[rk.GRU] | type[rk.LSTM],
    given: Digits,
    held: Digits,
    hold: int,
    epochs: int,
    lr: float,
) -> dict:
    rng = np.random.default_rng(1)
    reader = Reader(kind, 64 * hold)
    opt = rk.AdamW([reader.layer.params, reader.out.params], lr=lr, weight_decay=0.1)
    batches = len(given.images) // B
    held_x = sequence(held.images, hold)
    losses, right, begin = [], [], time.perf_counter()
    for epoch in range(epochs):
        order = rng.permutation(len(given.images))
        total = 0.0
        for i in range(batches):
            opt.lr = lr * (1 - (epoch + i / batches) / epochs)
            rows = order[i * B : (i + 1) * B]
            x = sequence(moved(given.images[rows], rng), hold)
            loss, grads = reader.gradients(x, given.classes[rows])
            opt.step(grads, max_norm=1.0)
            total += loss
        losses.append(total / batches)
        right.append(reader.right(held_x, held.classes))
    seconds = time.perf_counter() - begin
    name = f"{kind.__name__}, T = {64 * hold}"
    print(
        f"{name:16}{epochs:8d}{losses[-1]:12.4f}{100 * right[-1]:12.1f}%{seconds:9.0f} s",
        flush=True,
    )
    return {"net": name, "loss": losses, "held_out_right": right, "seconds": seconds}


def main() -> None:
    args = options(__doc__)
    given, held = learnt_and_held(args.quick)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    print(f"{'':16}{'epochs':>8}{'loss':>12}{'held out':>14}")
    cases = []
    for hold, epochs in ((1, 3 if args.quick else 50), (10, 1 if args.quick else 15)):
        for kind in (rk.GRU, rk.LSTM):
            case = learn(kind, given, held, hold, epochs, lr=1e-2)
            cases.append(case)
            style = "--" if kind is rk.LSTM else "-"
            for panel, values in ((left, case["loss"]), (right, case["held_out_right"])):
                at = np.arange(1, epochs + 1)
                panel.plot(at, values, style, color="C0" if hold == 1 else "C1", label=case["net"])
    left.set(title="Training loss", xlabel="epoch", ylabel="cross-entropy (nats)", yscale="log")
    right.set(title="Held-out digits", xlabel="epoch", ylabel="share that is right", ylim=(0.3, 1))
    right.axhline(0.95, color="black", lw=0.8, ls=":", label="95 %")
    right.legend()
    for panel in (left, right):
        panel.grid()
    keep(args.out, "digits", figure, {"cases": cases})


if __name__ == "__main__":
    main()

"""Whether a movie review is positive: embedding, bidirectional LSTM, max pooling, dropout.

The data are the 10,605 snippets of movie reviews that VADER was evaluated on (Hutto and Gilbert,
ICWSM 2014): positive above a mean rating of 0.5, negative below -0.5. VADER's own score on the same
held-out snippets is the baseline.

`predict "some text"...` says how positive texts are, and which words counted.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from data import InputError, reviews, split, words_of
from matplotlib.figure import Figure
from run import Application, Training, endless, learning_curve, main

import rnnkern as rk

UNKNOWN = 1  # the id of rare words; 0 is padding
STEPS, QUICK_STEPS, BATCH = 1200, 80, 32
WEIGHT_DECAY = {"head/weight": 0.1}


def labelled() -> tuple[list[list[str]], np.ndarray]:
    """The words of each snippet that is clearly positive (1) or negative (0)."""
    texts, ratings = reviews()
    clear = np.abs(ratings) > 0.5
    return [words_of(texts[i]) for i in np.flatnonzero(clear)], (ratings[clear] > 0).astype(int)


def encoded(words: list[str], vocabulary: dict[str, int]) -> np.ndarray:
    return np.array([vocabulary.get(word, UNKNOWN) for word in words], np.int64)


def build(vocabulary: int, hidden: int, seed: int, compute: Any = None) -> dict[str, Any]:
    return {
        "embedding": rk.Embedding(vocabulary, hidden, padding_idx=0, seed=seed),
        "drop_in": rk.Dropout(0.5, variational=True, seed=seed + 1),
        "lstm": rk.LSTM(hidden, hidden, bidirectional=True, seed=seed + 2, compute=compute),
        "pool": rk.Pooling("max"),
        "drop_out": rk.Dropout(0.5, seed=seed + 3),
        "head": rk.Linear(2 * hidden, 1, seed=seed + 4),
    }


def logits(model: dict[str, Any], x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    y, _ = model["lstm"](model["embedding"](x), lengths=lengths)
    return model["head"](model["pool"](y, lengths=lengths))[:, 0]


def gradients(model: dict[str, Any], batch: rk.Batch) -> tuple[float, dict[str, Any]]:
    """The loss of a batch and the gradients of all parts of the model."""
    x, lengths, target = batch.x, batch.lengths, batch.y
    vectors, of_embedding = model["embedding"].forward(x)
    noisy, of_drop_in = model["drop_in"].forward(vectors, lengths=lengths)
    y, _, of_lstm = model["lstm"].forward(noisy, lengths=lengths)
    pooled, of_pool = model["pool"].forward(y, lengths=lengths)
    kept, of_drop_out = model["drop_out"].forward(pooled)
    z, of_head = model["head"].forward(kept)
    loss, dz = rk.binary_cross_entropy(z, target[:, None].astype(np.float32))
    head = model["head"].backward(of_head, dz)
    d_pooled = model["drop_out"].backward(of_drop_out, head.x).x
    lstm = model["lstm"].backward(of_lstm, model["pool"].backward(of_pool, d_pooled).x)
    d_vectors = model["drop_in"].backward(of_drop_in, lstm.x).x
    embedding = model["embedding"].backward(of_embedding, d_vectors)
    return loss, {"embedding": embedding, "lstm": lstm, "head": head}


def importance(model: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """How much each word moved the logit: gradient times input, summed over the embedding."""
    lengths = np.array([len(x)])
    vectors, _ = model["embedding"].forward(x[:, None])
    y, _, of_lstm = model["lstm"].forward(vectors, lengths=lengths)
    pooled, of_pool = model["pool"].forward(y, lengths=lengths)
    _, of_head = model["head"].forward(pooled)
    head = model["head"].backward(of_head, np.ones((1, 1), np.float32))
    d_vectors = model["lstm"].backward(of_lstm, model["pool"].backward(of_pool, head.x).x).x
    return (d_vectors * vectors).sum(-1)[:, 0]


def accuracy(model: dict[str, Any], x: list[np.ndarray], y: np.ndarray) -> float:
    right = 0
    for batch in rk.Batches(x, y=y, batch_size=64, shuffle=False, seed=0):
        right += int(((logits(model, batch.x, batch.lengths) > 0) == batch.y).sum())
    return right / len(y)


def prepare(args: argparse.Namespace) -> Training:
    texts, labels = labelled()
    train, held_out, _ = split(len(texts), args.seed, 0.8, 0.1, 0.1)
    counts = Counter(word for i in train for word in texts[i])
    words = [word for word, count in counts.items() if count > 1]
    vocabulary = {word: i for i, word in enumerate(sorted(words), UNKNOWN + 1)}
    x = [encoded(text, vocabulary) for text in texts]
    model = build(len(vocabulary) + 2, 24 if args.quick else 64, args.seed, args.compute)
    steps = QUICK_STEPS if args.quick else STEPS
    optimizer = rk.AdamW(
        model, lr=rk.schedules.Cosine(3e-3, steps, warm_up=20), weight_decay=WEIGHT_DECAY
    )
    batches = rk.Batches([x[i] for i in train], y=labels[train], batch_size=BATCH, seed=args.seed)
    source = endless(batches)

    def evaluate() -> dict[str, float]:
        some = held_out[:200] if args.quick else held_out
        return {"accuracy": accuracy(model, [x[i] for i in some], labels[some])}

    return Training(
        model, optimizer, max_norm=1.0,
        next_batch=lambda number: next(source), gradients=partial(gradients, model),
        terms=lambda batch: len(batch.lengths), evaluate=evaluate, state={"batches": batches},
        about={"words": sorted(words), "seed": args.seed},
    )  # fmt: skip


def baseline(texts: Sequence[str], labels: np.ndarray) -> float:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    scores = np.array([analyzer.polarity_scores(text)["compound"] for text in texts])
    return float(((scores > 0) == labels).mean())


def finish(training: Training, args: argparse.Namespace) -> tuple[dict[str, Any], Figure]:
    texts, labels = labelled()
    test = split(len(texts), args.seed, 0.8, 0.1, 0.1)[2]
    vocabulary = vocabulary_of(training.about)
    x = [encoded(texts[i], vocabulary) for i in test]
    ours = accuracy(training.model, x, labels[test])
    vader = baseline([" ".join(texts[i]) for i in test], labels[test])
    print(f"test accuracy: {ours:.1%}; VADER on the same {len(test)} snippets: {vader:.1%}")
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    learning_curve(left, training, "cross-entropy (nats)", "accuracy")
    left.set_title(f"Test accuracy {ours:.1%}, VADER {vader:.1%}")
    shown = [i for i in range(len(x)) if 6 <= len(x[i]) <= 12][:9]
    draw_words(right, training.model, [texts[test[i]] for i in shown], [x[i] for i in shown])
    return {"accuracy": ours, "vader_accuracy": vader, "test_snippets": len(test)}, figure


def draw_words(
    axes: Any, model: dict[str, Any], texts: list[list[str]], x: list[np.ndarray]
) -> None:
    """Each text in a line, its words on a colour that says how much they counted for which side."""
    axes.set(xlim=(0, 1), ylim=(len(texts) - 0.4, -0.7))
    axes.axis("off")
    axes.set_title("Which words counted: orange for negative, blue for positive", loc="left")
    for line, (words, ids) in enumerate(zip(texts, x, strict=True)):
        moved = importance(model, ids)
        top = np.abs(moved).max() + 1e-12
        positive = logits(model, ids[:, None], np.array([len(ids)]))[0] > 0
        place = 0.04
        axes.text(0, line, "+" if positive else "\N{MINUS SIGN}", va="center", weight="bold")
        for word, amount in zip(words, moved / top, strict=True):
            color = "#56b4e9" if amount > 0 else "#e69f00"
            box = {"facecolor": color, "alpha": float(min(1, abs(amount))), "edgecolor": "none",
                   "pad": 1.5}  # fmt: skip
            axes.text(place, line, word, va="center", fontsize=8, bbox=box)
            place += 0.0125 * len(word) + 0.02


def vocabulary_of(about: dict[str, Any]) -> dict[str, int]:
    return {word: i for i, word in enumerate(about["words"], UNKNOWN + 1)}


def predict(model: dict[str, Any], about: dict[str, Any], args: argparse.Namespace) -> None:
    model = {"pool": rk.Pooling("max"), **model}
    for text in args.input:
        words = words_of(text)
        if not words:
            raise InputError(f"predict: expected words, got {text!r}")
        x = encoded(words, vocabulary_of(about))
        z = float(logits(model, x[:, None], np.array([len(x)]))[0])
        moved = importance(model, x)
        most = sorted(zip(words, moved, strict=True), key=lambda pair: -abs(pair[1]))[:5]
        said = ", ".join(f"{word} {amount:+.2f}" for word, amount in most)
        print(f"{1 / (1 + np.exp(-z)):6.1%} positive: {text}\n        most: {said}")


APPLICATION = Application(
    name="sentiment",
    doc=__doc__,
    steps=STEPS,
    quick_steps=QUICK_STEPS,
    evaluate_every=200,
    prepare=prepare,
    finish=finish,
    predict=predict,
    inputs='"some text"...',
)

if __name__ == "__main__":
    raise SystemExit(main(APPLICATION))

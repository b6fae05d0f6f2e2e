"""Find named entities: characters and words, a bidirectional LSTM, a conditional random field.

The model of Lample et al. (2016, arXiv:1603.01360), small. The data are 500 sentences of the
Japanese Wikipedia with IOB2 tags (hironsancorpus); `--data TRAIN TEST` takes your own files in any
language, in CoNLL's format: a line a word with its tag last, an empty line between sentences.

`predict "words between spaces"...` prints the entities of your own sentences.
"""

from __future__ import annotations

import argparse
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
from data import InputError, Sentence, conll, japanese_entities, text_of
from matplotlib.figure import Figure
from run import Application, Training, endless, learning_curve, main

import rnnkern as rk

UNKNOWN = 1  # the id of rare words and characters; 0 is padding
STEPS, QUICK_STEPS, BATCH = 900, 60, 16
WORD, CHARACTER, HIDDEN = 48, 24, 64


def sentences_of(args: argparse.Namespace) -> tuple[list[Sentence], list[Sentence], list[Sentence]]:
    """To train on, to choose by, to test on; the last tenth of the training file is the second."""
    if args.data:
        train, test = (list(conll(text_of(name), name)) for name in args.data)
        for name, found, least in zip(args.data, (train, test), (2, 1), strict=True):
            if len(found) < least:
                raise InputError(f"{name}: expected at least {least} sentences, got {len(found)}")
    else:
        train, test = japanese_entities()
    cut = max(1, len(train) // 10)
    return train[:-cut], train[-cut:], test


def ids_of(items: Any, least: int) -> dict[str, int]:
    """Ids of all that occur so often, in order; the first are those of padding and the unknown."""
    counts = Counter(items)
    kept = sorted(item for item, count in counts.items() if count >= least)
    return {item: i for i, item in enumerate(kept, UNKNOWN + 1)}


def build(
    words: int, characters: int, tags: list[str], seed: int, compute: Any = None
) -> dict[str, Any]:
    options = {"bidirectional": True, "compute": compute}
    return {
        "words": rk.Embedding(words, WORD, padding_idx=0, seed=seed),
        "characters": rk.Embedding(characters, CHARACTER, padding_idx=0, seed=seed + 1),
        "spelling": rk.GRU(CHARACTER, CHARACTER, **options, seed=seed + 2),
        "ends": rk.Pooling("ends"),
        "drop": rk.Dropout(0.4, seed=seed + 3),
        "lstm": rk.LSTM(WORD + 2 * CHARACTER, HIDDEN, **options, seed=seed + 4),
        "head": rk.Linear(2 * HIDDEN, len(tags), seed=seed + 5),
        "crf": rk.CRF(len(tags), forbidden=impossible(tags), seed=seed + 6),
    }


def impossible(tags: list[str]) -> list[tuple[int | None, int]]:
    """Pairs of tags that never follow each other: an I-X comes after B-X or I-X alone."""
    found: list[tuple[int | None, int]] = []
    for j, tag in enumerate(tags):
        if tag.startswith("I-"):
            found.append((None, j))  # nor first
            found += [(i, j) for i, other in enumerate(tags) if other not in (tag, "B-" + tag[2:])]
    return found


class Encoder:
    """Sentences as arrays: words, and the characters of each word."""

    def __init__(self, words: dict[str, int], characters: dict[str, int]) -> None:
        self.words, self.characters = words, characters

    def batch(self, sentences: list[list[str]]) -> dict[str, np.ndarray]:
        """Ids (T, B) of words; characters (C, N) of the N words, row after row of the sentences."""
        lengths = np.array([len(words) for words in sentences])
        ids = np.zeros((lengths.max(), len(sentences)), np.int64)
        spelled: list[list[int]] = []
        for b, words in enumerate(sentences):
            ids[: len(words), b] = [self.words.get(word, UNKNOWN) for word in words]
            spelled += [[self.characters.get(c, UNKNOWN) for c in word] for word in words]
        sizes = np.array([len(characters) for characters in spelled])
        characters = np.zeros((sizes.max(), len(spelled)), np.int64)
        for n, found in enumerate(spelled):
            characters[: len(found), n] = found
        real = np.arange(len(ids)) < lengths[:, None]  # (B, T), in the words' order
        return {"ids": ids, "lengths": lengths, "characters": characters, "sizes": sizes,
                "real": real}  # fmt: skip


def sentences_in(batch: dict[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
    """Some sentences of a batch."""
    ends = np.append(0, batch["lengths"].cumsum())
    words = slice(ends[rows.start], ends[rows.stop])
    of = {"ids": rows, "tags": rows, "characters": words}
    found = {name: batch[name][:, own] for name, own in of.items()}
    of = {"lengths": rows, "real": rows, "sizes": words}
    return found | {name: batch[name][own] for name, own in of.items()}


def vectors_of(words: np.ndarray, spellings: np.ndarray, real: np.ndarray) -> np.ndarray:
    """What the LSTM reads: each word's own vector and that of its spelling."""
    x = np.zeros((*words.shape[:2], words.shape[2] + spellings.shape[1]), np.float32)
    x[..., : words.shape[2]] = words
    x[..., words.shape[2] :].swapaxes(0, 1)[real] = spellings
    return x


def emissions(model: dict[str, Any], batch: dict[str, np.ndarray]) -> np.ndarray:
    spelled, _ = model["spelling"](model["characters"](batch["characters"]), lengths=batch["sizes"])
    spellings = model["ends"](spelled, lengths=batch["sizes"])
    x = vectors_of(model["words"](batch["ids"]), spellings, batch["real"])
    return model["head"](model["lstm"](x, lengths=batch["lengths"])[0])


def gradients(model: dict[str, Any], batch: dict[str, np.ndarray]) -> tuple[float, dict[str, Any]]:
    """The loss of a batch and the gradients of all parts of the model."""
    lengths, sizes, real = batch["lengths"], batch["sizes"], batch["real"]
    letters, of_characters = model["characters"].forward(batch["characters"])
    spelled, _, of_spelling = model["spelling"].forward(letters, lengths=sizes)
    spellings, of_ends = model["ends"].forward(spelled, lengths=sizes)
    words, of_words = model["words"].forward(batch["ids"])
    x, of_drop = model["drop"].forward(vectors_of(words, spellings, real), lengths=lengths)
    y, _, of_lstm = model["lstm"].forward(x, lengths=lengths)
    scores, of_head = model["head"].forward(y)
    loss, crf = model["crf"].loss(scores, batch["tags"], lengths=lengths)
    head = model["head"].backward(of_head, crf.x)
    lstm = model["lstm"].backward(of_lstm, head.x)
    dx = model["drop"].backward(of_drop, lstm.x).x
    d_words, d_spellings = dx[..., :WORD], dx[..., WORD:].swapaxes(0, 1)[real]
    spelling = model["spelling"].backward(
        of_spelling, model["ends"].backward(of_ends, d_spellings).x
    )
    return loss, {
        "words": model["words"].backward(of_words, np.ascontiguousarray(d_words)),
        "characters": model["characters"].backward(of_characters, spelling.x),
        "spelling": spelling, "lstm": lstm, "head": head, "crf": crf,
    }  # fmt: skip


def spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """Entities as (first, end, kind), of IOB2 tags; an I without its B begins one, too."""
    found, first = set(), 0
    for i, tag in enumerate([*tags, "O"]):
        before = tags[i - 1] if i else "O"
        if before != "O" and not (tag.startswith("I-") and tag[2:] == before[2:]):
            found.add((first, i, before[2:]))
        if tag != "O" and not (tag.startswith("I-") and before[2:] == tag[2:] and before != "O"):
            first = i
    return found


def tagged(
    model: dict[str, Any], encoder: Encoder, tags: list[str], sentences: list[list[str]]
) -> list[list[str]]:
    """The best tags of each sentence."""
    found = []
    for start in range(0, len(sentences), 32):
        some = sentences[start : start + 32]
        batch = encoder.batch(some)
        paths, _ = model["crf"].decode(emissions(model, batch), lengths=batch["lengths"])
        found += [[tags[k] for k in paths[: len(words), b]] for b, words in enumerate(some)]
    return found


def scores_of(
    model: dict[str, Any], encoder: Encoder, tags: list[str], sentences: list[Sentence]
) -> dict[str, float]:
    """F1 of whole entities, exact span and kind; and the share of sentences without a mistake."""
    found = tagged(model, encoder, tags, [[word for word, _ in s] for s in sentences])
    right = predicted = there = whole = 0
    for sentence, guess in zip(sentences, found, strict=True):
        truth = [tag for _, tag in sentence]
        one, other = spans(truth), spans(guess)
        right, predicted, there = right + len(one & other), predicted + len(other), there + len(one)
        whole += one == other
    return {"F1": 2 * right / max(1, predicted + there), "whole sentences": whole / len(sentences)}


def prepare(args: argparse.Namespace) -> Training:
    train, choose, test = sentences_of(args)
    words = ids_of((word for s in train for word, _ in s), 2)
    characters = ids_of((c for s in train for word, _ in s for c in word), 2)
    tags = sorted({tag for s in train + choose + test for _, tag in s}, key=lambda t: (t != "O", t))
    encoder = Encoder(words, characters)
    numbers = {tag: i for i, tag in enumerate(tags)}
    model = build(len(words) + 2, len(characters) + 2, tags, args.seed, args.compute)
    steps = QUICK_STEPS if args.quick else STEPS
    optimizer = rk.Adam(model, lr=rk.schedules.Cosine(4e-3, steps, warm_up=20))
    # The order alone comes from `Batches`: of each sentence it has the tags, and its number.
    order = rk.Batches(
        [np.array([numbers[tag] for _, tag in s]) for s in train], y=np.arange(len(train)),
        batch_size=BATCH, seed=args.seed,
    )  # fmt: skip
    source = endless(order)

    def next_batch(number: int) -> dict[str, np.ndarray]:
        chosen = next(source)
        batch = encoder.batch([[word for word, _ in train[i]] for i in chosen.y])
        return {**batch, "tags": chosen.x}

    def evaluate() -> dict[str, float]:
        return scores_of(model, encoder, tags, choose)

    about = {"words": list(words), "characters": list(characters), "tags": tags}
    return Training(
        model, optimizer, max_norm=5.0, next_batch=next_batch, gradients=partial(gradients, model),
        terms=lambda batch: len(batch["lengths"]), evaluate=evaluate,
        rows=lambda batch: len(batch["lengths"]), part=sentences_in,
        state={"batches": order}, about=about,
    )  # fmt: skip


def encoder_of(about: dict[str, Any]) -> Encoder:
    return Encoder(
        {word: i for i, word in enumerate(about["words"], UNKNOWN + 1)},
        {character: i for i, character in enumerate(about["characters"], UNKNOWN + 1)},
    )


def finish(training: Training, args: argparse.Namespace) -> tuple[dict[str, Any], Figure]:
    test = sentences_of(args)[2]
    tags, encoder = training.about["tags"], encoder_of(training.about)
    scores = scores_of(training.model, encoder, tags, test)
    print(f"test: F1 of entities {scores['F1']:.3f}, {scores['whole sentences']:.1%} of "
          f"{len(test)} sentences without a mistake")  # fmt: skip
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    learning_curve(left, training, "negative log likelihood of a sentence (nats)")
    steps = [step for step, _ in training.held_out]
    for name, color in (("F1", "#0072b2"), ("whole sentences", "#d55e00")):
        right.plot(steps, [f[name] for _, f in training.held_out], "o-", color=color, label=name)
        right.axhline(scores[name], color=color, linestyle=":", label=f"{name}, test")
    right.set(xlabel="step", ylim=(0, 1), title=f"Entities: F1 {scores['F1']:.2f} on the test")
    right.grid()
    right.legend()
    return {"test": scores, "test_sentences": len(test)}, figure


def predict(model: dict[str, Any], about: dict[str, Any], args: argparse.Namespace) -> None:
    model = {"ends": rk.Pooling("ends"), **model}
    encoder = encoder_of(about)
    for text in args.input:
        words = text.split()
        if not words:
            raise InputError(f"predict: expected words between spaces, got {text!r}")
        (tags,) = tagged(model, encoder, about["tags"], [words])
        print(text)
        for first, end, kind in sorted(spans(tags)):
            print(f"  {kind:5} {' '.join(words[first:end])}")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", nargs=2, metavar=("TRAIN", "TEST"), help="your own files")


APPLICATION = Application(
    name="entities",
    doc=__doc__,
    steps=STEPS,
    quick_steps=QUICK_STEPS,
    evaluate_every=100,
    prepare=prepare,
    finish=finish,
    predict=predict,
    inputs='"words between spaces"...',
    options=options,
)

if __name__ == "__main__":
    raise SystemExit(main(APPLICATION))

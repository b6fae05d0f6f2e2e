"""Translate with a GRU encoder and decoder and attention (Luong et al. 2015, arXiv:1508.04025).

`--task bible` (default): English verses to Spanish, from two public-domain Bibles of Debian, in
subwords; whole books are held out; BLEU and chrF by sacrebleu. `--task phonemes`: English words to
phonemes, from CMUdict; the phoneme error rate on held-out words.

Training feeds the decoder the right symbols (teacher forcing), so a batch is one call of each part.
Translating is a beam search over a stream. The embedding of the target is also the output layer's.

`predict "some text"...` translates your own sentences, or spells out words.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import numpy as np
from data import InputError, pronunciations, split, verses
from matplotlib.figure import Figure
from run import Application, Training, endless, learning_curve, main

import rnnkern as rk

PAD, BEGIN, END = 0, 1, 2
STEPS, QUICK_STEPS = {"bible": 2500, "phonemes": 2500}, 60
HELD_OUT_BOOKS = ("Ruth", "Jonah", "Mark", "James")  # each of another kind
SUBWORDS = 6000


class Pairs:
    """Sources and targets as ids, and how to read and write them."""

    def __init__(self, task: str, seed: int, quick: bool) -> None:
        self.task = task
        if task == "phonemes":
            self._words(seed)
        else:
            self._verses(quick)
        if quick:
            self.train, self.test = self.train[:4000], self.test[:40]

    def _words(self, seed: int) -> None:
        entries = pronunciations()
        words = sorted({word for word, _ in entries})
        order = split(len(words), seed, 0.9, 0.05, 0.05)
        letters = sorted({letter for word in words for letter in word})
        phonemes = sorted({phoneme for _, found in entries for phoneme in found})
        self._letters, self._phonemes = letters, phonemes
        of_word: dict[str, list[str]] = {}
        for word, found in entries:
            of_word.setdefault(word, []).append(" ".join(found))
        held = {words[i] for i in order[2]}
        self.train = [(word, found) for word, all_ in of_word.items() if word not in held
                      for found in all_]  # fmt: skip
        # A word is right with any of its pronunciations, as published results count.
        self.test = [(word, of_word[word]) for word in sorted(held)]

    def _verses(self, quick: bool) -> None:
        found = verses()
        if quick:
            found = found[::8]
        self.train = [(e, s) for book, e, s in found if book not in HELD_OUT_BOOKS]
        self.test = [(e, [s]) for book, e, s in found if book in HELD_OUT_BOOKS]
        if not self.test:
            self.test = [(e, [s]) for _, e, s in found[-40:]]

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What `Text` reads and writes by; that of verses takes a while to learn."""
        if self.task == "phonemes":
            return {"task": self.task, "source": self._letters, "target": self._phonemes}
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        texts = {}
        for name, column in (("source", 0), ("target", 1)):
            tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
            tokenizer.normalizer = normalizers.NFC()
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            tokenizer.decoder = decoders.Metaspace()
            trainer = trainers.BpeTrainer(
                vocab_size=SUBWORDS, special_tokens=["[PAD]", "[BEGIN]", "[END]", "[UNK]"],
                show_progress=False,
            )  # fmt: skip
            tokenizer.train_from_iterator((pair[column] for pair in self.train), trainer)
            texts[name] = tokenizer.to_str()
        return {"task": self.task, **texts}


class Text:
    """From text to ids and back, as `about` says."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.phonemes = about["task"] == "phonemes"
        if self.phonemes:
            self.source = {item: i for i, item in enumerate(about["source"], 4)}
            self.target = {item: i for i, item in enumerate(about["target"], 4)}
            self.names = {i: item for item, i in self.target.items()}
            self.sizes = len(self.source) + 4, len(self.target) + 4
        else:
            from tokenizers import Tokenizer

            self.source = Tokenizer.from_str(about["source"])
            self.target = Tokenizer.from_str(about["target"])
            self.sizes = self.source.get_vocab_size(), self.target.get_vocab_size()

    def read(self, text: str) -> np.ndarray:
        """The ids of a source, END behind them."""
        if self.phonemes:
            found = [self.source.get(letter, 3) for letter in text.lower()]
        else:
            found = self.source.encode(text).ids
        return np.array([*found, END], np.int64)

    def target_ids(self, text: str) -> np.ndarray:
        if self.phonemes:
            found = [self.target[phoneme] for phoneme in text.split()]
        else:
            found = self.target.encode(text).ids
        return np.array([BEGIN, *found, END], np.int64)

    def write(self, ids: list[int]) -> str:
        if self.phonemes:
            return " ".join(self.names.get(i, "?") for i in ids)
        return str(self.target.decode(ids))


def build(sizes: tuple[int, int], hidden: int, seed: int, compute: Any = None) -> dict[str, Any]:
    source, target = sizes
    half = hidden // 2
    model = {
        "source": rk.Embedding(source, hidden, padding_idx=PAD, seed=seed),
        "encoder": rk.GRU(hidden, half, bidirectional=True, seed=seed + 1, compute=compute),
        "bridge": rk.Linear(hidden, hidden, seed=seed + 2),
        "target": rk.Embedding(target, hidden, padding_idx=PAD, seed=seed + 3),
        "decoder": rk.GRU(hidden, hidden, seed=seed + 4, compute=compute),
        "attention": rk.Attention(hidden, hidden, kind="general", seed=seed + 5),
        "mix": rk.Linear(2 * hidden, hidden, seed=seed + 6),
        "drop": rk.Dropout(0.2, seed=seed + 7),
        "output": rk.Linear(hidden, target, seed=seed + 8),
    }
    for name in ("source", "target"):
        model[name].params["weight"] *= hidden**-0.5
    tie(model)
    return model


def tie(model: dict[str, Any]) -> None:
    """The target's embedding is the output layer's weight, too."""
    model["output"].params["weight"] = model["target"].params["weight"]


def encode(model: dict[str, Any], x: np.ndarray, lengths: np.ndarray) -> Any:
    """Memory (T, B, H) and the decoder's first state (1, B, H), with the tapes."""
    vectors, of_source = model["source"].forward(x)
    memory, ends, of_encoder = model["encoder"].forward(vectors, lengths=lengths)
    both = np.concatenate(list(ends), axis=-1)  # of the two directions
    bridged, of_bridge = model["bridge"].forward(both)
    state = np.tanh(bridged)
    return memory, state, (of_source, of_encoder, of_bridge)


def gradients(model: dict[str, Any], batch: Any) -> tuple[float, dict[str, Any]]:
    """The loss of a batch and the gradients of all parts of the model."""
    x, lengths = batch.x, batch.lengths
    target, counts = batch.y, np.maximum(batch.y_lengths - 1, 0)
    memory, state, (of_source, of_encoder, of_bridge) = encode(model, x, lengths)
    vectors, of_target = model["target"].forward(target[:-1])
    h, _, of_decoder = model["decoder"].forward(vectors, state[None], lengths=counts)
    context, of_attention = model["attention"].forward(
        h, memory, lengths=lengths, query_lengths=counts
    )
    mixed, of_mix = model["mix"].forward(np.concatenate([h, context], axis=-1))
    bent = np.tanh(mixed)
    kept, of_drop = model["drop"].forward(bent, lengths=counts)
    real = np.arange(len(target) - 1)[:, None] < counts
    z, of_output = model["output"].forward(kept, mask=real)
    loss, dz = rk.cross_entropy(z, target[1:], mask=real, label_smoothing=0.1, out=z)
    output = model["output"].backward(of_output, dz)
    d_bent = model["drop"].backward(of_drop, output.x).x
    mix = model["mix"].backward(of_mix, d_bent * (1 - bent**2))
    H = h.shape[-1]
    attention = model["attention"].backward(of_attention, np.ascontiguousarray(mix.x[..., H:]))
    decoder = model["decoder"].backward(of_decoder, mix.x[..., :H] + attention.queries)
    bridge = model["bridge"].backward(of_bridge, decoder.state[0] * (1 - state**2))
    d_ends = np.stack(np.split(bridge.x, 2, axis=-1))
    encoder = model["encoder"].backward(of_encoder, attention.keys, d_ends)
    return loss, {
        "source": model["source"].backward(of_source, encoder.x), "encoder": encoder,
        "bridge": bridge, "target": model["target"].backward(of_target, decoder.x),
        "decoder": decoder, "attention": attention, "mix": mix, "output": output,
    }  # fmt: skip


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z.astype(np.float64) - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """The flat indices of the largest values, in descending order; equal values by index."""
    flat = values.ravel()
    near = np.flatnonzero(flat >= np.partition(flat, -count)[-count])
    return near[np.argsort(-flat[near], kind="stable")][:count]


class Translator:
    """Beam search, sentence by sentence; weights are packed once."""

    def __init__(self, model: dict[str, Any], beam: int) -> None:
        self.model, self.beam = model, beam
        self.encoder = model["encoder"].freeze()
        self.stream = model["decoder"].stream(beam)

    def encoded(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        memory, ends = self.encoder(self.model["source"](x[:, None]))
        return memory, np.tanh(self.model["bridge"](np.concatenate(list(ends), axis=-1)))

    def best(self, x: np.ndarray, most: int) -> tuple[list[int], np.ndarray]:
        """The ids of the best target, and its attention (steps, source)."""
        model, beam = self.model, self.beam
        memory, state = self.encoded(x)
        keys = model["attention"].memory(np.repeat(memory, beam, axis=1))
        self.stream.state = np.repeat(state[None], beam, axis=1)
        paths: list[list[int]] = [[BEGIN]] * beam
        looked: list[list[np.ndarray]] = [[]] * beam
        scores = np.full(beam, -np.inf)
        scores[0] = 0
        done: list[tuple[float, list[int], list[np.ndarray]]] = []
        for _ in range(most):
            h = self.stream.step(model["target"](np.array([path[-1] for path in paths])))
            context, tape = model["attention"].forward(h, keys)
            weights = model["attention"].weights(tape).reshape(beam, -1)
            bent = np.tanh(model["mix"](np.concatenate([h, context], axis=-1)))
            total = scores[:, None] + log_softmax(model["output"](bent))
            total[:, [PAD, BEGIN]] = -np.inf
            alive: list[tuple[float, int, int]] = []
            for place in largest(total, 2 * beam):
                row, symbol = divmod(int(place), total.shape[1])
                score = float(total[row, symbol])
                if symbol == END:
                    length = len(paths[row])
                    done.append((score / length, paths[row][1:], [*looked[row], weights[row]]))
                elif len(alive) < beam:
                    alive.append((score, row, symbol))
            if len(done) >= beam or not alive:
                break
            while len(alive) < beam:
                alive.append((-np.inf, alive[0][1], alive[0][2]))
            rows = [row for _, row, _ in alive]
            self.stream.state = np.ascontiguousarray(self.stream.state[:, rows])
            paths = [[*paths[row], symbol] for _, row, symbol in alive]
            looked = [[*looked[row], weights[row]] for row in rows]
            scores = np.array([score for score, _, _ in alive])
        if not done:
            done = [(float(scores[0]), paths[0][1:], looked[0])]
        _, ids, attention = max(done, key=lambda each: each[0])
        return ids, np.array(attention)


def edits(one: list[str], other: list[str]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def scores_of(model: dict[str, Any], text: Text, test: list[Any], beam: int) -> dict[str, float]:
    translator = Translator(model, beam)
    found = []
    for source, _ in test:
        x = text.read(source)
        found.append(text.write(translator.best(x, 2 * len(x) + 10)[0]))
    truths = [truth for _, truth in test]
    if text.phonemes:
        wrong = sum(min(edits(guess.split(), t.split()) for t in truth)
                    for guess, truth in zip(found, truths, strict=True))  # fmt: skip
        length = sum(len(truth[0].split()) for truth in truths)
        missed = sum(guess not in truth for guess, truth in zip(found, truths, strict=True))
        return {"phoneme error rate": wrong / length, "word error rate": missed / len(test)}
    from sacrebleu.metrics import BLEU, CHRF

    references = [[truth[0] for truth in truths]]
    return {
        "BLEU": BLEU().corpus_score(found, references).score,
        "chrF": CHRF().corpus_score(found, references).score,
    }


def prepare(args: argparse.Namespace) -> Training:
    pairs = Pairs(args.task, args.seed, args.quick)
    text = Text(pairs.about)
    model = build(text.sizes, 64 if args.quick else 256, args.seed, args.compute)
    steps = QUICK_STEPS if args.quick else STEPS[args.task]
    optimizer = rk.Adam(model, lr=rk.schedules.Cosine(2e-3, steps, warm_up=steps // 20))
    batches = rk.Batches(
        [text.read(source) for source, _ in pairs.train],
        y=[text.target_ids(target) for _, target in pairs.train],
        batch_size=64 if args.task == "phonemes" else 32, seed=args.seed,
    )  # fmt: skip
    source = endless(batches)

    def evaluate() -> dict[str, float]:
        return scores_of(model, text, pairs.test[:: max(1, len(pairs.test) // 100)], 1)

    return Training(
        model, optimizer, max_norm=1.0,
        next_batch=lambda number: next(source), gradients=functools.partial(gradients, model),
        terms=lambda batch: np.maximum(batch.y_lengths - 1, 0).sum(), evaluate=evaluate,
        state={"batches": batches}, about={**pairs.about, "seed": args.seed},
    )  # fmt: skip


def finish(training: Training, args: argparse.Namespace) -> tuple[dict[str, Any], Figure]:
    pairs = Pairs(args.task, args.seed, args.quick)
    text = Text(training.about)
    test = pairs.test[:: max(1, len(pairs.test) // (20 if args.quick else 1000))]
    scores = scores_of(training.model, text, test, 4)
    said = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    print(f"test, {len(test)} {'words' if text.phonemes else 'verses'}, beam of 4: {said}")
    translator = Translator(training.model, 4)
    source = min(
        (s for s, _ in reversed(test)), key=lambda s: abs(len(s) - (10 if text.phonemes else 60))
    )
    x = text.read(source)
    ids, attention = translator.best(x, 2 * len(x) + 10)
    print(f"{source}\n  {text.write(ids)}")
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    learning_curve(left, training, "cross-entropy (nats), labels smoothed")
    left.set_title(said)
    right.imshow(attention, cmap="Blues", aspect="auto", vmin=0)
    if text.phonemes:
        right.set_xticks(range(len(x)), [*source, "end"])
    else:
        right.set_xticks(range(len(x)), [text.source.id_to_token(int(i)) for i in x], rotation=90)
    names = [text.write([i]) if text.phonemes else text.target.id_to_token(i) for i in ids]
    right.set_yticks(range(len(attention)), [*names, "end"][: len(attention)])
    right.set_title("Where the decoder looks")
    return {"task": args.task, "test": scores, "tested": len(test)}, figure


def predict(model: dict[str, Any], about: dict[str, Any], args: argparse.Namespace) -> None:
    tie(model)
    text, translator = Text(about), Translator(model, 4)
    for source in args.input:
        if not source.strip():
            raise InputError(f"predict: expected text, got {source!r}")
        if text.phonemes and (other := set("".join(source.lower().split())) - set(text.source)):
            known = "".join(text.source)
            raise InputError(f"predict: expected letters of {known!r}, got {min(other)!r}")
        for line in source.split() if text.phonemes else [source]:
            x = text.read(line)
            print(f"{line}\n  {text.write(translator.best(x, 2 * len(x) + 10)[0])}")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=list(STEPS), default="bible")


APPLICATION = Application(
    name="translation",
    doc=__doc__,
    steps=2500,
    quick_steps=QUICK_STEPS,
    evaluate_every=250,
    prepare=prepare,
    finish=finish,
    predict=predict,
    inputs='"some text"...',
    options=options,
)

if __name__ == "__main__":
    raise SystemExit(main(APPLICATION))

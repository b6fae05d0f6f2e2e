"""How is a word said? The network of g2p-en, from its own weights, and many words at once.

The package g2p-en looks up words in a dictionary. For all other words it has a sequence-to-sequence
network: a GRU reads the letters, another writes the phonemes, each step fed with the phoneme
before. Its weights are arrays in PyTorch's order, which a layer takes as they are. Here the same
network runs a word at a time, as g2p-en does, and on all words together: words of any length in one
call of the encoder, and a stream of as many rows for the decoder.

    pip install 'rnnkern[models]'      # or, of the models alone: pip install --no-deps g2p-en
    python examples/models/g2p.py
"""

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock, patch

import numpy as np

import rnnkern as rk

START, END, MOST = 2, 3, 20  # numbers of <s> and </s>, and the most phonemes of a word

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("words", nargs="*", help="lower-case words; made-up ones if not given")
parser.add_argument("--count", type=int, default=500, help="how many to make up")
args = parser.parse_args()
rk.set_num_threads(1)  # as g2p-en's loop over steps has one


def made_up(count: int) -> list[str]:
    """Words of one to five syllables, the same in every run."""
    rng = np.random.default_rng(0)
    starts = [*"bcdfghjklmnprstvwz", "br", "ch", "fl", "pr", "qu", "st", "th"]
    ends = ["", "", "ck", "ll", "m", "n", "nd", "r", "s", "st", "t", "tion"]
    return [
        "".join(
            rng.choice(starts) + rng.choice([*"aeiouy"]) + rng.choice(ends)
            for _ in range(rng.integers(1, 6))
        )
        for _ in range(count)
    ]


def published() -> object:
    """g2p-en's own object. It is imported without nltk, whose dictionaries the network leaves."""
    absent = ("nltk", "nltk.corpus", "nltk.tokenize", "inflect")
    with patch.dict(sys.modules, {name: MagicMock() for name in absent}):
        from g2p_en.g2p import G2p

        return G2p()


class Network:
    """The same network of rnnkern's layers."""

    def __init__(self, path: Path, letters: dict[str, int]) -> None:
        with np.load(path) as arrays:
            self.arrays = {name: arrays[name].astype(np.float32) for name in arrays.files}
        self.letters = letters
        self.encoder, self.decoder = self.gru("enc"), self.gru("dec")
        self.one_word = self.encoder.stream(), self.decoder.stream()

    def gru(self, part: str) -> rk.GRU:
        """A GRU of the arrays whose names begin so: ``enc_w_ih`` is ``weight_ih_l0``."""
        names = {"weight": "w", "bias": "b"}
        params = {
            f"{ours}_{side}_l0": self.arrays[f"{part}_{theirs}_{side}"]
            for ours, theirs in names.items()
            for side in ("ih", "hh")
        }
        rows, inputs = params["weight_ih_l0"].shape
        return rk.GRU(inputs, rows // 3, params=params)

    def numbers(self, word: str) -> list[int]:
        return [self.letters.get(one, self.letters["<unk>"]) for one in [*word, "</s>"]]

    def say(self, word: str) -> list[int]:
        """The phonemes of one word."""
        encoder, decoder = self.one_word
        encoder.reset()
        encoder.run(self.arrays["enc_emb"][self.numbers(word)][:, None])
        decoder.state = encoder.state
        return next(iter(self.decoded(decoder, 1)))

    def say_all(self, words: list[str]) -> list[list[int]]:
        """The phonemes of many words, whose lengths differ."""
        each = [self.numbers(word) for word in words]
        lengths = np.array([len(one) for one in each])
        letters = np.zeros((lengths.max(), len(words)), int)
        for row, one in enumerate(each):
            letters[: len(one), row] = one
        _, state = self.encoder(self.arrays["enc_emb"][letters], lengths=lengths)
        decoder = self.decoder.stream(len(words))
        decoder.state = state
        return self.decoded(decoder, len(words))

    def decoded(self, decoder: rk.Stream, rows: int) -> list[list[int]]:
        """Each row's phonemes, the likeliest at each step, up to the first </s>."""
        arrays, last, steps = self.arrays, np.full(rows, START), []
        going = np.ones(rows, bool)
        while going.any() and len(steps) < MOST:
            logits = decoder.step(arrays["dec_emb"][last]) @ arrays["fc_w"].T + arrays["fc_b"]
            last = logits.argmax(axis=1)
            going &= last != END
            steps.append(np.where(going, last, END))
        return [[p for p in row if p != END] for row in np.array(steps).T.tolist()]


spec = find_spec("g2p_en")
if spec is None:
    sys.exit("g2p-en is missing: pip install 'rnnkern[models]'")
theirs = published()
ours = Network(Path(spec.origin).with_name("checkpoint20.npz"), theirs.g2idx)
words = args.words or made_up(args.count)


def timed(name: str, run) -> tuple[list, float]:
    """What it returns, and the microseconds a word of the fastest of three runs."""
    took = np.inf
    for _ in range(3):
        begin = time.perf_counter()
        found = run()
        took = min(took, 1e6 * (time.perf_counter() - begin) / len(words))
    print(f"{name:34}{took:10.1f} us a word")
    return found, took


want, slow = timed("g2p-en, word by word", lambda: [theirs.predict(word) for word in words])
one, fast = timed("rnnkern, word by word", lambda: [ours.say(word) for word in words])
many, faster = timed("rnnkern, all words at once", lambda: ours.say_all(words))
named = [[[theirs.idx2p[p] for p in word] for word in found] for found in (one, many)]
for how, found in zip(("word by word", "all at once"), named, strict=True):
    same = sum(a == b for a, b in zip(found, want, strict=True))
    print(f"{how}: {same} of {len(words)} words said the same")
print(f"{slow / fast:.1f} times as fast word by word, {slow / faster:.0f} times all at once")
for word, said in [*zip(words, named[1], strict=True)][:5]:
    print(f"  {word:20}{' '.join(said)}")

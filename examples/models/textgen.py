"""Which character comes next? textgenrnn's network, from its own weights.

textgenrnn writes texts, one character after the other. Its network sees the last 40 characters: an
embedding, two LSTMs of 128 units, an average over all three that attention weighs, and a softmax
over 465 characters. The package has the weights as Keras 2 wrote them in 2018, of layers for GPUs
(CuDNNLSTM), whose layout Keras 3 does not read. Here `rnnkern.keras.from_keras` reads the two
LSTMs; `to_keras` makes Keras 3's layers of them, for the same network to compare with.

    pip install 'rnnkern[models]' torch
    pip install --no-deps textgenrnn  # which would bring TensorFlow
    python examples/models/textgen.py
    KERAS_BACKEND=jax python examples/models/textgen.py --begin "The best"
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

if hasattr(os, "sched_setaffinity"):  # one core: not every backend has threads that can be set
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
if "KERAS_BACKEND" not in os.environ:
    os.environ["KERAS_BACKEND"] = next(n for n in ("torch", "jax", "tensorflow") if find_spec(n))

import h5py
import keras
import numpy as np

import rnnkern as rk
import rnnkern.keras

SEEN, UNITS, SMALLEST = 40, 128, 1e-7  # characters that the network sees; the smallest divisor
TEXT = (
    "I have been waiting for the train for more than an hour, and nobody can tell me when it is "
    "going to come. What is the best book that you have read this year? My cat likes to sleep on "
    "the keyboard when I try to work. This is what happens when you leave a bowl of water outside."
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--begin", default="I ", help="how the text that is written begins")
parser.add_argument("--length", type=int, default=60, help="how many characters to write")
args = parser.parse_args()

spec = find_spec("textgenrnn")
if spec is None:
    sys.exit("textgenrnn is missing: pip install --no-deps textgenrnn")
folder = Path(spec.origin).parent
vocabulary: dict[str, int] = json.loads((folder / "textgenrnn_vocab.json").read_text())
characters = {number: character for character, number in vocabulary.items()}


def windows(text: str) -> np.ndarray:
    """The last characters before each place in a text, (places, 40), padded in front."""
    numbers = [0] * (SEEN - 1) + [vocabulary["<s>"]] + [vocabulary.get(c, 0) for c in text]
    return np.lib.stride_tricks.sliding_window_view(np.array(numbers), SEEN)


def softmax(values: np.ndarray) -> np.ndarray:
    each = np.exp(values - values.max(axis=1, keepdims=True))
    return each / (each.sum(axis=1, keepdims=True) + SMALLEST)


class Network:
    """The network: two LSTMs of rnnkern, and NumPy for the rest."""

    def __init__(self, path: Path) -> None:
        layers = [
            {"class_name": "CuDNNLSTM", "config": {"name": f"rnn_{i}", "units": UNITS}}
            for i in (1, 2)
        ]
        self.layers = rk.keras.from_keras(path, config=layers)
        self.calls = [layer.freeze() for layer in self.layers.values()]
        with h5py.File(path) as file:
            self.embedding = file["embedding/embedding/embeddings:0"][()]
            self.attention = file["attention/attention/attention_W:0"][()]
            self.kernel, self.bias = (file[f"output/output/{n}:0"][()] for n in ("kernel", "bias"))

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """The probability of each character behind windows (rows, 40)."""
        found = [self.embedding[numbers]]
        for lstm in self.calls:
            found.append(lstm(found[-1])[0])
        seen = np.concatenate(found, axis=2)
        weights = softmax((seen @ self.attention)[:, :, 0])
        average = (weights[:, None] @ seen)[:, 0]
        return softmax(average @ self.kernel + self.bias)


class Attention(keras.layers.Layer):
    """The average that textgenrnn calls AttentionWeightedAverage."""

    def build(self, shape: tuple[int, ...]) -> None:
        self.W = self.add_weight(shape=(shape[2], 1), name="W")

    def call(self, x: object) -> object:
        scores = keras.ops.matmul(x, self.W)
        each = keras.ops.exp(scores - keras.ops.max(scores, axis=1, keepdims=True))
        each = each / (keras.ops.sum(each, axis=1, keepdims=True) + SMALLEST)
        return keras.ops.sum(x * each, axis=1)


def in_keras(network: Network) -> Callable[[np.ndarray], np.ndarray]:
    """The same network of Keras's layers."""
    given = keras.Input((SEEN,), dtype="int32")
    found = [keras.layers.Embedding(*network.embedding.shape)(given)]
    for lstm in network.layers.values():
        found.append(rk.keras.to_keras(lstm, return_sequences=True)(found[-1]))
    average = Attention()(keras.layers.Concatenate()(found))
    output = keras.layers.Dense(len(network.bias), activation="softmax")
    model = keras.Model(given, output(average))
    model.layers[1].set_weights([network.embedding])
    model.layers[-2].set_weights([network.attention])
    output.set_weights([network.kernel, network.bias])
    return model.predict_on_batch


def timed(name: str, run: Callable[[], object], places: int) -> tuple[object, float]:
    """What it returns, and the microseconds a character of the fastest of five runs."""
    run()  # where Keras compiles
    took = np.inf
    for _ in range(5):
        begin = time.perf_counter()
        found = run()
        took = min(took, 1e6 * (time.perf_counter() - begin) / places)
    print(f"{name:48}{took:10.0f} us a character")
    return found, took


def written(predict: Callable[[np.ndarray], np.ndarray]) -> str:
    """A text: the likeliest character, again and again, until the end of a text comes."""
    text = args.begin
    while len(text) < len(args.begin) + args.length:
        likeliest = int(predict(windows(text)[-1:])[0, 1:].argmax()) + 1  # 0 stands for padding
        if likeliest == vocabulary["<s>"]:
            break
        text += characters[likeliest]
    return text


ours = Network(folder / "textgenrnn_weights.hdf5")
theirs = in_keras(ours)
print(f"Keras {keras.__version__} with {keras.backend.backend()}, on one core")
seen = windows(TEXT)
want, slow = timed("Keras, all places of a text at once", lambda: theirs(seen), len(seen))
found, fast = timed("rnnkern, all places of a text at once", lambda: ours(seen), len(seen))
print(f"{slow / fast:.1f} times as fast")
same = int((want.argmax(axis=1) == found.argmax(axis=1)).sum())
print(f"the same likeliest character at {same} of {len(seen)} places")
print(f"largest difference of a probability: {np.abs(want - found).max():.1e}")
actual = [vocabulary.get(c, 0) for c in TEXT]
bits = -np.log2(found[np.arange(len(actual)), actual]).mean()
print(f"bits a character of this text: {bits:.2f} of {np.log2(found.shape[1]):.2f}")
one, slow = timed("Keras, a text one by one", lambda: written(theirs), args.length)
two, fast = timed("rnnkern, a text one by one", lambda: written(ours), args.length)
print(f"{slow / fast:.1f} times as fast, {'the same' if one == two else 'another'} text:")
print(f"  {two}")

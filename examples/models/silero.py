"""Where does somebody speak? silero-vad's network, from its ONNX file, chunk by chunk and at once.

silero-vad gives a probability of speech for each 32 ms of sound: a convolutional encoder sees the
chunk, an LSTM of 128 units carries the state from chunk to chunk. Its package has the network as a
model of one chunk, which a program calls in a loop, and as one of many chunks. Both run on ONNX
Runtime. Here `rnnkern.onnx.load` takes the LSTM from that file, and the encoder is five matrix
products of NumPy over all chunks of a call: only the LSTM makes a chunk depend on those before.
(The .safetensors file of the package has other weights than the .onnx files.)

    pip install 'rnnkern[models]'      # or, of the models alone: pip install --no-deps silero-vad
    python examples/models/silero.py                     # a minute of sound made up for this
    python examples/models/silero.py --wav speech.wav    # your own: 16 kHz, 16 bits, one channel
"""

import argparse
import sys
import time
import wave
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view

import rnnkern as rk
import rnnkern.onnx

RATE, CHUNK, BEFORE, UNITS = 16_000, 512, 64, 128  # a call sees the last 64 samples before, too

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--wav", type=Path, help="a recording at 16 kHz")
parser.add_argument("--seconds", type=int, default=60, help="of the sound that is made up")
args = parser.parse_args()
rk.set_num_threads(1)  # as silero-vad sets ONNX Runtime's


def made_up(seconds: int) -> np.ndarray:
    """Vowels with pauses in noise: a pulse train of moving pitch through three resonances."""
    rng = np.random.default_rng(0)
    t = np.arange(seconds * RATE) / RATE
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.7 * t) + 10 * np.sin(2 * np.pi * 2.3 * t)
    sound = np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0.0)
    spectrum, each = np.zeros(sound.size), RATE // 4
    for begin in range(0, sound.size, each):  # another vowel every quarter of a second
        own = np.fft.rfft(sound[begin : begin + each])
        f = np.fft.rfftfreq(sound[begin : begin + each].size, 1 / RATE)
        centers = rng.uniform((300, 900, 2200), (800, 2000, 3000))
        gains = sum(
            a / (1 + ((f - center) / 80) ** 2)
            for a, center in zip((1.0, 0.6, 0.3), centers, strict=True)
        )
        spectrum[begin : begin + each] = np.fft.irfft(own * gains, min(each, sound.size - begin))
    speaking = np.sin(2 * np.pi * 0.23 * t) > -0.2  # with pauses
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * t) + 0.6, 0, 1)
    found = spectrum * speaking * syllables / np.abs(spectrum).max()
    return (0.5 * found + 0.003 * rng.normal(size=t.size)).astype(np.float32)


def recorded(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        kind = (file.getframerate(), file.getsampwidth(), file.getnchannels())
        if kind != (RATE, 2, 1):
            sys.exit(f"{path}: expected 16000 Hz, 2 bytes, 1 channel, got {kind}")
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return (samples / 32768).astype(np.float32)


def chunks_of(sound: np.ndarray) -> np.ndarray:
    """All chunks, each behind the samples before it, (T, 576)."""
    padded = np.pad(sound, (BEFORE, -sound.size % CHUNK))
    return np.ascontiguousarray(sliding_window_view(padded, BEFORE + CHUNK)[::CHUNK])


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """The convolution of x (T, places, channels), by a kernel of three, with zeros around."""
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    seen = sliding_window_view(padded, 3, axis=1)[:, ::stride]
    return np.einsum("tpck,ock->tpo", seen, kernel)


class Detector:
    """The network: NumPy's products, and rnnkern's LSTM."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        (self.lstm,) = rk.onnx.load(model).values()
        weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        # Four frames of 256 samples; at the end the last samples stand once more, mirrored.
        samples = np.append(np.arange(576), np.arange(574, 510, -1))
        self.frames = sliding_window_view(samples, 256)[::128]
        self.basis = np.ascontiguousarray(weights["stft.forward_basis_buffer"][:, 0].T)
        # A convolution over so few places is a product with a matrix, its response to each input.
        self.layers, places, channels = [], len(self.frames), 129
        for i, stride in enumerate((1, 2, 2, 1)):
            each = np.eye(places * channels, dtype=np.float32).reshape(-1, places, channels)
            response = convolved(each, weights[f"encoder.{i}.weight"], stride)
            places, channels = response.shape[1:]
            bias = np.tile(weights[f"encoder.{i}.bias"], places)
            self.layers.append((response.reshape(len(each), -1), bias))
        self.out, self.bias = weights["output.weight"].ravel(), weights["output.bias"][0]

    def encoded(self, chunks: np.ndarray) -> np.ndarray:
        """What the LSTM sees of chunks (T, 576): (T, 128)."""
        waves = chunks[:, self.frames].reshape(-1, 256) @ self.basis
        squares = waves**2
        x = np.sqrt(squares[:, :129] + squares[:, 129:]).reshape(len(chunks), -1)
        for matrix, bias in self.layers:
            x = np.maximum(x @ matrix + bias, 0)
        return x

    def probabilities(self, h: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(np.maximum(h, 0) @ self.out + self.bias)))

    def at_once(self, chunks: np.ndarray) -> np.ndarray:
        y, _ = self.lstm(self.encoded(chunks)[:, None])
        return self.probabilities(y[:, 0])

    def one_by_one(self, chunks: np.ndarray) -> np.ndarray:
        stream = self.lstm.stream()
        steps = (stream.step(self.encoded(chunks[t : t + 1])) for t in range(len(chunks)))
        return np.array([self.probabilities(h[0]) for h in steps])


class Published:
    """The package's models, on ONNX Runtime as its own code runs them."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1

        def session(name: str) -> onnxruntime.InferenceSession:
            path = str(folder / name)
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        self.chunk = session("silero_vad.onnx")
        self.sequence = session("silero_vad_16k_sequence.onnx")

    def one_by_one(self, chunks: np.ndarray) -> np.ndarray:
        state, rate, found = np.zeros((2, 1, UNITS), np.float32), np.array(RATE), []
        for t in range(len(chunks)):
            feeds = {"input": chunks[t : t + 1], "state": state, "sr": rate}
            probability, state = self.chunk.run(None, feeds)
            found.append(probability[0, 0])
        return np.array(found)

    def at_once(self, chunks: np.ndarray) -> np.ndarray:
        state, found = [np.zeros((1, 1, UNITS), np.float32)] * 2, []
        for begin in range(0, len(chunks), 512):  # as many as its own code takes in a call
            feeds = {"input": chunks[begin : begin + 512], "h": state[0], "c": state[1]}
            part, *state = self.sequence.run(None, feeds)
            found.append(part.ravel())
        return np.concatenate(found)


def timed(run: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, float]:
    """What it returns, and the microseconds a chunk of the fastest of three runs."""
    took = np.inf
    for _ in range(3):
        begin = time.perf_counter()
        found = run(chunks)
        took = min(took, 1e6 * (time.perf_counter() - begin) / len(chunks))
    return found, took


spec = find_spec("silero_vad")  # which is not imported: it needs PyTorch, its models do not
if spec is None:
    sys.exit("silero-vad is missing: pip install 'rnnkern[models]'")
folder = Path(spec.origin).with_name("data")
theirs, ours = Published(folder), Detector(folder / "silero_vad_16k_sequence.onnx")
chunks = chunks_of(recorded(args.wav) if args.wav else made_up(args.seconds))
print(f"{len(chunks)} chunks of 32 ms; microseconds a chunk:")
print(f"{'':14}{'ONNX Runtime':>14}{'rnnkern':>10}{'times as fast':>15}{'greatest difference':>21}")
for how in ("one_by_one", "at_once"):
    want, slow = timed(getattr(theirs, how))
    found, fast = timed(getattr(ours, how))
    off = np.abs(found - want).max()
    print(f"{how.replace('_', ' '):14}{slow:14.1f}{fast:10.1f}{slow / fast:15.2f}{off:21.1e}")
    same = np.count_nonzero((found > 0.5) == (want > 0.5))
print(f"speech in {np.count_nonzero(want > 0.5)} chunks; the same said of {same} of {len(chunks)}")

"""A character-level language model on top of a layer: its settings, its training and its file.

Letters: T steps, B lanes of text read side by side, E embedding size, H hidden units,
V characters in the vocabulary. Losses are in bits per character, gradients in nats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import rnnkern as rk
from rnnkern import files, reference
from rnnkern.checks import choice, integer, number
from rnnkern.distributed import MOST_SHARDS, Communicator, Shard
from rnnkern.layers import LAYERS
from rnnkern.stream import join_state

from .text import CharLMError, Corpus, Vocabulary

Array: TypeAlias = NDArray[Any]
State: TypeAlias = "Array | tuple[Array, ...] | None"

HELD_OUT_CHARACTERS = 32_768  # read in one evaluation, so that it costs a fraction of a second
EVALUATE_EVERY = 50  # steps; fixed, so that the history does not depend on where a run stopped
FILE_VERSION = 2
METADATA_KEY = "rnnkern.charlm"
LARGEST = float(np.finfo(np.float32).max)  # of the numbers in `Settings`: parameters are float32
ABOUT: dict[str, type] = {  # what the metadata of a file holds
    "version": int,
    "settings": dict,
    "vocabulary": str,
    "digest": str,
    "position": int,
    "dropout_step": int,
    "generator": dict,
}


@dataclass(frozen=True)
class Settings:
    """All that, with the text, decides a training run; the options of ``rnnkern train``.

    Raises
    ------
    TypeError, ValueError
        If a value is of a wrong type or out of its range; the message names it.
    """

    cell: str = "gru"
    hidden: int = 256
    embedding: int = 64
    layers: int = 1
    dropout: float = 0.0
    batch: int = 32
    length: int = 64
    lr: float = 4e-3
    max_norm: float | None = 0.3
    clip_value: float | None = None
    clip_step_value: float | None = None
    clip_step_norm: float | None = None
    l2: float = 0.0
    compute: str | None = None
    seed: int = 0
    shards: int = 1

    def __post_init__(self) -> None:
        def take(name: str, check: Callable[..., Any], *bounds: Any) -> None:
            object.__setattr__(self, name, check(name, getattr(self, name), *bounds))

        take("cell", choice, tuple(LAYERS))
        if self.compute is not None:
            take("compute", choice, ("bf16",))
        for name in ("layers", "hidden", "embedding", "batch", "length", "shards"):
            high = {"layers": 64, "shards": MOST_SHARDS}.get(name, 2**20)
            take(name, integer, f"an integer from 1 to {high}", 1, high)
        take("seed", integer, "an integer from 0 to 2**32 - 1", 0, 2**32 - 1)
        take("dropout", number, "a number from 0 to below 1", lambda x: 0 <= x < 1)
        take("l2", number, f"a number from 0 to {LARGEST:g}", lambda x: 0 <= x <= LARGEST)
        for name in ("lr", "max_norm", "clip_value", "clip_step_value", "clip_step_norm"):
            if name == "lr" or getattr(self, name) is not None:
                expected = f"a number above 0 and at most {LARGEST:g}"
                take(name, number, expected, lambda x: 0 < x <= LARGEST)
        if inputs_are_units(self.cell) and self.embedding != self.hidden:
            expected = f"hidden, which is {self.hidden}, with cell={self.cell!r}"
            raise ValueError(f"embedding: expected {expected}, got {self.embedding}")
        if self.shards > 1 and self.clip_value is not None:  # it would act on each shard's gradient
            raise ValueError(f"clip_value: expected None with shards, got {self.clip_value}")


class CharLM:
    """Embedding, recurrent layer, softmax over the next character.

    Parameters
    ----------
    vocabulary : Vocabulary
        The V characters known.
    settings : Settings
        Cell, sizes, dropout, compute and seed; the rest is not looked at.
    dtype : float32 or float64
        Of all parameters.

    Attributes
    ----------
    params : dict of str to ndarray
        ``embedding.weight`` (V, E), ``output.weight`` (V, H) and ``output.bias`` (V,).
    layer : recurrent layer
        Of the class that ``settings.cell`` names, with its own ``params``.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnkern.cli.charlm import CharLM, Settings, Vocabulary
    >>> model = CharLM(Vocabulary("ab"), Settings(hidden=8, embedding=4))
    >>> ids = np.array([[1], [2], [1]])  # T = 2 characters and the one behind them, B = 1
    >>> bits, state = model.loss(ids[:-1], ids[1:])
    >>> state.shape
    (1, 1, 8)
    """

    def __init__(self, vocabulary: Vocabulary, settings: Settings, dtype: Any = np.float32) -> None:
        v, e, h = len(vocabulary), settings.embedding, settings.hidden
        self.vocabulary = vocabulary
        self.layer = LAYERS[settings.cell](
            *(e, h, settings.layers),
            dropout=settings.dropout,
            dtype=dtype,
            compute=settings.compute,
            seed=settings.seed,
        )
        self.embedding = rk.Embedding(v, e, dtype=dtype, seed=0)
        self.output = rk.Linear(h, v, dtype=dtype, seed=0)
        generator = np.random.default_rng([settings.seed, 1])  # the layer has its own draws
        bound = 1 / math.sqrt(h)
        table, output = self.embedding.params["weight"], self.output.params
        table[...] = generator.standard_normal((v, e))
        output["weight"][...] = generator.uniform(-bound, bound, (v, h))
        output["bias"][...] = 0
        self.params = self._named(self.embedding.params, output)
        self._logits = np.empty((0, 0, v), dtype)  # (T, B, V), kept between calls

    def loss(self, ids: Array, targets: Array, state: State = None) -> tuple[float, State]:
        """Mean cross-entropy, nothing kept, no dropout.

        Parameters
        ----------
        ids, targets : (T, B) integers
            Characters, and the one behind each.
        state : as the layer's, optional
            Carried over from the characters before; None is zeros.

        Returns
        -------
        bits : float
            Bits per character.
        state : as the layer's
            Behind the last step.
        """
        y, state = self.layer(self.embedding(ids), state)
        return self._loss(self._logits_of(self.output, y), targets)[0], state

    def gradients(
        self,
        ids: Array,
        targets: Array,
        state: State = None,
        clip: rk.Clip | None = None,
        share: float = 1.0,
    ) -> tuple[float, dict[str, Array], rk.Gradients, State]:
        """Loss as `loss` gives it, and its gradient in nats per character.

        Parameters
        ----------
        ids, targets, state
            See `loss`; no gradient goes back into `state` (truncated BPTT).
        clip : Clip, optional
            For the layer's backward pass.
        share : float
            Which the gradient is multiplied by: of the rows among those of a larger batch.

        Returns
        -------
        bits : float
        own : dict
            Gradients of `params`.
        grads : Gradients
            Of the layer.
        state : as the layer's
        """
        x, of_embedding = self.embedding.forward(ids)
        y, state, of_layer = self.layer.forward(x, state)
        logits, of_output = self._logits_of(self.output.forward, y)
        bits, d_logits = self._loss(logits, targets)
        if share != 1.0:
            d_logits *= d_logits.dtype.type(share)
        output = self.output.backward(of_output, d_logits)
        grads = self.layer.backward(of_layer, output.x, clip=clip)
        embedding = self.embedding.backward(of_embedding, grads.x)
        return bits, self._named(embedding.params, output.params), grads, state

    @staticmethod
    def _named(embedding: Mapping[str, Array], output: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays of both under the names of `params`."""
        return {
            "embedding.weight": embedding["weight"],
            "output.weight": output["weight"],
            "output.bias": output["bias"],
        }

    def _logits_of(self, output: Callable[..., Any], y: Array) -> Any:
        """What the output layer's call or forward returns, into memory that calls share."""
        shape = (*y.shape[:2], len(self.vocabulary))
        if self._logits.shape != shape:
            self._logits = np.empty(shape, y.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # the optimizer skips what blew up
            return output(y, out=self._logits)

    @staticmethod
    def _loss(logits: Array, targets: Array) -> tuple[float, Array]:
        """Bits per character, and the gradient of the logits, which takes their place."""
        nats, d_logits = rk.cross_entropy(logits, targets, out=logits)
        return nats / math.log(2), d_logits

    def sample(self, prompt: str, length: int, temperature: float, seed: int) -> str:
        """Continue `prompt` by `length` characters, one step at a time.

        Parameters
        ----------
        prompt : str
            At least one character; those unknown are read as <unk>, which is never written.
        length : int
            Number of characters to write.
        temperature : float
            Divides the logits; 0 takes the likeliest character each time.
        seed : int
            Of the draws.

        Returns
        -------
        str
            What follows the prompt.

        Raises
        ------
        CharLMError
            The prompt is empty.
        FloatingPointError
            The parameters are so large that a logit is not finite.
        """
        if not prompt:
            raise CharLMError("prompt: expected at least one character, got none")
        table, weight = self.params["embedding.weight"], self.params["output.weight"]
        generator = np.random.default_rng(seed)
        stream = self.layer.stream(batch_size=1)
        x = np.empty((1, table.shape[1]), table.dtype)
        y = np.empty((1, weight.shape[1]), table.dtype)
        ids = self.vocabulary.encode(prompt).tolist()
        with np.errstate(over="ignore", invalid="ignore"):  # the logits are checked
            for step in range(len(ids) + length - 1):
                x[0] = table[ids[step]]
                stream.step(x, out=y)
                if step + 1 < len(ids):  # still reading the prompt
                    continue
                logits = (weight[1:] @ y[0] + self.params["output.bias"][1:]).astype(np.float64)
                if not (finite := np.isfinite(logits)).all():
                    got = logits[~finite][0]
                    raise FloatingPointError(f"logits: expected finite values, got {got}")
                if temperature == 0:
                    ids.append(1 + int(logits.argmax()))
                else:
                    share = np.exp((logits - logits.max()) / temperature).cumsum()
                    draw = np.searchsorted(share, generator.random() * share[-1], side="right")
                    ids.append(1 + int(draw))
        return self.vocabulary.decode(ids[len(prompt) :])


class Trainer:
    """A training run: model, optimizer, place in the text, history.

    Parameters
    ----------
    corpus : Corpus
        The text.
    settings : Settings
        All else. The text is cut into ``batch`` lanes, read side by side in windows of
        ``length`` characters with the state carried over from window to window (truncated
        BPTT). Each pass begins at a fresh random offset, so that the cuts fall elsewhere. Ranks
        share the lanes, shard by shard.
    comm : Communicator, optional
        Whose ranks train together, with as many shards as the settings have; this process if None.

    Attributes
    ----------
    history : list of (bits, norm, scale, applied)
        One row a step: loss in bits per character, joint gradient norm before the clip, the
        factor of the clip, and 0 where the step was skipped because it was not finite.
    held_out : list of (step, bits)
        Every ``EVALUATE_EVERY`` steps.
    """

    def __init__(
        self, corpus: Corpus, settings: Settings, comm: Communicator | None = None
    ) -> None:
        self.comm = (Communicator() if comm is None else comm).divided(settings.shards)
        self._span = (len(corpus.train) - 1) // settings.batch  # characters a lane
        if self._span < settings.length:
            needed = settings.batch * settings.length + 1
            raise CharLMError(
                f"text: expected at least {needed} characters to train on for {settings.batch} "
                f"lanes of {settings.length} steps, got {len(corpus.train)}"
            )
        if (held_out := len(corpus.held_out)) < 2:
            raise CharLMError(f"text: expected at least 2 characters held out, got {held_out}")
        size = sum(spec.nbytes for spec in _layout(settings, len(corpus.vocabulary), 0).values())
        if size > files.MAX_BYTES:  # not even worth an attempt to allocate it
            sizes = ("hidden", "embedding", "layers", "batch")
            named = ", ".join(f"{name} {getattr(settings, name)}" for name in sizes)
            expected = f"a file of at most {files.MAX_BYTES} bytes"
            raise CharLMError(f"{named}: expected {expected}, got {size}")
        self.corpus, self.settings = corpus, settings
        self.model = CharLM(corpus.vocabulary, settings)
        self.optimizer = rk.Adam(
            {"model": self.model.params, "layer": self.model.layer},
            lr=settings.lr,
            l2={"*weight*": settings.l2},
        )
        self.history: list[tuple[float, float, float, float]] = []
        self.held_out: list[tuple[float, float]] = []
        self._clip = rk.Clip(
            value=settings.clip_value,
            step_value=settings.clip_step_value,
            step_norm=settings.clip_step_norm,
        )
        self._state = self._fresh()
        self._position = self._span  # at the end of a pass: the first step begins another
        self._generator = np.random.default_rng([settings.seed, 2])

    def step(self) -> None:
        """Train on one window of all lanes."""
        batch, length = self.settings.batch, self.settings.length
        if self._position + length > self._span:
            self._position = int(self._generator.integers(min(length, self._span - length + 1)))
            self._state = self._fresh()
        first = np.arange(batch) * self._span + self._position
        window = self.corpus.train[first + np.arange(length + 1)[:, None]]  # (T + 1, B)
        bits, done = self._stepped(window)
        if not done.applied:
            self._state = self._fresh()  # it may hold what is not finite
        self._position += length
        self.history.append((bits, done.norm, done.scale, float(done.applied)))
        if len(self.history) % EVALUATE_EVERY == 0:
            self.held_out.append((len(self.history), self.evaluate()))

    def _stepped(self, window: Array) -> tuple[float, rk.Step]:
        """The loss of a window and the optimizer's step on it; the state is the one behind it."""
        s, model = self.settings, self.model
        if s.shards == 1:
            bits, own, grads, self._state = model.gradients(
                window[:-1], window[1:], self._state, self._clip
            )
            if (limit := s.clip_value) is not None:  # the layer's are clipped by now
                own = {name: np.clip(array, -limit, limit) for name, array in own.items()}
            return bits, self.optimizer.step({"model": own, "layer": grads}, max_norm=s.max_norm)

        def gradients(shard: Shard) -> dict[str, Any]:
            lanes = self._lanes(shard.rows)
            bits, own, grads, state = model.gradients(
                window[:-1, shard.rows],
                window[1:, shard.rows],
                join_state(tuple(part.copy() for part in lanes)),
                self._clip,
                shard.share,
            )
            after = state if isinstance(state, tuple) else (state,)
            for part, new in zip(lanes, after, strict=True):
                part[...] = new
            shard.report(shard.share * bits)
            return {"model": own, "layer": grads}

        shards = self.comm.shard(s.batch, model.layer)
        done = self.optimizer.step(map(gradients, shards), max_norm=s.max_norm, comm=self.comm)
        return self.comm.reported[0], done

    def _lanes(self, rows: slice) -> list[Array]:
        """Views of the state's arrays of some lanes."""
        state = self._state if isinstance(self._state, tuple) else (self._state,)
        return [np.asarray(part)[:, rows] for part in state]

    def gather(self) -> None:
        """Give all ranks the state of all lanes; all call it, before rank 0 saves."""
        if self.comm.size > 1:
            own = self.comm.rows(self.settings.batch)
            found = self.comm.gather((own, [part.copy() for part in self._lanes(own)]))
            for rows, lanes in found:
                for part, values in zip(self._lanes(rows), lanes, strict=True):
                    part[...] = values

    def evaluate(self) -> float:
        """Bits per character on at most ``HELD_OUT_CHARACTERS`` of the held-out text."""
        ids, length = self.corpus.held_out, self.settings.length
        lanes = max(1, min(self.settings.batch, (len(ids) - 1) // length))
        span = (len(ids) - 1) // lanes
        used = min(span, math.ceil(HELD_OUT_CHARACTERS / lanes))
        first = np.arange(lanes) * span
        total, state = 0.0, None
        for start in range(0, used, length):
            stop = min(start + length, used)
            window = ids[first + np.arange(start, stop + 1)[:, None]]
            bits, state = self.model.loss(window[:-1], window[1:], state)
            total += bits * (stop - start)
        return total / used

    def save(self, path: Path, *, dry_run: bool = False) -> None:
        """Write all that `load` needs to go on with the same bits; `path` is whole at any time.

        Parameters
        ----------
        path : path
            Of the file.
        dry_run : bool
            As in `files.save`.

        Raises
        ------
        CharLMError
            A parameter, a moment of the optimizer or the state is not finite. `load` would refuse
            such a file; the one at `path` stays.
        FileError, OSError
            As in `files.save`.
        """
        tensors = self._tensors()
        try:
            _check_finite(self.settings, tensors)
        except ValueError as error:
            raise CharLMError(f"{path}: not saved: {error}") from error
        tensors |= {
            "history": np.array(self.history, np.float64).reshape(-1, 4),
            "held_out": np.array(self.held_out, np.float64).reshape(-1, 2),
        }
        about = {
            "version": FILE_VERSION,
            "settings": asdict(self.settings),
            "vocabulary": self.corpus.vocabulary.characters,
            "digest": self.corpus.digest,
            "position": self._position,
            "dropout_step": self.model.layer.dropout_step,
            "generator": self._generator.bit_generator.state,
        }
        files.save(
            path, tensors, {METADATA_KEY: json.dumps(about, ensure_ascii=False)}, dry_run=dry_run
        )

    @classmethod
    def load(cls, path: Path, corpus: Corpus, comm: Communicator | None = None) -> Trainer:
        """Take up the run that `save` wrote, on any ranks whose number divides that of its shards.

        Raises
        ------
        FileError
            The file is not such a file, is damaged, or belongs to another text.
        """
        with _reading(path):
            settings, about, tensors = _read(path)
            text = about["digest"], about["vocabulary"]
            if text != (corpus.digest, corpus.vocabulary.characters):
                raise ValueError("was trained on another text; give the same FILEs")
            trainer = cls(corpus, settings, comm)
            _fill(trainer.model, tensors)
            prefix = "optimizer."
            trainer.optimizer.load_state_dict(
                {n.removeprefix(prefix): a for n, a in tensors.items() if n.startswith(prefix)}
            )
            states = range(len(_cell(settings.cell)[1].states))
            trainer._state = join_state(tuple(tensors[f"state.{i}"] for i in states))
            trainer.history = [(a, b, c, d) for a, b, c, d in tensors["history"].tolist()]
            trainer.held_out = [(step, bits) for step, bits in tensors["held_out"].tolist()]
            expected, span = f"an integer from 0 to {trainer._span}", trainer._span
            trainer._position = integer("position", about["position"], expected, 0, span)
            if about["dropout_step"] != len(trainer.history):
                expected = f"the {len(trainer.history)} steps of the history"
                raise ValueError(f"dropout_step: expected {expected}, got {about['dropout_step']}")
            trainer.model.layer.dropout_step = about["dropout_step"]
            trainer._generator.bit_generator.state = about["generator"]
            if trainer._generator.bit_generator.state != about["generator"]:
                raise ValueError("generator: expected a state of PCG64, got one with other values")
        return trainer

    def _fresh(self) -> State:
        s = self.settings
        shape = (s.layers, s.batch, s.hidden)
        table = _cell(s.cell)[1].states
        state: State = join_state(tuple(np.full(shape, of.fresh, np.float32) for of in table))
        return state

    def _tensors(self) -> dict[str, Array]:
        """The arrays of a file by name, but for the histories."""
        state = self._state if isinstance(self._state, tuple) else (self._state,)
        optimizer = self.optimizer.state_dict()
        return {
            **_model_tensors(self.model),
            **{f"optimizer.{name}": np.asarray(array) for name, array in optimizer.items()},
            **{f"state.{i}": np.asarray(array) for i, array in enumerate(state)},
        }


def load_model(path: Path) -> CharLM:
    """Read the model of a file that `Trainer.save` wrote; the text is not needed.

    Raises
    ------
    FileError
        The file is not such a file, or is damaged.
    """
    with _reading(path):
        settings, about, tensors = _read(path)
        model = CharLM(Vocabulary(about["vocabulary"]), settings)
        _fill(model, tensors)
    return model


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file in every error, those of tampered metadata included."""
    try:
        yield
    except files.FileError:
        raise
    except MemoryError as error:
        raise files.FileError(f"{path}: expected a model that fits in memory: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        raise files.FileError(f"{path}: damaged: {error!r:.300}") from error
    except ValueError as error:
        raise files.FileError(f"{path}: {error!s:.300}") from error


def _read(path: Path) -> tuple[Settings, dict[str, Any], dict[str, Array]]:
    """Settings, metadata and arrays of a file; no array before all shapes fit the settings."""
    with files.Reader(path) as file:
        if METADATA_KEY not in file.metadata:
            raise ValueError("not written by rnnkern train")
        about = json.loads(file.metadata[METADATA_KEY])
        for name, kind in ABOUT.items():
            if type(got := about[name]) is not kind:  # isinstance takes True as an int
                raise ValueError(f"{name}: expected {kind.__name__}, got {type(got).__name__}")
        if about["version"] != FILE_VERSION:
            raise ValueError(f"expected file version {FILE_VERSION}, got {about['version']!r}")
        settings = Settings(**about["settings"])
        steps = file.specs["history"].shape[0]
        tensors = file.read(_layout(settings, 1 + len(about["vocabulary"]), steps))
    _check_finite(
        settings, {n: a for n, a in tensors.items() if n.startswith(("model.", "state."))}
    )
    counted = int(tensors["optimizer.adam.step"]) + int(tensors["optimizer.adam.skipped"])
    if counted != steps:
        raise ValueError(f"optimizer: expected {steps} steps, as in the history, got {counted}")
    return settings, about, tensors


def _check_finite(settings: Settings, tensors: dict[str, Array]) -> None:
    """Raise unless all values are finite, or those of a fresh state."""
    fresh = {f"state.{i}": of.fresh for i, of in enumerate(_cell(settings.cell)[1].states)}
    for name, array in tensors.items():
        if not (fits := np.isfinite(array) | (array == fresh.get(name, 0.0))).all():
            raise ValueError(f"{name}: expected finite values, got {array[~fits][0]}")


def _layout(settings: Settings, v: int, steps: int) -> dict[str, files.Spec]:
    """What `Trainer.save` writes after `steps` steps; nothing of it is allocated."""
    e, h = settings.embedding, settings.hidden
    kind, cell = _cell(settings.cell)
    own = {"embedding.weight": (v, e), "output.weight": (v, h), "output.bias": (v,)}
    layer = reference.parameter_shapes(reference.Config(kind, e, h, settings.layers))
    shapes: dict[str, tuple[int, ...]] = {}
    for owner, group, parameters in (("model", "model", own), ("model.layer", "layer", layer)):
        for name, shape in parameters.items():
            moments = (f"optimizer.{group}.{name}.{moment}" for moment in ("first", "second"))
            shapes |= dict.fromkeys((f"{owner}.{name}", *moments), shape)
    for i in range(len(cell.states)):
        shapes[f"state.{i}"] = (settings.layers, settings.batch, h)
    float64, int64 = np.dtype(np.float64), np.dtype(np.int64)
    return {
        **{name: files.Spec(np.dtype(np.float32), shape) for name, shape in shapes.items()},
        "optimizer.adam.step": files.Spec(int64, ()),
        "optimizer.adam.skipped": files.Spec(int64, ()),
        "history": files.Spec(float64, (steps, 4)),
        "held_out": files.Spec(float64, (steps // EVALUATE_EVERY, 2)),
    }


def _cell(name: str) -> tuple[str, reference.Cell]:
    """The kind of the cell that a layer of this name has by default, and its tables."""
    kind = LAYERS[name](1, 1, seed=0)._kind
    return kind, reference.CELLS[kind]


def inputs_are_units(name: str) -> bool:
    """Whether layers of this name take as many inputs as they have units."""
    return _cell(name)[1].inputs_are_units


def _model_tensors(model: CharLM) -> dict[str, Array]:
    own, layer = model.params, model.layer.params
    return {
        **{f"model.{name}": array for name, array in own.items()},
        **{f"model.layer.{name}": array for name, array in layer.items()},
    }


def _fill(model: CharLM, tensors: dict[str, Array]) -> None:
    for name, array in _model_tensors(model).items():
        array[...] = tensors[name]

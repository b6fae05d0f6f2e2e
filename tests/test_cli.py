"""The command `rnnkern`: options act, resuming gives the same bits, errors say what is wrong."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_files import mounted

import rnnkern as rk
from rnnkern import cli, files, reference
from rnnkern.cli import bench, charlm
from rnnkern.cli.charlm import CharLM, Settings, Trainer
from rnnkern.cli.text import UNKNOWN, CharLMError, Corpus, Vocabulary, read_texts, stdlib_texts
from rnnkern.cli.train import _draw, _own
from rnnkern.layers import LAYERS, _Layer

for module in ("rich", "matplotlib", "safetensors"):
    pytest.importorskip(module, reason="the command's extra is not installed")

TINY = Settings(hidden=12, embedding=6, batch=4, length=8, lr=0.01)
TEXT = "".join(f"def add_{i}(x, y):\n    return {i} * x + y  # é\n\n" for i in range(80))
Train = Callable[..., Path]


def tiny(cell: str, **more: Any) -> Settings:
    """TINY with this cell, whose inputs may have to be as many as its units."""
    embedding = TINY.hidden if charlm.inputs_are_units(cell) else TINY.embedding
    return replace(TINY, cell=cell, embedding=embedding, **more)


def options(settings: Settings) -> list[str]:
    """The settings as options of `rnnkern train`, those that are off left out."""
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in vars(settings).items()]
    return [text for name, value in pairs if value is not None for text in (name, str(value))]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the default of --out writes, or finds there, out of the tests' own folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.py"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def train(text: Path, tmp_path: Path) -> Train:
    """Train on the text into folder `name`; returns the model's file."""

    def run(name: str, *more: str, settings: Settings = TINY, status: int = 0) -> Path:
        folder = tmp_path / name
        args = ["train", str(text), "--out", str(folder), *options(settings), *more]
        assert cli.main(args) == status
        return folder / "model.safetensors"

    return run


def assert_one_line(capsys: pytest.CaptureFixture[str], command: str, message: str) -> None:
    """Standard error holds one line, which begins with the message, and no traceback."""
    error = capsys.readouterr().err
    assert error.startswith(f"rnnkern {command}: error: {message}")
    assert error.count("\n") == 1
    assert error.endswith("\n")


def load(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)


def metadata(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return dict(json.loads(file.metadata()[charlm.METADATA_KEY]))


def weights(model: CharLM) -> list[bytes]:
    return [p.tobytes() for params in (model.params, model.layer.params) for p in params.values()]


# ---------------------------------------------------------------------------------- training


def test_train_writes_model_picture_and_sample(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train("run", "--steps", "150")
    out = capsys.readouterr().out
    assert "A sample:\n\ndef " in out
    assert "step 1: " in out
    assert "step 150: held-out " in out
    assert "char/s" in out
    assert "clip " in out
    assert (path.parent / "training.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.safetensors", "training.png"]

    saved = load(path)
    bits, norm, scale, applied = saved["history"].T
    assert len(bits) == 150
    assert bits[0] > 4  # near log2 of the vocabulary
    assert bits[-10:].mean() < bits[:10].mean() - 1.5
    assert saved["held_out"][:, 0].tolist() == [50, 100, 150]
    assert saved["held_out"][-1, 1] < saved["held_out"][0, 1]
    assert (norm > 0).all()
    assert (applied == 1).all()
    np.testing.assert_allclose(scale, np.minimum(1, Settings().max_norm / (norm + 1e-6)), rtol=1e-6)
    assert f"held-out {saved['held_out'][-1, 1]:.3f} bits per character" in out


def trained(settings: Settings, steps: int) -> Trainer:
    trainer = Trainer(Corpus.of([TEXT]), settings)
    for _ in range(steps):
        trainer.step()
    return trainer


def test_resumed_run_has_the_bytes_of_an_uninterrupted_one(train: Train) -> None:
    settings = replace(TINY, layers=2, dropout=0.3, clip_step_value=0.1, l2=0.001)
    whole = train("whole", "--steps", "120", settings=settings)
    parts = train("parts", "--steps", "37", settings=settings)
    assert parts.read_bytes() != whole.read_bytes()
    train("parts", "--steps", "120", "--resume", "--save-every", "11", settings=settings)
    assert parts.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("cell", LAYERS)
def test_loaded_run_goes_on_with_the_same_bytes(tmp_path: Path, cell: str) -> None:
    settings = tiny(cell, layers=2, dropout=0.3)
    whole = trained(settings, 110)  # more than one pass over the text
    parts = trained(settings, 1)
    for _ in range(109):
        parts.save(tmp_path / "parts")
        parts = Trainer.load(tmp_path / "parts", parts.corpus)
        parts.step()
    whole.save(tmp_path / "whole")
    parts.save(tmp_path / "parts")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()


def test_a_run_that_has_not_begun_is_saved_with_a_fresh_state(tmp_path: Path) -> None:
    trainer = trained(replace(TINY, cell="slstm"), 0)
    trainer.save(tmp_path / "run")
    loaded = Trainer.load(tmp_path / "run", trainer.corpus)
    assert [np.unique(part).tolist() for part in loaded._state] == [[0.0]] * 3 + [[-np.inf]]
    for one in (trainer, loaded):
        one.step()
        one.save(tmp_path / str(id(one)))
    assert (tmp_path / str(id(trainer))).read_bytes() == (tmp_path / str(id(loaded))).read_bytes()


def test_resume_takes_the_settings_from_the_file(train: Train, text: Path) -> None:
    path = train("run", "--steps", "3", settings=replace(TINY, cell="lstm"))
    args = ["train", str(text), "--out", str(path.parent), "--resume", "--steps", "5"]
    assert cli.main(args) == 0
    assert len(load(path)["history"]) == 5


CHANGES: dict[str, Any] = {
    "cell": "rnn",
    "hidden": 13,
    "embedding": 7,
    "layers": 3,
    "dropout": 0.5,
    "batch": 5,
    "length": 7,
    "lr": 0.02,
    "l2": 0.01,
    "compute": "bf16",
    "seed": 1,
    "max_norm": 0.05,
    "clip_value": 0.005,
    "clip_step_value": 1e-4,
    "clip_step_norm": 1e-3,
    "shards": 2,
}


@pytest.mark.parametrize("without", ["shards", "clip_value"])  # which exclude each other
def test_options_arrive_in_the_settings(train: Train, without: str) -> None:
    settings = Settings(**{name: value for name, value in CHANGES.items() if name != without})
    path = train("run", "--steps", "1", settings=settings)
    assert metadata(path)["settings"] == vars(settings)


@pytest.mark.parametrize("name", vars(TINY))
def test_every_setting_changes_the_model(name: str) -> None:
    base = replace(TINY, layers=2)
    before = trained(base, 6).model
    after = trained(replace(base, **{name: CHANGES[name]}), 6).model
    assert weights(before) != weights(after)


@pytest.mark.parametrize("name", ["max_norm", "clip_value", "clip_step_value", "clip_step_norm"])
def test_clip_beyond_all_gradients_changes_nothing(name: str) -> None:
    off = replace(TINY, max_norm=None)
    far = replace(off, **dict[str, Any]({name: 1e9}))
    assert weights(trained(off, 4).model) == weights(trained(far, 4).model)


def test_clips_reach_the_core_with_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    backward, step = rk.GRU.backward, rk.Adam.step

    def spy_backward(self: Any, tape: Any, dy: Any, clip: Any) -> Any:
        seen.append(clip)
        return backward(self, tape, dy, clip=clip)

    def spy_step(self: Any, grads: Any, max_norm: Any = None) -> Any:
        own, layer = grads["model"], grads["layer"]
        seen.append(
            (max_norm, max(np.abs(g).max() for g in [*own.values(), *layer.params.values()]))
        )
        return step(self, grads, max_norm=max_norm)

    monkeypatch.setattr(rk.GRU, "backward", spy_backward)
    monkeypatch.setattr(rk.Adam, "step", spy_step)
    limits: dict[str, Any] = {"clip_value": 0.001, "clip_step_value": 0.02, "clip_step_norm": 0.03}
    trained(replace(TINY, max_norm=0.04, **limits), 1)
    clip, (max_norm, largest) = seen
    assert clip == rk.Clip(value=0.001, step_value=0.02, step_norm=0.03)
    assert max_norm == 0.04
    assert largest == np.float32(0.001)  # of all parameters, the embedding's included


def test_threads_are_set_for_the_run_only_and_keep_the_bits(train: Train) -> None:
    threads = rk.get_num_threads()
    one = train("one", "--steps", "4", "--threads", "1")
    two = train("two", "--steps", "4", "--threads", "2")
    assert one.read_bytes() == two.read_bytes()
    assert rk.get_num_threads() == threads


def test_threads_option_reaches_the_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    before = rk.get_num_threads()
    for threads in (1, 3):
        assert cli.main(["info", "--threads", str(threads)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert ["threads", str(threads)] in [line.split() for line in lines]
        assert rk.get_num_threads() == before


def test_seconds_end_a_run(train: Train) -> None:
    path = train("run", "--seconds", "0.3")
    assert 1 <= len(load(path)["history"]) < 100_000


def test_step_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    trainer = trained(TINY, 1)
    weight = trainer.model.params["output.weight"]
    weight[...] = 3e38
    before = trainer.model.params["embedding.weight"].copy()
    trainer.step()
    assert [row[3] for row in trainer.history] == [1.0, 0.0]
    assert trainer.optimizer.skipped == 1
    assert (weight == np.float32(3e38)).all()
    assert (trainer.model.params["embedding.weight"] == before).all()
    trainer.model.layer.params["weight_hh_l0"][...] = np.nan
    trainer.step()
    state = np.asarray(trainer._state, np.float32)
    assert np.isfinite(state).all()  # else no later step would be finite again
    _draw(trainer, 1.0, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def start(tmp_path: Path, text: Path, stdout: int) -> subprocess.Popen[bytes]:
    args = ["train", str(text), "--out", str(tmp_path / "run"), *options(TINY), "--seconds", "60"]
    command = [sys.executable, "-m", "rnnkern", *args]
    # GNU readline, which pytest imports, sets the two variables, which hide a terminal's own size.
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, env=env)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_saves_and_ends_the_run(
    tmp_path: Path, text: Path, train: Train, number: signal.Signals
) -> None:
    process = start(tmp_path, text, subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"step 1:"):
            break
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    path = tmp_path / "run" / "model.safetensors"
    done = len(load(path)["history"])
    assert out.decode().splitlines()[-1] == f"interrupted at step {done}; --resume goes on"
    assert (path.parent / "training.png").exists()
    train("run", "--resume", "--steps", str(done + 5))
    assert path.read_bytes() == train("whole", "--steps", str(done + 5)).read_bytes()


def test_a_reader_that_closes_the_pipe_ends_a_sample_quietly(saved: Path) -> None:
    command = [sys.executable, "-m", "rnnkern", "sample", str(saved), "--length=200000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_reader_that_closes_the_pipe_ends_a_run_which_is_saved(
    tmp_path: Path, text: Path, train: Train
) -> None:
    script = "import sys, rnnkern.cli; from rnnkern.cli import train; train.PRINT_EVERY = 0.0;"
    args = ["train", str(text), "--out", str(tmp_path / "run"), *options(TINY), "--seconds", "60"]
    command = [sys.executable, "-c", f"{script} sys.exit(rnnkern.cli.main({args!r}))"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not process.stdout.readline().startswith(b"step 3:"):
            pass
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
    done = len(load(tmp_path / "run" / "model.safetensors")["history"])
    assert done >= 3
    train("run", "--resume", "--steps", str(done + 2))


def lines_of_a_terminal(tmp_path: Path, text: Path, columns: int) -> list[str]:
    """What a terminal of so many columns gets in the first steps of a run, which Ctrl-C ends."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = start(tmp_path, text, theirs)
    os.close(theirs)
    seen = b""
    while seen.count(b"char/s") < 20:
        seen += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    try:
        while os.read(ours, 4096):
            pass
    except OSError:  # EIO is how Linux reports that the other end is closed
        process.wait(timeout=30)
    finally:
        os.close(ours)
    assert process.returncode == 130
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))
    return re.split(r"[\r\n]+", shown)


def test_a_terminal_gets_a_progress_bar(tmp_path: Path, text: Path) -> None:
    lines = lines_of_a_terminal(tmp_path, text, 80)
    assert any("\u2501" in line and line.startswith("step ") for line in lines), lines
    assert max(len(line) for line in lines if "char/s" in line or "step " in line) <= 80


def test_a_narrow_terminal_gets_lines_that_fit(tmp_path: Path, text: Path) -> None:
    lines = lines_of_a_terminal(tmp_path, text, 40)
    assert any(re.match(r"step \d+: \d+\.\d\d bits/char +\d+%", line) for line in lines), lines
    assert any(re.match(r"held-out \S+; [\d,]+ char/s", line) for line in lines), lines
    steps = [line for line in lines if line.startswith(("step ", "held-out"))]
    assert max(map(len, steps)) <= 40


# ------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("cell", LAYERS)
def test_gradients_are_those_of_central_differences(cell: str) -> None:
    model = CharLM(Vocabulary("abcd"), tiny(cell, layers=2), dtype=np.float64)
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 4, (6, 3))  # id 4 does not occur: its row has no gradient
    targets = generator.integers(0, 5, (6, 3))
    _, state = model.loss(ids, targets)
    bits, own, grads, _ = model.gradients(ids, targets, state)
    assert bits == model.loss(ids, targets, state)[0]
    assert (own["embedding.weight"][4] == 0).all()
    eps = 1e-5
    for params, gradients in ((model.params, own), (model.layer.params, grads.params)):
        for name, p in params.items():
            direction = generator.standard_normal(p.shape)
            start = p.copy()
            loss = []
            for sign in (1, -1):
                p[...] = start + sign * eps * direction
                loss.append(model.loss(ids, targets, state)[0] * np.log(2))
            p[...] = start
            measured = (loss[0] - loss[1]) / (2 * eps)
            # Truncation is near eps**2, rounding near 1e-16 / eps: 1e-8 leaves room for both.
            assert measured == pytest.approx((gradients[name] * direction).sum(), abs=1e-8), name
            assert abs(measured) > 1e-6, name


def test_training_reads_each_lane_in_order_with_the_state_carried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus = Corpus.of([TEXT])
    trainer = Trainer(corpus, TINY)
    windows: list[tuple[Any, ...]] = []
    gradients = trainer.model.gradients

    def spy(ids: Any, targets: Any, state: Any, clip: Any) -> Any:
        result = gradients(ids, targets, state, clip)
        windows.append((ids, targets, state, result[3]))
        return result

    monkeypatch.setattr(trainer.model, "gradients", spy)
    for _ in range(3):
        trainer.step()
    span = (len(corpus.train) - 1) // TINY.batch
    for lane in range(TINY.batch):
        read = np.concatenate([w[0][:, lane] for w in windows])
        following = np.concatenate([w[1][:, lane] for w in windows])
        offset = next(
            o
            for o in range(TINY.length)
            if (corpus.train[lane * span + o :][: len(read)] == read).all()
        )
        assert (corpus.train[lane * span + offset + 1 :][: len(read)] == following).all()
    assert (windows[0][2] == 0).all()
    assert (windows[1][2] == windows[0][3]).all()
    assert (windows[2][2] == windows[1][3]).all()


def test_held_out_is_the_end_of_each_file_and_rare_characters_are_unknown() -> None:
    corpus = Corpus.of(["a" * 90 + "b" * 10, "c" * 40 + "é" + "x" * 2 + "cc" + "d" * 5])
    assert corpus.vocabulary.characters == "ac"  # é and x are rare, b and d held out only
    assert corpus.vocabulary.decode(corpus.train) == "a" * 90 + "c" * 40 + "\ufffd" * 3 + "cc"
    assert corpus.held_out.tolist() == [0] * 15


def test_stdlib_texts_are_bounded_and_in_order() -> None:
    few = stdlib_texts(200_000)
    more = stdlib_texts(400_000)
    assert more[: len(few)] == few
    assert len(more) > len(few)
    assert sum(map(len, few[:-1])) < 200_000 <= sum(map(len, few))


def test_folder_gives_its_text_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("bb", encoding="utf-8")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.txt").write_text("\ufeffaé\r\n", encoding="utf-8", newline="")
    (tmp_path / "a" / "y.bin").write_bytes(b"\xff\xfe")
    (tmp_path / ".hidden").write_text("no", encoding="utf-8")
    assert read_texts([tmp_path]) == ["aé\n", "bb"]


# ------------------------------------------------------------------------------ sample, model file


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trained model of two layers, to be copied before it is damaged."""
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    trained(replace(TINY, layers=2), 60).save(path)
    return path


def test_sample_goes_on_from_a_prompt_with_unknown_characters(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["sample", str(saved), "--prompt", "∀ def ", "--length", "40"]
    outs = []
    for more in ([], [], ["--seed", "1"], ["--temperature", "0.1"]):
        assert cli.main([*args, *more]) == 0
        outs.append(capsys.readouterr().out)
    assert all(out.startswith("∀ def ") and len(out) == len("∀ def ") + 40 + 1 for out in outs)
    assert outs[0] == outs[1]
    assert len(set(outs)) == 3
    assert UNKNOWN not in "".join(outs)


def test_sample_without_temperature_is_the_argmax_of_the_whole_text(saved: Path) -> None:
    model = charlm.load_model(saved)
    prompt = "def add_"
    text = prompt + model.sample(prompt, 30, 0.0, seed=0)
    ids = model.vocabulary.encode(text)
    y, _ = model.layer(model.params["embedding.weight"][ids[:-1, None]])
    logits = y[:, 0] @ model.params["output.weight"].T + model.params["output.bias"]
    likeliest = 1 + logits[len(prompt) - 1 :, 1:].argmax(1)  # <unk> is never written
    assert (ids[len(prompt) :] == likeliest).all()


def test_draws_follow_the_probabilities() -> None:
    model = CharLM(Vocabulary("ab"), TINY)
    model.params["output.weight"][...] = 0
    model.params["output.bias"][...] = [9, np.log(3), 0]  # <unk> would be likeliest
    share = model.sample("a", 4000, 1.0, seed=0).count("a") / 4000
    assert share == pytest.approx(0.75, abs=0.03)  # four standard deviations
    share = model.sample("a", 4000, 0.5, seed=0).count("a") / 4000
    assert share == pytest.approx(0.9, abs=0.02)


def rewrite(
    path: Path, about: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None
) -> None:
    """Save the model file again with parts of its metadata or tensors replaced (None: left out)."""
    from safetensors.numpy import save_file

    old, new = metadata(path), load(path) | (tensors or {})
    save_file(
        {name: array for name, array in new.items() if array is not None},
        path,
        {charlm.METADATA_KEY: json.dumps(old | (about or {}))},
    )


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garble(path: Path) -> None:
    path.write_bytes(b"not a model at all")


def foreign(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, path)


BIAS = "model.output.bias"
STACK = vars(TINY) | {"layers": 2}
DAMAGE = {
    "truncated": (truncate, "bytes of arrays, got"),
    "garbled": (garble, "expected a header of at most"),
    "foreign": (foreign, "not written by rnnkern train"),
    "version": (lambda p: rewrite(p, {"version": 99}), "expected file version 2, got 99"),
    "settings": (lambda p: rewrite(p, {"settings": {"size": 3}}), "damaged: TypeError"),
    "metadata": (lambda p: rewrite(p, {"settings": 5}), "settings: expected dict, got int"),
    "no cell": (lambda p: rewrite(p, {"settings": STACK | {"cell": "x"}}), "'x'"),
    "giant": (lambda p: rewrite(p, {"settings": STACK | {"hidden": 10**9}}), "hidden: expected"),
    "large": (
        lambda p: rewrite(p, {"settings": STACK | {"hidden": 10**6}}),
        "1000000), got float",
    ),
    "deep": (lambda p: rewrite(p, {"settings": STACK | {"layers": 10**9}}), "layers: expected"),
    "clip": (
        lambda p: rewrite(p, {"settings": STACK | {"max_norm": "no"}}),
        "max_norm: expected a number, got str",
    ),
    "missing": (lambda p: rewrite(p, tensors={BIAS: None}), f"{BIAS}' as float32 (32,), got none"),
    "more": (lambda p: rewrite(p, tensors={"more": np.zeros(1)}), "no other names, got ['more']"),
    "shape": (lambda p: rewrite(p, tensors={BIAS: np.zeros(2, np.float32)}), f"{BIAS}' as float32"),
    "dtype": (lambda p: rewrite(p, tensors={BIAS: load(p)[BIAS].astype(float)}), "got float64"),
    "nan": (lambda p: rewrite(p, tensors={BIAS: load(p)[BIAS] * np.nan}), "expected finite"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_model_gives_a_clear_error(
    saved: Path, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved.read_bytes())
    harm, message = DAMAGE[damage]
    harm(path)
    for args in (["sample", str(path)], ["train", str(text), "--resume", "--out", str(tmp_path)]):
        assert cli.main(args) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"rnnkern {args[0]}: error: {path}: ")
        assert message in error
        assert error.count("\n") == 1


GENERATOR = np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize(
    ("about", "tensors", "message"),
    [
        ({"generator": {"bit_generator": "MT19937"}}, {}, "damaged: ValueError|state must be for"),
        ({"generator": GENERATOR | {"state": {"state": 2**200, "inc": 1}}}, {}, "OverflowError"),
        ({"generator": GENERATOR | {"has_uint32": []}}, {}, "TypeError"),
        (
            {"generator": GENERATOR | {"state": {"state": 1.5, "inc": 1}}},
            {},
            "generator: expected a state of PCG64, got one with other values",
        ),
        ({"position": None}, {}, "position: expected int, got NoneType"),
        ({"position": True}, {}, "position: expected int, got bool"),
        ({"version": True}, {}, "version: expected int, got bool"),
        ({"vocabulary": [["a"]] * 31}, {}, "vocabulary: expected str, got list"),
        ({"position": -1}, {}, "position: expected an integer from 0 to 823, got -1"),
        ({"position": 10**30}, {}, "position: expected an integer from 0 to 823, got 10"),
        ({"dropout_step": -1}, {}, "dropout_step: expected the 60 steps of the history, got -1"),
        ({"dropout_step": 2**64 - 1}, {}, "dropout_step: expected the 60 steps of the history"),
        ({"digest": ""}, {}, "was trained on another text"),
        ({"vocabulary": "é" * 31}, {}, "was trained on another text"),
        ({"vocabulary": "é" * 30}, {}, "'model.embedding.weight' as float32 .31, 6.,"),
        ({"settings": STACK | {"batch": 10**6}}, {}, "'state.0' as float32 .2, 1000000, 12."),
        ({"settings": STACK | {"length": 0}}, {}, "length: expected an integer from 1 to"),
        ({"settings": STACK | {"length": 10**5}}, {}, "text: expected at least 400001 characters"),
        ({"settings": STACK | {"lr": float("nan")}}, {}, "lr: expected"),
        ({"settings": STACK | {"dropout": 2}}, {}, "dropout: expected"),
        ({"settings": STACK | {"compute": "int8"}}, {}, "compute: expected one of bf16, got"),
        ({"settings": STACK | {"l2": 1e300}}, {}, "l2: expected a number from 0 to 3.40282e.38"),
        ({"settings": STACK | {"clip_value": 1e300}}, {}, "clip_value: expected a number above 0"),
        ({"settings": STACK | {"seed": -1}}, {}, "seed: expected an integer from 0 to 2..32 - 1"),
        ({}, {"history": np.zeros((2, 3))}, "'history' as float64 .2, 4., got float64 .2, 3."),
        ({}, {"history": np.zeros(())}, "IndexError"),
        ({}, {"history": None}, "KeyError.'history'"),
        ({}, {"history": np.zeros((99, 4))}, "expected 99 steps, as in the history, got 60"),
        ({}, {"state.0": np.zeros((1, 4, 12), np.float32)}, "'state.0' as float32 .2, 4, 12."),
        ({}, {"state.0": np.full((2, 4, 12), np.nan, np.float32)}, "state.0: expected finite"),
        ({}, {"optimizer.adam.step": np.array(2**62)}, "optimizer: expected 60 steps"),
        (
            {},
            {"optimizer.adam.step": np.array(-1), "optimizer.adam.skipped": np.array(61)},
            r"expected counters from 0 to 2\*\*62, got -1",
        ),
    ],
)
def test_damaged_run_is_not_resumed(
    saved: Path, tmp_path: Path, about: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved.read_bytes())
    Trainer.load(path, Corpus.of([TEXT]))
    rewrite(path, about, tensors)
    with pytest.raises(files.FileError, match=rf"model\.safetensors: .*({message})"):
        Trainer.load(path, Corpus.of([TEXT]))


WRONG: tuple[Any, ...] = (
    *(None, True, 0, -1, 7, 1.5, 1e300, 2**200, float("nan")),
    *("", "x\n\x1b[2J" * 999, [], [["a"]] * 31, {}, {"a": 1}),
)


def fields_of(value: Any) -> list[tuple[str, ...]]:
    """Where each value in nested dicts is."""
    if not isinstance(value, dict):
        return []
    return [(name, *below) for name in value for below in [(), *fields_of(value[name])]]


def test_any_field_of_the_metadata_may_have_any_value(saved: Path, tmp_path: Path) -> None:
    """It is refused in one line that names the file, or the run goes on and can be resumed."""
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    tensors, about, corpus = load(saved), metadata(saved), Corpus.of([TEXT])
    refused = accepted = 0
    for field in fields_of(about):
        for value in (*WRONG, WRONG):  # the last stands for a field that is missing
            changed = json.loads(json.dumps(about))
            *above, name = field
            place = changed
            for key in above:
                place = place[key]
            if value is WRONG:
                del place[name]
            else:
                place[name] = value
            save_file(tensors, path, {charlm.METADATA_KEY: json.dumps(changed)})
            model = trainer = None
            for attempt in ("model", "trainer"):
                try:
                    if attempt == "model":
                        model = charlm.load_model(path)
                    else:
                        trainer = Trainer.load(path, corpus)
                except files.FileError as error:
                    text = str(error)
                    assert text.startswith(f"{path}: "), (field, value)
                    assert text.isprintable(), (field, value)
                    assert len(text) < len(str(path)) + 400, (field, value)
            if model:
                model.sample("d", 2, 1.0, seed=0)
            if trainer:
                trainer.step()
                trainer.save(path)
                Trainer.load(path, corpus)
            refused, accepted = refused + (trainer is None), accepted + (trainer is not None)
    assert refused > 300
    assert accepted > 20


@pytest.mark.parametrize(
    ("moment", "value"),
    [(moment, value) for moment in ("first", "second") for value in (np.nan, np.inf, -np.inf)]
    + [("second", -1.0)],
)
def test_bad_moments_are_not_resumed(
    saved: Path, tmp_path: Path, text: Path, moment: str, value: float,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved.read_bytes())
    name = f"model.output.bias.{moment}"
    array = load(path)[f"optimizer.{name}"]
    array[3] = value
    rewrite(path, tensors={f"optimizer.{name}": array})
    before = path.read_bytes()
    with pytest.raises(files.FileError) as caught:
        Trainer.load(path, Corpus.of([TEXT]))
    assert str(caught.value).startswith(f"{path}: ")
    assert name in str(caught.value)
    assert cli.main(["train", str(text), "--resume", "--out", str(tmp_path)]) == 1
    assert_one_line(capsys, "train", f"{path}: ")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("tensor", "status"),
    [
        ("model.output.weight", 1),
        ("model.output.bias", 0),
        ("model.embedding.weight", 0),  # saturates all gates
        ("model.layer.weight_hh_l0", 1),
    ],
)
def test_huge_parameters_give_one_line_or_a_sample(
    saved: Path, tmp_path: Path, text: Path, tensor: str, status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved.read_bytes())
    array = load(path)[tensor]
    rewrite(path, tensors={tensor: np.where(array < 0, -3e38, 3e38).astype(np.float32)})
    for temperature in ("0.8", "0"):
        args = ["sample", str(path), "--length", "20", "--temperature", temperature]
        assert cli.main(args) == status
        if status:
            assert_one_line(capsys, "sample", f"{path}: logits: expected finite values, got")
    # No step is applied, the file stays good, and the sample fails as before.
    assert cli.main(["train", str(text), "--resume", "--out", str(tmp_path), "--steps", "62"]) in (
        0,
        status,
    )
    Trainer.load(path, Corpus.of([TEXT]))


def test_smallest_temperature_is_that_of_the_likeliest(saved: Path) -> None:
    model = charlm.load_model(saved)
    assert model.sample("def ", 40, 1e-320, seed=0) == model.sample("def ", 40, 0.0, seed=0)


def test_model_that_does_not_fit_in_memory_is_named(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(charlm.CharLM, "__init__", fail)
    assert cli.main(["sample", str(saved)]) == 1
    assert_one_line(capsys, "sample", f"{saved}: expected a model that fits in memory: std::bad_")


def test_metadata_too_deep_is_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    files.save(path, files.load(saved), {charlm.METADATA_KEY: "[" * 200_000})
    with pytest.raises(files.FileError, match=r"model: damaged: RecursionError"):
        charlm.load_model(path)


def test_giant_settings_allocate_nothing(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(saved.read_bytes())
    hidden = 2**16
    own = {
        "model.embedding.weight": np.zeros((32, 1), np.float32),
        "model.output.weight": np.zeros((32, hidden), np.float32),
    }
    none = {
        name: np.zeros((0, *array.shape[1:]), array.dtype)
        for name, array in load(path).items()
        if "layer" in name or "optimizer.layer" in name or "state" in name
    }
    rewrite(path, {"settings": STACK | {"embedding": 1, "hidden": hidden}}, own | none)
    tracemalloc.start()
    try:
        with pytest.raises(files.FileError, match="model: expected 'optimizer"):
            charlm.load_model(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20  # weight_hh alone would be 48 GiB
    finally:
        tracemalloc.stop()


def test_cells_are_the_public_classes_of_layers() -> None:
    public = [getattr(rk, name) for name in rk.__all__]
    layers = [c for c in public if isinstance(c, type) and issubclass(c, _Layer)]
    assert {c.__name__.lower(): c for c in layers} == LAYERS
    assert list(LAYERS) == sorted(LAYERS)


def test_layout_is_that_of_the_saved_file(tmp_path: Path) -> None:
    for cell in LAYERS:
        trainer = trained(tiny(cell, layers=3), 51)
        trainer.save(tmp_path / "model")
        with files.Reader(tmp_path / "model") as file:
            v = len(trainer.corpus.vocabulary)
            assert charlm._layout(trainer.settings, v, 51) == file.specs


@pytest.mark.parametrize("name", vars(TINY))
def test_settings_refuse_wrong_types_and_values_by_name(name: str) -> None:
    numbers = () if name == "cell" else (True, -1, 1e300, 2**2000, np.ones(1), float("nan"))
    none = () if name.startswith(("clip", "max_norm", "compute")) else (None,)
    for value in ("1", [], {}, *numbers, *none):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: expected "):
            replace(TINY, **dict[str, Any]({name: value}))


def test_settings_hold_plain_numbers(tmp_path: Path) -> None:
    """JSON takes no others."""
    settings = replace(TINY, lr=np.float32(0.5), hidden=np.int64(8), max_norm=2)
    assert [type(v) for v in (settings.lr, settings.hidden, settings.max_norm)] == [
        float,
        int,
        float,
    ]
    trained(settings, 1).save(tmp_path / "model")
    assert Trainer.load(tmp_path / "model", Corpus.of([TEXT])).settings == settings


@pytest.mark.parametrize("characters", ["", "aba"])
def test_vocabulary_refuses_none_and_repeated_characters(characters: str) -> None:
    with pytest.raises(CharLMError, match=r"^vocabulary: expected at least one character"):
        Vocabulary(characters)


def test_text_of_one_held_out_character_is_named() -> None:
    with pytest.raises(CharLMError, match="at least 2 characters held out, got 1"):
        Trainer(Corpus.of(["a" * 9]), replace(TINY, batch=1, length=1))


# ------------------------------------------------------------------------------- what is saved


def poison(trainer: Trainer, kind: str) -> str:
    """Make an element of what is saved infinite; gives its name in the file."""
    if kind == "model":
        trainer.model.params["output.bias"][1] = np.inf
        return "model.output.bias"
    if kind == "layer":
        trainer.model.layer.params["weight_hh_l0"][1, 1] = np.nan
        return "model.layer.weight_hh_l0"
    if kind == "moment":
        slot = trainer.optimizer._slots[0]
        assert slot.second is not None
        slot.second[1] = np.inf
        return f"optimizer.{slot.key('second')}"
    assert isinstance(trainer._state, np.ndarray)
    trainer._state[0, 1] = np.nan
    return "state.0"


@pytest.mark.parametrize("kind", ["model", "layer", "moment", "state"])
def test_model_that_is_not_finite_is_not_saved(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model"
    trainer = trained(TINY, 2)
    trainer.save(path)
    before = path.read_bytes()
    trainer.step()
    name = poison(trainer, kind)
    for target in (path, tmp_path / "none"):
        for dry_run in (False, True):
            with pytest.raises(CharLMError) as caught:
                trainer.save(target, dry_run=dry_run)
            assert str(caught.value).startswith(f"{target}: not saved: {name}: expected finite")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_run_that_diverges_ends_and_keeps_the_last_good_file(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Trainer.step

    def diverging(self: Trainer) -> None:
        step(self)
        if len(self.history) == 7:
            poison(self, "model")

    path = train("run", "--steps", "3")
    capsys.readouterr()
    monkeypatch.setattr(Trainer, "step", diverging)
    train("run", "--resume", "--save-every", "5", "--steps", "99", status=1)
    assert_one_line(capsys, "train", f"{path}: not saved: model.output.bias: expected finite")
    assert len(load(path)["history"]) == 5
    monkeypatch.undo()
    train("run", "--resume", "--steps", "8")


def test_new_run_that_diverges_leaves_nothing(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Trainer.step

    def diverging(self: Trainer) -> None:  # no learning rate does it: the optimizer skips
        step(self)
        poison(self, "model")

    monkeypatch.setattr(Trainer, "step", diverging)
    path = train("deep/run", "--steps", "3", status=1)
    assert_one_line(capsys, "train", f"{path}: not saved: model.")
    assert not path.parent.parent.exists()


@pytest.mark.parametrize(
    "more",
    [
        {"lr": 3e38},
        {"lr": 1e-320},
        {"lr": 1e20, "max_norm": None},
        {"l2": 3e38},
        {"l2": 1e25},
        {"max_norm": 1e-320},
        {"max_norm": 3e38},
        {"clip_value": 1e-320},
        {"clip_value": 3e38},
        {"clip_step_value": 1e-320},
        {"clip_step_norm": 1e-320},
        {"seed": 2**32 - 1},
        {"batch": 1, "length": 1},
        {"hidden": 1, "embedding": 1},
        {"layers": 64, "dropout": 0.99, "hidden": 2},
        {"cell": "lstm", "lr": 1e10},
        {"cell": "rnn", "lr": 1e10},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:10 steps in a row:RuntimeWarning")
def test_extreme_settings_give_one_line_or_a_run_that_can_be_resumed(
    text: Path, tmp_path: Path, more: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "model.safetensors"
    args = ["train", str(text), "--out", str(path.parent), *options(replace(TINY, **more))]
    status = cli.main([*args, "--steps", "60", "--save-every", "7"])
    if status:
        assert_one_line(capsys, "train", f"{path}: ")
    if path.exists():
        Trainer.load(path, Corpus.of([TEXT])).step()
    else:
        assert status == 1


# ----------------------------------------------------- what is checked before the first step


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(trainer: Trainer) -> None:
        raise AssertionError("expected no step")

    monkeypatch.setattr(Trainer, "step", fail)


@pytest.mark.usefixtures("no_step")
def test_vocabulary_that_no_file_can_hold_is_refused_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("".join(chr(c) * 4 for c in range(0x10000, 0x60000)), encoding="utf-8")
    tiny = options(replace(TINY, hidden=1, embedding=1))
    assert cli.main(["train", "text", "--out", "a/../b/run", *tiny]) == 1
    message = "a/../b/run/model.safetensors: expected a header of at most 1048576 bytes, got 11"
    assert_one_line(capsys, "train", message)
    assert [p.name for p in tmp_path.iterdir()] == ["text"]


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize("out", ["/proc/rnnkern/run", "text.py", "text.py/run", "n" * 256])
def test_folder_that_cannot_be_made_is_refused_before_the_first_step(
    text: Path, out: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text.parent)
    assert cli.main(["train", str(text), "--out", out, *options(TINY)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rnnkern train: error: [Errno ")
    assert any(f"'{path}'" in error for path in (out, Path(out).parent))
    assert error.count("\n") == 1
    assert [p.name for p in text.parent.iterdir()] == ["text.py"]


def test_folder_may_be_many_levels_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("a/" * 1000)  # as many levels as Python allows frames
    with _own(folder, make=True):
        assert folder.is_dir()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("disk", "hidden", "message"),
    [
        ("size=1m,ro", 12, "Read-only file system"),
        ("size=1m", 12, None),
        ("size=100k", 24, None),  # room for two of the model's files
        ("size=60k", 24, "No space left on device"),  # room for one
    ],
)
def test_disk_is_asked_before_the_first_step(
    text: Path, tmp_path: Path, disk: str, hidden: int, message: str | None
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    args = ["train", str(text), f"--out={folder}", *options(replace(TINY, hidden=hidden))]
    command = (sys.executable, "-m", "rnnkern.cli", *args, "--steps=3", "--save-every=1")
    code, out, err = mounted(folder, disk, *command)
    assert ("step 1:" in out) == (message is None)
    if message:
        assert code == 1
        assert message in err
        assert err.startswith("rnnkern train: error: ")
        assert err.endswith(f": '{folder}/model.safetensors'\n")
        assert err.count("\n") == 1


def test_run_that_cannot_replace_its_file_is_not_resumed(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a folder with the sticky bit, if the file is another user's."""

    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    path = train("run", "--steps", "3")
    before = capsys.readouterr() and path.read_bytes()
    monkeypatch.setattr(os, "replace", refuse)
    train("run", "--resume", "--steps", "9", status=1)
    captured = capsys.readouterr()
    assert captured.out == ""  # not a single step
    error = f"[Errno 1] Operation not permitted: '{path}'"
    assert captured.err == f"rnnkern train: error: {error}\n"
    assert path.read_bytes() == before


MEMORY = """if True:
    import resource, sys
    from rnnkern import cli
    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
    sys.exit(cli.main(sys.argv[1:]))
"""


def test_sizes_beyond_memory_are_named(text: Path, tmp_path: Path) -> None:
    args = ["train", str(text), "--out", str(tmp_path / "run"), "--hidden", "20000"]
    done = subprocess.run([sys.executable, "-c", MEMORY, *args], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    message = "rnnkern train: error: FILE, --hidden, --embedding, --layers, --batch and --length: "
    assert done.stderr.startswith(message + "expected sizes that fit in memory: Unable to allocate")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_sizes_beyond_a_file_are_named_before_anything_is_allocated(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    tracemalloc.start()
    try:
        path = train("run", settings=replace(TINY, hidden=1_000_000), status=1)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert_one_line(
        capsys,
        "train",
        "hidden 1000000, embedding 6, layers 1, batch 4: expected a file of at most 68719476736 "
        "bytes, got 36000",
    )
    assert not path.parent.exists()


def test_step_beyond_memory_leaves_nothing(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(CharLM, "gradients", fail)
    path = train("run", status=1)
    assert_one_line(capsys, "train", "FILE, --hidden, --embedding, --layers, --batch and --length")
    assert not path.parent.exists()


# --------------------------------------------------------------------- what fails during a run


def test_failed_save_is_reported_and_tried_again(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training goes on, and ends with the bytes of a run that nothing happened to."""
    whole = train("whole", "--steps", "12")
    capsys.readouterr()
    save, failures = Trainer.save, {4: OSError(28, "No space left", "x"), 8: files.FileError("y")}

    def failing(self: Trainer, path: Path, *, dry_run: bool = False) -> None:
        if len(self.history) in failures:
            raise failures[len(self.history)]
        save(self, path, dry_run=dry_run)

    monkeypatch.setattr(Trainer, "save", failing)
    path = train("run", "--steps", "12", "--save-every", "2")
    assert capsys.readouterr().err.splitlines() == [
        "rnnkern train: warning: step 4 not saved, going on: [Errno 28] No space left: 'x'",
        "rnnkern train: warning: step 8 not saved, going on: y",
    ]
    assert path.read_bytes() == whole.read_bytes()

    failures[12] = OSError(28, "No space left", "z")
    path = train("other", "--steps", "12", "--save-every", "5", status=1)
    assert_one_line(capsys, "train", "[Errno 28] No space left: 'z'")
    assert len(load(path)["history"]) == 10


def test_run_goes_on_where_a_failed_save_cannot_be_reported(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Trainer.save

    def failing(self: Trainer, path: Path, *, dry_run: bool = False) -> None:
        if len(self.history) == 2:
            raise OSError(28, "No space left", "x")
        save(self, path, dry_run=dry_run)

    monkeypatch.setattr(Trainer, "save", failing)
    monkeypatch.setattr(sys, "stderr", Full())
    path = train("run", "--steps", "3", "--save-every", "1")
    assert len(load(path)["history"]) == 3


def test_folder_that_is_removed_during_a_run_is_named(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    step = Trainer.step

    def removing(self: Trainer) -> None:
        step(self)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    monkeypatch.setattr(Trainer, "step", removing)
    path = train("run", "--steps", "3", "--save-every", "2", status=1)
    error = f"[Errno 2] No such file or directory: '{path}'"
    assert capsys.readouterr().err.splitlines() == [
        f"rnnkern train: warning: step 2 not saved, going on: {error}",
        f"rnnkern train: error: {error}",
    ]


class Full(io.StringIO):
    """A file on a disk that is full once the first line of the training is there."""

    def write(self, text: str) -> int:
        if "step 1:" in text or "warning:" in text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


def test_run_is_saved_when_standard_output_fails(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        path = train("run", "--steps", "9", status=1)
    assert_one_line(capsys, "train", "standard output: [Errno 28] No space left on device")
    assert len(load(path)["history"]) == 1
    train("run", "--resume", "--steps", "9")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_one_line(saved: Path, unbuffered: str) -> None:
    for args in (["info"], ["sample", str(saved)]):
        command = [sys.executable, "-m", "rnnkern.cli", *args]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                command,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            )
        assert done.returncode == 1
        error = "standard output: [Errno 28] No space left on device"
        assert done.stderr == f"rnnkern {args[0]}: error: {error}\n"


def test_closed_output_is_no_error(text: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rnnkern.cli", "train", str(text), *options(TINY)]
    command += ["--steps", "3", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(load(tmp_path / "run" / "model.safetensors")["history"]) == 3


def test_folder_need_not_be_printable(text: Path, tmp_path: Path) -> None:
    out = os.fsencode(tmp_path) + b"/run\xff"
    command = [sys.executable, "-m", "rnnkern.cli", "train", str(text), *options(TINY)]
    done = subprocess.run(
        [*map(os.fsencode, command), b"--steps=3", b"--out=" + out],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"run?/training.png written" in done.stdout


@pytest.mark.parametrize(
    "row",
    [(np.inf, np.inf, 1.0, 0.0), (np.nan, np.nan, 1.0, 0.0), (0.0, 0.0, 1.0, 1.0)],
    ids=["infinite", "nan", "zero"],
)
def test_picture_takes_any_history(tmp_path: Path, row: tuple[float, float, float, float]) -> None:
    trainer = Trainer(Corpus.of([TEXT]), TINY)
    for rows in ([row], [row] * 60, [(4.0, 1.0, 0.3, 1.0), *[row] * 60]):
        trainer.history, trainer.held_out = rows, [(1.0, row[0])]
        _draw(trainer, row[0], tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 10_000


# ------------------------------------------------------------------------------ errors of input


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["train", "--hidden", "0"],
            "argument --hidden: expected an integer at least 1 and at most 1048576, got",
        ),
        (["train", "--layers", "1.5"], "argument --layers: expected an integer"),
        (["train", "--compute", "int8"], "argument --compute: invalid choice: 'int8'"),
        (["train", "--dropout", "1"], "argument --dropout: expected a number at least 0 and at"),
        (["train", "--lr", "0"], "argument --lr: expected a number above 0 and at most 3.4028"),
        (["train", "--lr", "inf"], "argument --lr: expected a number above 0 and at most 3.4028"),
        (["train", "--lr", "nan"], "argument --lr: expected a number above 0 and at most 3.4028"),
        (["train", "--lr", "1e39"], "and at most 3.40282346639e+38, got '1e39'"),
        (
            ["train", "--l2", "1e300"],
            "argument --l2: expected a number at least 0 and at most 3.40",
        ),
        (["train", "--l2", "nan"], "argument --l2: expected a number at least 0 and at most 3.40"),
        (["train", "--max-norm", "-1"], "argument --max-norm: expected a number above 0 and at"),
        (
            ["train", "--max-norm", "1e39"],
            "argument --max-norm: expected a number above 0 and at",
        ),
        (["train", "--clip-value", "1e39"], "argument --clip-value: expected a number above 0 and"),
        (["train", "--clip-step-value", "1e39"], "argument --clip-step-value: expected a number"),
        (["train", "--clip-step-norm", "inf"], "argument --clip-step-norm: expected a number"),
        (["train", ""], "argument FILE: expected a path, got ''"),
        (["train", "--out", ""], "argument --out: expected a path, got ''"),
        (["sample", ""], "argument MODEL: expected a path, got ''"),
        (["train", "--clip-value", "no"], "got 'no' (or 'off')"),
        (["train", "--clip-step-value", "0"], "argument --clip-step-value: expected"),
        (["train", "--clip-step-norm", "0"], "argument --clip-step-norm: expected"),
        (["train", "--cell", "xlstm"], "argument --cell: invalid choice: 'xlstm'"),
        (["train", "--steps", "0"], "argument --steps: expected an integer"),
        (["train", "--seconds", "-3"], "argument --seconds: expected a number above 0"),
        (["train", "--threads", "0"], "argument --threads: expected an integer"),
        (["train", "--seed", "-1"], "argument --seed: expected an integer at least 0"),
        (["sample", "model", "--temperature", "-1"], "argument --temperature: expected"),
        (["sample"], "MODEL"),
        (["bench", "--slow"], "--slow"),
        ([], "command"),
    ],
)
def test_bad_option_is_named(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_embedding_is_as_wide_as_a_cell_whose_inputs_are_its_units(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    args = ["train", str(text), "--out", str(out), "--cell", "rglru", "--hidden", "12"]
    with pytest.raises(SystemExit):
        cli.main([*args, "--embedding", "6", "--steps", "1"])
    expected = "expected --hidden, which is 12, with --cell rglru; got 6"
    assert f"argument --embedding: {expected}" in capsys.readouterr().err
    assert cli.main([*args, "--batch", "4", "--length", "8", "--steps", "1"]) == 0
    settings = Trainer.load(out / "model.safetensors", Corpus.of([TEXT])).settings
    assert (settings.cell, settings.hidden, settings.embedding) == ("rglru", 12, 12)
    with pytest.raises(ValueError, match=r"^embedding: expected hidden, which is 12, with cell='r"):
        replace(settings, embedding=6)


def test_dropout_of_one_layer_is_refused(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", str(text), "--dropout", "0.5", "--out", str(tmp_path / "run")])
    assert "argument --dropout: acts between layers only" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resume_refuses_other_settings_text_and_a_finished_run(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train("run", "--steps", "3")
    for more, message in (
        (["--hidden", "13"], "argument --hidden: the saved run has 12, got 13"),
        (["--max-norm", "off"], "argument --max-norm: the saved run has 0.3, got None"),
        (["--steps", "3"], "argument --steps: expected more than the 3 steps done, got 3"),
    ):
        with pytest.raises(SystemExit):
            train("run", "--resume", *more)
        assert message in capsys.readouterr().err
    other = tmp_path / "other.txt"
    other.write_text(TEXT + "x", encoding="utf-8")
    assert cli.main(["train", str(other), "--out", str(path.parent), "--resume"]) == 1
    assert "was trained on another text" in capsys.readouterr().err
    train("run", status=1)
    assert "exists: --resume goes on with it" in capsys.readouterr().err
    train("nothing", "--resume", status=1)
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "expected text, got an empty file"),
        (b"caf\xe9", "expected UTF-8 text"),
        (b"PK\x03\x04\x00\x00", "expected UTF-8 text"),
        ("".join(map(chr, range(0x4E00, 0x6000))).encode(), "a character that occurs at least 3"),
        (b"short " * 5, "expected at least 2049 characters to train on for 32 lanes of 64 steps"),
    ],
    ids=["missing", "empty", "latin-1", "binary", "rare", "short"],
)
def test_bad_text_is_named(
    tmp_path: Path, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "input"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["train", str(path), "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rnnkern train: error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_folder_without_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    assert cli.main(["train", str(tmp_path / "folder")]) == 1
    assert "expected UTF-8 text in this folder, found none" in capsys.readouterr().err


def test_empty_prompt_is_refused(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", str(saved), "--prompt", ""]) == 1
    assert "prompt: expected at least one character" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["rich.progress", "matplotlib"])
def test_missing_extra_says_how_to_install_it(
    name: str, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["train", str(text)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"rnnkern train: error: {name} is missing")
    assert error.endswith("pip install 'rnnkern[cli]'\n")


# -------------------------------------------------------------------------------- info and bench


def test_info_prints_every_item(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(rk.info())


def test_bench_quick_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--quick"]) == 0
    out = capsys.readouterr().out
    assert f"{rk.get_num_threads()} threads" in out
    assert out.count("NumPy float64") == len(LAYERS) * 2 * len(bench.QUICK)
    assert out.count("Python lists") == 2


@pytest.mark.parametrize("rich", [True, False])
def test_table_needs_no_rich(
    rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    bench.show([bench.Row("gru", "forward", (1, 20, 300, 4000), "NumPy float64", 0.5, 4.0)])
    out = capsys.readouterr().out
    assert ("┃" in out) == rich
    words = "gru forward 1 x 20 x 300 x 4000 0.500 NumPy float64 4.000 8.0"
    assert words.split() in [line.replace("│", " ").split() for line in out.splitlines()]


def test_plain_lstm_is_the_reference() -> None:
    config = reference.Config("lstm", 3, 5)
    generator = np.random.default_rng(0)
    shapes = reference.parameter_shapes(config)
    params = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    x, dy = generator.standard_normal((7, 1, 3)), generator.standard_normal((7, 1, 5))
    y, _, tape = reference.forward(config, params, x)
    expected = reference.backward(config, params, tape, dy).params
    plain = bench.PlainLSTM({name: p.tolist() for name, p in params.items()})
    np.testing.assert_allclose(plain.forward(x[:, 0].tolist()), y[:, 0], rtol=1e-12)
    grads = map(np.asarray, plain.backward(x[:, 0].tolist(), dy[:, 0].tolist()))
    for got, name in zip(grads, ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"], strict=True):
        np.testing.assert_allclose(got, expected[name], rtol=1e-10, atol=1e-12)

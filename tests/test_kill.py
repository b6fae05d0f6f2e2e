"""SIGKILL at any moment: what is on the disk is whole, and a resumed run has the same bytes.

Each kill is of a whole `rnnkern train`. Starting Python and importing takes longer than such a run,
so all but a few are forked from one process that has imported everything and run nothing.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest

from rnnkern import files
from rnnkern.cli.charlm import Settings, Trainer
from rnnkern.cli.text import Corpus
from rnnkern.layers import LAYERS

for module in ("rich", "matplotlib"):
    pytest.importorskip(module, reason="the command's extra is not installed")

SETTINGS = Settings(hidden=12, embedding=6, layers=2, dropout=0.3, batch=4, length=8, lr=0.01)
TEXT = "".join(f"def add_{i}(x, y):\n    return {i} * x + y  # é\n\n" for i in range(80))
STEPS = 160  # more than one pass over the text, and three evaluations
SAVE_EVERY = 5
NAME = "model.safetensors"

FORKING = """if True:
    import json, os, signal, sys, time, traceback
    import numpy as np
    import matplotlib.figure, rich.progress
    from rnnkern import cli, files

    def save_for_ever(path):
        for value in range(sys.maxsize):
            files.save(path, {"w": np.full(20_000, float(value))})

    for line in sys.stdin:
        args, moment = json.loads(line)
        child = os.fork()
        if not child:
            status = 70  # of an exception
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                status = save_for_ever(args[1]) if args[0] == "save" else cli.main(args)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        if moment is not None:
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)  # not yet waited for, so the number is still its own
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forked():
    """Call with arguments of `rnnkern` and the second to kill it at; gives the exit status."""
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKING], **pipe) as process:

        def run(args, moment=None):
            process.stdin.write(json.dumps([args, moment]) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        assert run(["info"]) == 0  # it has imported everything now
        yield run
        process.stdin.close()


def real(args, moment=None):
    """As `forked`, with an interpreter of its own: killed while it imports, too."""
    command = [sys.executable, "-m", "rnnkern.cli", *args]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            return process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.returncode


def settings_of(cell):
    """An RG-LRU acts on x unit by unit."""
    return replace(SETTINGS, cell=cell, embedding=12 if cell == "rglru" else 6)


def uninterrupted(cell, path):
    """Steps by the bytes of the file that a run which is not killed saves after them."""
    trainer = Trainer(Corpus.of([TEXT]), settings_of(cell))
    files_of = {}
    for step in range(1, STEPS + 1):
        trainer.step()
        if step % SAVE_EVERY == 0:
            trainer.save(path)
            files_of[path.read_bytes()] = step
    path.unlink()
    assert list(files_of.values()) == list(range(SAVE_EVERY, STEPS + 1, SAVE_EVERY))
    return files_of


def kill_and_resume(run, cell, folder, kills):
    """Start runs, kill them, resume them, until so many have died; say where.

    Moments are drawn from a run's whole life up to its last save, and a little beyond: the picture
    that follows takes as long again. One that was resumed has that much less to live.
    """
    text, out = folder / "text.py", folder / "out"
    text.write_text(TEXT, encoding="utf-8")
    file = out / NAME
    steps_of = uninterrupted(cell, folder / "whole")
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in vars(settings_of(cell)).items()
        if value is not None
    ]
    start = ["train", str(text), f"--out={out}", f"--steps={STEPS}", f"--save-every={SAVE_EVERY}"]

    begin = time.time()
    assert run([*start, *options]) == 0
    life = file.stat().st_mtime - begin
    assert steps_of[file.read_bytes()] == STEPS
    shutil.rmtree(out)

    rng, fell, resumed = random.Random(cell), Counter(), 0
    while True:
        before = steps_of[file.read_bytes()] if file.exists() else 0
        resumed += before > 0
        args = ["--resume"] if before else options
        moment = rng.uniform(0, life * (1.1 - before / STEPS))
        if fell.total() >= kills and resumed:
            moment = None
        status = run([*start, *args], moment)
        done = steps_of[file.read_bytes()] if file.exists() else 0  # KeyError: other bytes
        halves = list(out.glob(".rnnkern-*.tmp"))
        if status == 0:
            assert done == STEPS
            assert sorted(path.name for path in out.iterdir()) == [NAME, "training.png"]
            if moment is None:
                break
        else:
            assert status == -signal.SIGKILL
            if halves:
                where = "in a save"
            elif done == before:
                where = "before its first save"
            else:
                where = "between saves" if done < STEPS else "after its last save"
            fell[where] += 1
            assert len(halves) <= (1 if before else 2)  # a new run's dry run writes two
            for half in halves:
                half.unlink()
        if done == STEPS:
            shutil.rmtree(out)
    print(f"{cell}: {fell.total()} killed, {dict(fell)}; {resumed} resumed; life {life:.2f} s")


@pytest.mark.parametrize("kills", [2, pytest.param(15, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cell", LAYERS)
def test_killed_run_is_resumed_with_the_same_bytes(forked, tmp_path, cell, kills):
    kill_and_resume(forked, cell, tmp_path, kills)


@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_killed_command_is_resumed_with_the_same_bytes(tmp_path, kills):
    kill_and_resume(real, "gru", tmp_path, kills)


def test_second_run_into_a_folder_is_refused_until_the_first_is_killed(tmp_path):
    text, out = tmp_path / "text.py", tmp_path / "out"
    text.write_text(TEXT, encoding="utf-8")
    command = [sys.executable, "-m", "rnnkern.cli", "train", str(text), f"--out={out}"]
    first = [*command, "--hidden=12", "--batch=4", "--length=8", "--save-every=5", "--seconds=90"]
    with subprocess.Popen(first, stdout=subprocess.PIPE, text=True) as process:
        while not (out / NAME).exists():
            assert process.stdout.readline()
        for more in ([], ["--resume"]):
            second = subprocess.run([*command, *more], capture_output=True, text=True)
            assert (second.returncode, second.stdout) == (1, "")
            message = "expected a folder that is not in use, got one that a process has locked"
            assert second.stderr == f"rnnkern train: error: {out}: {message}\n"
        assert process.poll() is None
        process.kill()
    with files.Reader(out / NAME) as file:
        done = file.specs["history"].shape[0]
    assert real(["train", str(text), f"--out={out}", "--resume", f"--steps={done + 7}"]) == 0
    with files.Reader(out / NAME) as file:
        assert file.specs["history"].shape[0] == done + 7


def test_killed_save_leaves_a_whole_file(forked, tmp_path):
    path = tmp_path / NAME
    rng, kills, halves, values = random.Random(0), 0, 0, set()
    while kills < 30 or halves < 5 or len(values) < 5:
        assert kills < 500, f"too few of these kills fell into a save: {halves}"
        assert forked(["save", str(path)], rng.uniform(0.01, 0.1)) == -signal.SIGKILL
        kills += 1
        left = [p for p in tmp_path.iterdir() if p != path]
        halves += len(left)
        for half in left:
            half.unlink()
        if path.exists():
            w = files.load(path)["w"]
            assert (w == w[0]).all()
            values.add(w[0])
    print(f"{kills} killed, {halves} of them with a new file half way")

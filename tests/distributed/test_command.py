"""``mpiexec rnnkern train``: one rank prints and writes, and any number gives the same file."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from conftest import command, environment, run

from rnnkern import files

NAME = "model.safetensors"
TINY = ("--hidden=12", "--embedding=6", "--batch=6", "--length=8", "--layers=2", "--dropout=0.2")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.py"
    path.write_text("def f(x):\n    return x + 1\n" * 400, encoding="utf-8")
    return path


def train(ranks, text, out, *more):
    return run(ranks, "-m", "rnnkern.cli", "train", text, f"--out={out}", *more)


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory):
    """The file of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    done = train(None, text, out, *TINY, "--shards=4", "--steps=60")
    assert done.returncode == 0, done.stderr
    return (out / NAME).read_bytes()


def test_four_ranks_print_and_write_as_one(text, tmp_path, alone):
    out = tmp_path / "out"
    done = train(4, text, out, *TINY, "--steps=60")  # as many shards as ranks
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("characters to train on") == 1
    assert "1 threads on each of 4 ranks, 4 shards" in done.stdout
    assert done.stdout.count("A sample:") == 1
    assert sorted(path.name for path in out.iterdir()) == [NAME, "training.png"]
    assert (out / NAME).read_bytes() == alone


def test_eight_ranks_give_the_bits_of_one_process(text, tmp_path):
    for ranks in (None, 8):
        done = train(ranks, text, tmp_path / str(ranks), *TINY, "--shards=8", "--steps=10")
        assert done.returncode == 0, done.stderr
    one, eight = ((tmp_path / str(ranks) / NAME).read_bytes() for ranks in (None, 8))
    assert one == eight


def test_a_signal_saves_and_other_ranks_go_on_to_the_same_file(text, tmp_path):
    out = tmp_path / "out"
    arguments = ("-m", "rnnkern.cli", "train", text, f"--out={out}", *TINY, "--shards=4")
    with subprocess.Popen(
        command(2, *arguments, "--seconds=60", "--save-every=3"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        for line in process.stdout:
            if line.startswith("step 1:"):
                process.send_signal(signal.SIGTERM)
                break
        rest, error = process.communicate(timeout=60)
    assert rest.count("interrupted at step") == 1, rest + error
    step = int(rest.partition("interrupted at step ")[2].partition(";")[0])
    steps = f"--steps={step + 20}"
    done = train(4, text, out, "--resume", steps)
    assert done.returncode == 0, done.stderr
    done = train(None, text, tmp_path / "alone", *TINY, "--shards=4", steps)
    assert done.returncode == 0, done.stderr
    assert (out / NAME).read_bytes() == (tmp_path / "alone" / NAME).read_bytes()


def test_errors_are_said_once(text, tmp_path):
    out = tmp_path / "out"
    for more, expected in (
        (("--clip-value=1",), "argument --clip-value: expected off with more than one shard"),
        (("--shards=3",), "argument --shards: expected a multiple of the 2 ranks; got 3"),
        (("--resume",), "No such file or directory"),
        (("--hidden=0",), "argument --hidden: expected an integer at least 1"),
    ):
        done = train(2, text, out, *TINY, *more)
        assert done.returncode != 0
        assert done.stderr.count(expected) == 1, done.stderr
        assert "Traceback" not in done.stderr
    out.mkdir()
    (out / NAME).write_bytes(b"")
    done = train(2, text, out, *TINY)
    assert done.stderr.count("--resume goes on with it") == 1, done.stderr


FULL = """
import sys
from rnnkern.cli import main, train

class Full:
    \"\"\"Takes so many writes; a print makes two.\"\"\"
    encoding, left = "utf-8", int(sys.argv[1])

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")

    def flush(self): ...
    def isatty(self): return False

sys.stdout = Full()
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("writes", [0, 3])
def test_a_full_standard_output_ends_all_ranks(text, tmp_path, writes):
    """Before the first step, or after it: then the run is saved."""
    out = tmp_path / "out"
    done = run(2, "-c", FULL, writes, "train", text, f"--out={out}", *TINY, "--steps=1000")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: standard output: [Errno 28]") == 1, done.stderr
    assert (out / NAME).exists() == (writes == 3)


def test_an_example_trains_and_resumes_on_any_number_of_ranks(tmp_path):
    """Of examples/, the one that needs no data; tests/applications has the others."""
    example = Path(__file__).parents[2] / "examples" / "reinforcement.py"
    options = (example, "--quick", "--out")

    def arrays(folder):
        return files.load(tmp_path / folder / "reinforcement.safetensors")

    done = run(None, *options, tmp_path / "alone", "--shards=4", "--steps=20")
    assert done.returncode == 0, done.stderr
    for ranks, more in ((4, ("--steps=10",)), (2, ("--resume", "--steps=20"))):
        done = run(ranks, *options, tmp_path / "ranks", *more)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1
    want, found = arrays("alone"), arrays("ranks")
    assert want.keys() == found.keys()
    assert all(found[name].tobytes() == array.tobytes() for name, array in want.items())
    done = run(2, *options, tmp_path / "none", "--shards=3")
    assert done.returncode != 0
    assert done.stderr.count("--shards: expected a multiple of the 2 ranks, got 3") == 1

"""A rank that fails, is killed or leaves; signals; files; restarts with another number of ranks."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest
from conftest import HERE, command, environment, run

from rnnkern import files

STEPS = 8
LIMIT = 10  # seconds from the fault to the end of all ranks


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The bits after all steps, of one process."""
    folder = tmp_path_factory.mktemp("whole")
    done = run(None, HERE / "faulty.py", folder, STEPS)
    assert done.returncode == 0, done.stderr
    return (folder / f"digest-{STEPS}").read_text()


def resumed(folder, ranks, steps=STEPS):
    done = run(ranks, HERE / "faulty.py", folder, steps)
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / f"digest-{steps}").read_text()


@pytest.mark.parametrize(("fault", "ranks"), [("raise", 4), ("kill", 4), ("exit", 2), ("hang", 4)])
def test_a_fault_of_a_rank_ends_all_and_a_restart_has_the_same_bits(
    tmp_path, uninterrupted, fault, ranks
):
    done = run(ranks, HERE / "faulty.py", tmp_path, STEPS, fault, 1, 3)
    took = time.time() - float((tmp_path / "fault").read_text())
    assert done.returncode != 0
    assert took < LIMIT
    if fault == "raise":
        assert "rank 1 of 4:\nTraceback (most recent call last):" in done.stderr
        assert "RuntimeError: this rank fails" in done.stderr
    if fault == "exit":
        assert "RuntimeError: rank 1: expected an exchange with it, got its exit" in done.stderr
    if fault == "hang":
        assert ": expected an exchange with all ranks within 4 s, the timeout" in done.stderr
    assert "step 3\n" in done.stdout
    assert "step 4\n" not in done.stdout
    names = [path.name for path in tmp_path.iterdir()]
    assert sorted(names) == ["fault", "run.safetensors"]  # whole, and no half of one
    assert files.load(tmp_path / "run.safetensors")["opt.adam.step"] == 3
    # Another number of ranks goes on, and is cut off again; then one process.
    done = run(6 - ranks if ranks == 4 else 4, HERE / "faulty.py", tmp_path, STEPS, "kill", 0, 6)
    assert done.returncode != 0
    assert "step 4\n" in done.stdout
    assert files.load(tmp_path / "run.safetensors")["opt.adam.step"] == 6
    assert resumed(tmp_path, None) == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_once_and_another_number_of_ranks_goes_on(tmp_path, number):
    arguments = command(4, HERE / "faulty.py", tmp_path, 10**6, "none", 0, -1)
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        for line in process.stdout:
            if line == "step 2\n":
                process.send_signal(number)
                break
        rest, error = process.communicate(timeout=60)
    assert rest.count("saved after") == 1, rest + error
    assert process.returncode != 0
    (digest,) = tmp_path.glob("digest-*")
    step = int(digest.name.removeprefix("digest-"))
    assert files.load(tmp_path / "run.safetensors")["opt.adam.step"] == step
    alone = tmp_path / "alone"
    alone.mkdir()
    digests = [resumed(folder, ranks, step + 3) for folder, ranks in ((tmp_path, 2), (alone, None))]
    assert digests[0] == digests[1]


def test_a_signal_to_one_rank_stops_all(tmp_path, uninterrupted):
    done = run(2, HERE / "faulty.py", tmp_path, STEPS, "term", 1, 3)
    assert done.returncode in (128 + signal.SIGTERM, signal.SIGTERM), done.stderr
    assert done.stdout.count("saved after 4 steps") == 1  # that of the signal is finished
    assert resumed(tmp_path, 4) == uninterrupted


def test_a_run_of_another_number_of_shards_is_refused(tmp_path):
    assert run(None, HERE / "faulty.py", tmp_path, 1).returncode == 0
    program = (
        "import sys, rnnkern as rk; from rnnkern.distributed import Communicator\n"
        "Communicator(shards=2).restore(sys.argv[1], {'head': rk.Linear(6, 2)})"
    )
    done = run(2, "-c", program, tmp_path / "run.safetensors")
    assert done.returncode != 0
    expected = "run.safetensors: expected 2 shards, as this communicator has, got 4"
    assert done.stderr.count(expected) >= 1


EARLY = """
import os, sys
import rnnkern.distributed
rank = os.environ["PMI_RANK"]
if rank == "1" and "missing" in sys.argv:
    sys.modules["mpi4py"] = None
elif "started" in sys.argv:
    from mpi4py import MPI
if rank == "1":
    raise RuntimeError("this rank fails")
rnnkern.distributed.Communicator()
"""


@pytest.mark.parametrize("mpi", ["started", "not started", "missing"])
def test_an_error_before_there_is_a_communicator_ends_all_ranks(mpi):
    begin = time.perf_counter()
    done = run(3, "-c", EARLY, mpi)
    assert time.perf_counter() - begin < LIMIT
    assert done.returncode != 0
    assert "rank 1 of 3:\nTraceback (most recent call last):" in done.stderr
    assert "RuntimeError: this rank fails" in done.stderr

"""Programs under mpiexec. These tests need the extra ``mpi`` and fail without it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MPIEXEC = shutil.which(
    "mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)
ONE_CORE = {"RNNKERN_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def command(ranks, *arguments):
    """A command line of this Python on so many ranks; None: without a launcher."""
    launcher = [] if ranks is None else [MPIEXEC, "-n", str(ranks)]
    return [*launcher, sys.executable, *map(str, arguments)]


def environment():
    return {**os.environ, **ONE_CORE}


def run(ranks, *arguments, timeout=120):
    """Run a program to its end."""
    return subprocess.run(
        command(ranks, *arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
    )


def results(ranks, folder, program, *arguments):
    """What a program's rank 0 writes as JSON to the path that is its last argument."""
    path = folder / f"{program}-{ranks}.json"
    done = run(ranks, HERE / f"{program}.py", *arguments, path)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text())


@pytest.fixture(scope="session", autouse=True)
def mpi():
    assert MPIEXEC, "mpiexec: expected on the path, got none (pip install 'rnnkern[mpi]')"

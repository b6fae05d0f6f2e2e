"""The kernels against their naive twin (tests/cpp/twin.h), bit for bit, without Python.

Slow (it compiles the core): ``pytest -m slow tests/test_drivers.py``. The sanitizers' builds of the
same drivers are presets of CMakePresets.json.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

import rnnkern as rk

ROOT = Path(__file__).parents[1]
CASES = 50_000
pytestmark = pytest.mark.slow

# OpenMP's threads do not spin while they wait: on few cores, the threads of a driver are many.
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "passive"}


def run(*command: object) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the drivers, compiled here."""
    missing = [tool for tool in ("cmake", "g++") if not shutil.which(tool)]
    if missing or not (ROOT / "CMakePresets.json").exists():
        pytest.skip(f"needs the sources, cmake and g++; missing: {', '.join(missing) or 'sources'}")
    build = tmp_path_factory.mktemp("drivers")
    run("cmake", "--preset", "drivers", "-B", build)
    run("cmake", "--build", build, "--parallel", os.cpu_count() or 1)
    return build / "tests" / "cpp"


def test_fused_sets_give_the_bits_of_the_twin(drivers: Path) -> None:
    fused = [name for name in rk.info()["available"] if name != "baseline"]
    if not fused:
        pytest.skip("no instruction set with a fused multiply-add here")
    assert run(drivers / "fuzz", 0, CASES) == f"{CASES} cases, the same bits: {' '.join(fused)}\n"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the baseline is x86-64's")
def test_the_baseline_gives_the_bits_of_its_twin(drivers: Path) -> None:
    assert run(drivers / "fuzz_baseline", 0, CASES) == f"{CASES} cases, the same bits: baseline\n"


@pytest.mark.parametrize("driver", ["threads", "threads_baseline"])
def test_many_threads(drivers: Path, driver: str) -> None:
    if driver == "threads" and rk.info()["available"] == ["baseline"]:
        pytest.skip("no instruction set with a fused multiply-add here")
    if not (drivers / driver).exists():
        pytest.skip("the baseline is x86-64's")
    assert "the same bits on all threads" in run(drivers / driver)

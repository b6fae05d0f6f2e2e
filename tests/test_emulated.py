"""The same bits on an instruction set that this machine lacks, under emulation.

Slow (it compiles the core three times) and needs Debian's g++-aarch64-linux-gnu and qemu-user:
``pytest -m slow tests/test_emulated.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-static"]
SOURCES = ("kernels", "dispatch", "runtime", "schedule")
CORE = [ROOT / "cpp/core" / f"{name}.cpp" for name in SOURCES]


def build(driver: str, compiler: str, instruction_set: str, flags: list[str], out: Path) -> Path:
    """A driver of tests/cpp for one instruction set."""
    names = [f"-DRNNKERN_ISA={instruction_set}", f"-DRNNKERN_SETS=RNNKERN_SET({instruction_set})"]
    sources = [str(ROOT / f"tests/cpp/{driver}.cpp"), *map(str, CORE)]
    command = [compiler, *FLAGS, *flags, *names, f"-I{ROOT / 'cpp/core'}", *sources, "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def neon(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a driver for NEON."""
    tools = ("g++", "aarch64-linux-gnu-g++", "qemu-aarch64")
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing or os.uname().machine != "x86_64":
        pytest.skip(f"needs an x86-64 machine and {', '.join(missing) or 'nothing else'}")
    folder = tmp_path_factory.mktemp("neon")
    return lambda driver: build(driver, "aarch64-linux-gnu-g++", "neon", [], folder / driver)


@pytest.mark.slow
def test_neon_gives_the_bits_of_avx2(neon: Callable[[str], Path], tmp_path: Path) -> None:
    here = build("bits", "g++", "avx2", ["-mavx2", "-mfma"], tmp_path / "avx2")
    ours = subprocess.run([here], check=True, capture_output=True, text=True).stdout
    theirs = subprocess.run(
        ["qemu-aarch64", neon("bits")], check=True, capture_output=True, text=True
    )
    assert len(ours.splitlines()) == 202
    assert theirs.stdout == ours


@pytest.mark.slow
def test_neon_gives_the_bits_of_the_twin(neon: Callable[[str], Path]) -> None:
    done = subprocess.run(
        ["qemu-aarch64", neon("fuzz"), "0", "2000"], capture_output=True, text=True
    )
    assert done.stdout == "2000 cases, the same bits: neon\n"

"""The same bits on an instruction set that this machine lacks, under emulation.

Slow (it compiles the core twice) and needs Debian's g++-aarch64-linux-gnu and qemu-user:
``pytest -m slow tests/test_emulated.py``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-static"]
SOURCES = ("kernels", "dispatch", "runtime", "schedule")
CORE = [ROOT / "cpp/core" / f"{name}.cpp" for name in SOURCES]


def build(compiler: str, instruction_set: str, flags: list[str], out: Path) -> Path:
    """The driver for one instruction set."""
    names = [f"-DRNNKERN_ISA={instruction_set}", f"-DRNNKERN_SETS=RNNKERN_SET({instruction_set})"]
    sources = [str(ROOT / "tests/cpp/bits.cpp"), *map(str, CORE)]
    command = [compiler, *FLAGS, *flags, *names, f"-I{ROOT / 'cpp/core'}", *sources, "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_neon_gives_the_bits_of_avx2(tmp_path: Path) -> None:
    tools = ("g++", "aarch64-linux-gnu-g++", "qemu-aarch64")
    missing = [tool for tool in tools if not shutil.which(tool)]
    if missing or os.uname().machine != "x86_64":
        pytest.skip(f"needs an x86-64 machine and {', '.join(missing) or 'nothing else'}")
    here = build("g++", "avx2", ["-mavx2", "-mfma"], tmp_path / "avx2")
    there = build("aarch64-linux-gnu-g++", "neon", [], tmp_path / "neon")
    ours = subprocess.run([here], check=True, capture_output=True, text=True).stdout
    theirs = subprocess.run(["qemu-aarch64", there], check=True, capture_output=True, text=True)
    assert len(ours.splitlines()) == 202
    assert theirs.stdout == ours

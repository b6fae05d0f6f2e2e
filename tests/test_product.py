"""The product takes weights of any format that says how to load and store a panel."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from plan import CPP

import rnnkern as rk

CXX = shutil.which("g++")
HAS_AVX2 = "avx2" in rk.info()["available"]


@pytest.mark.skipif(not (CXX and HAS_AVX2), reason="needs g++ and AVX2")
def test_products_are_chains_on_what_the_format_keeps(tmp_path):
    flags = ("-std=c++17", "-O1", "-ffp-contract=off", "-fopenmp", "-Wno-psabi")
    flags += ("-mavx2", "-mfma", "-DRNNKERN_ISA=avx2", f"-I{CPP / 'core'}")
    sources = (CPP.parent / "tests/cpp/product.cpp", *(CPP / "core/threads").glob("*.cpp"))
    subprocess.run([CXX, *flags, *sources, "-o", tmp_path / "product"], check=True, timeout=120)
    done = subprocess.run([tmp_path / "product"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0 0 0\n")

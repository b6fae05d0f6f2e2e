"""The comparison of two versions, of the same one here: benchmarks/versions.py."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "versions.py"


def compare(*options):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, options)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )


def test_a_version_has_its_own_bits_and_the_report_says_so(tmp_path):
    done = compare("--old", sys.executable, "--quick", "--out", tmp_path, "--turn", 0.001)
    assert done.returncode == 0, done.stderr
    cases = done.stderr.count("\n")
    report = (tmp_path / "VERSIONS.md").read_text()
    assert cases > 3
    assert f"The same bits in {cases} of {cases} cases." in report
    assert report.count("| the same |") == cases


def test_what_is_no_version_is_refused(tmp_path):
    done = compare("--old", "no-such-commit", "--out", tmp_path)
    assert done.returncode == 1
    assert "versions: expected an interpreter or a commit, got 'no-such-commit'" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [1.0, -0.0])
def test_another_bit_is_another_digest(change, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    versions = importlib.import_module("versions")
    one, other = {"y": np.zeros(3, np.float32)}, {"y": np.full(3, change, np.float32)}
    assert versions.digest(one) == versions.digest({"y": one["y"].copy()})
    assert versions.digest(one) != versions.digest(other)

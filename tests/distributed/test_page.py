"""The script of docs/several_machines.md gives the same file on one process and on four."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from conftest import command, environment

PAGE = Path(__file__).parents[2] / "docs" / "several_machines.md"


def test_the_script_of_the_page_gives_the_same_file(tmp_path):
    code = re.search(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)[1]
    found = []
    for ranks in (None, 4):
        folder = tmp_path / f"{ranks}"
        folder.mkdir()
        (folder / "train.py").write_text(code)
        done = subprocess.run(
            command(ranks, "train.py"),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            env=environment(),
        )
        assert done.returncode == 0, done.stderr
        assert len(re.findall(r"^epoch \d: loss 0\.\d+$", done.stdout, re.MULTILINE)) == 3
        found.append((done.stdout, (folder / "run.safetensors").read_bytes()))
    assert found[0] == found[1]

"""Every script of examples/answers runs, quickly, and writes its picture and its figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "answers"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "figure")


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_writes_its_picture_and_figures(name, tmp_path):
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stderr
    picture = (tmp_path / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000
    assert json.loads((tmp_path / f"{name}.json").read_text())


def test_every_script_has_its_section():
    text = (FOLDER.parent.parent / "docs" / "answers.md").read_text()
    for name in SCRIPTS:
        assert f"examples/answers/{name}.py" in text, f"docs/answers.md: no section shows {name}.py"
        assert f"answers/{name}.png" in text, f"docs/answers.md: no picture of {name}.py"


def test_the_training_loop_is_short_and_shown_as_it_is():
    script = (FOLDER / "training_loop.py").read_text()
    begin, end = "# The loop, as docs/answers.md shows it.\n", "\n\n# The end of the loop."
    loop = script.partition(begin)[2].partition(end)[0].strip()
    assert 10 < len(loop.splitlines()) <= 25
    assert f"\n{loop}\n```" in (FOLDER.parent.parent / "docs" / "answers.md").read_text()

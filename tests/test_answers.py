"""Every script of examples/answers runs, quickly, and writes its picture and its figures."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "answers"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "figure")


def run(name, out, *options):
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--quick", "--out", str(out), *options]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_COLOR": "1"}
    )


@pytest.fixture
def stopped(monkeypatch, capsys):
    """Run a script that stops before its work: its exit status and standard error.

    It runs in this process: its imports would take longer than all else.
    """

    def stopped(name, out, *options):
        script = FOLDER / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [script.name, "--quick", "--out", str(out), *options])
        monkeypatch.syspath_prepend(str(FOLDER))
        with matplotlib.rc_context(), pytest.raises(SystemExit) as exited:
            runpy.run_path(str(script), run_name="__main__")
        code = exited.value.code  # of a text, which the interpreter would print, too
        return (code, capsys.readouterr().err) if isinstance(code, int) else (1, str(code))

    return stopped


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_writes_its_picture_and_figures(name, tmp_path):
    shorter = ("--seconds", "0.02") if name == "reformatted" else ()  # a fifth of --quick's
    done = run(name, tmp_path, *shorter)
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


PROBLEMS = ("adding", "copy", "digits")
CELLS = (
    *("LSTM", "GRU", "layer-norm LSTM", "minGRU", "minLSTM", "sLSTM", "RG-LRU", "IndRNN"),
)  # fmt: skip


def kept_runs(seconds):
    """What reformatted.py keeps of a run in which the rate 0.01 was the better of the two."""
    common = {"parameters": 7, "steps": 5, "ms": 1.5, "outcome": 0.125, "learning": [0.5] * 24}
    common |= {"reach": 20, "back": list(range(41)), "left": [0.25] * 41}
    runs = [
        {"problem": problem, "cell": cell, "seed": seed, "rate": rate, "loss": loss} | common
        for problem in PROBLEMS
        for cell in CELLS
        for seed, rate, loss in ((0, 0.003, float("nan")), (0, 0.01, 9.0), (1, 0.01, 1.0))
    ]
    return {"settings": {"seconds": seconds, "quick": True}, "runs": runs}


def test_reformatted_draws_what_is_kept_without_training_and_fills_the_page(tmp_path):
    kept = tmp_path / "reformatted.json"
    kept.write_text(json.dumps(kept_runs(0.1)))
    page = tmp_path / "page.md"
    begin, end = "<!-- reformatted.py fills this in -->\n", "<!-- down to here -->\n"
    page.write_text(f"before\n{begin}an old table\n{end}after\n")
    done = run("reformatted", tmp_path, "--fill", str(page))
    assert done.returncode == 0, done.stderr
    assert "runs on" not in done.stdout  # none was left to do
    assert (tmp_path / "reformatted.png").read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert text.startswith(f"before\n{begin}")
    assert text.endswith(f"{end}after\n")
    assert "an old table" not in text
    for cell in CELLS:
        assert f"| {cell} | 0.12 (0.12, 0.12) | 1.5 | 5 | 20 | 0.25 | 7 | 0.01 |" in text


def test_reformatted_refuses_kept_runs_of_another_length(tmp_path, stopped):
    kept = tmp_path / "reformatted.json"
    kept.write_text(json.dumps(kept_runs(5.0)))
    before = kept.read_bytes()
    status, text = stopped("reformatted", tmp_path)
    assert status == 1
    assert "expected runs with {'seconds': 0.1, 'quick': True}" in text
    assert "got {'seconds': 5.0, 'quick': True}" in text
    assert kept.read_bytes() == before


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_reformatted_refuses_a_time_that_is_none(seconds, tmp_path, stopped):
    status, text = stopped("reformatted", tmp_path, "--seconds", seconds)
    assert status == 2
    assert "--seconds: expected a finite number above 0, got" in text
    assert not list(tmp_path.iterdir())


def test_reformatted_refuses_a_page_without_the_marks(tmp_path, stopped):
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    status, text = stopped("reformatted", tmp_path, "--fill", str(page))
    assert status == 2
    assert "--fill: expected a page with <!-- reformatted.py fills this in -->" in text
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]  # before any run
    assert page.read_text() == "no marks\n"

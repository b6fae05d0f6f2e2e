"""Published models, from the packages that ``rnnkern[models]`` names; skipped without them."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import runtime

import rnnkern as rk
import rnnkern.onnx

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"


def folder_of(package):
    """Where a package is, which is not imported: it may need more than its data does."""
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} has the models: pip install 'rnnkern[models]'")
    pytest.importorskip("onnxruntime", reason="what is compared with")
    return Path(spec.origin).parent


def printed(name, *args):
    command = [sys.executable, str(EXAMPLES / name), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# The recurrent nodes of each model: in its main graph, or in branches in branches.
SILERO = {
    "silero_vad": 4,
    "silero_vad_16k_op15": 2,
    "silero_vad_16k_sequence": 1,
    "silero_vad_half": 2,
    "silero_vad_openvino_16k": 1,
}


@pytest.mark.parametrize("name", SILERO)
def test_silero_models(name):
    path = folder_of("silero_vad") / "data" / f"{name}.onnx"
    model, loaded = onnx.load(path), rk.onnx.load(path)
    assert len(loaded) == SILERO[name]
    rng = np.random.default_rng(0)
    T = 20 if "sequence" in name else 1
    shapes = {"input": (T, 576), "state": (2, 1, 128), "h": (1, 1, 128), "c": (1, 1, 128)}
    for rate in (16000, 8000)[: 1 + (name == "silero_vad")]:
        shapes["input"] = (T, 576 if rate == 16000 else 288)
        feeds = {n: rng.normal(size=s).astype(np.float32) / 10 for n, s in shapes.items()}
        feeds = {n: feeds.get(n, np.array(rate)) for n in loaded.inputs}
        want, found = runtime(model, feeds), loaded.run(feeds)
        for output, values in want.items():
            # Encoder and head are the same code; the state's largest values are of the size of 1,
            # and the error of the tests of single nodes holds.
            assert np.abs(found[output] - values).max() <= 1e-5 * max(1, np.abs(values).max())


def test_the_example_of_silero():
    folder_of("silero_vad")
    out = printed("silero.py", "--seconds", "4")
    speech, same, chunks = map(int, re.findall(r"speech in (\d+) .* of (\d+) of (\d+)\n", out)[0])
    assert chunks == 125
    assert same == chunks  # whether it is speech; no probability is within 1e-5 of one half
    assert 20 < speech < 105
    differences = [float(d) for d in re.findall(r"(\d\.\de-\d+)$", out, re.MULTILINE)]
    assert len(differences) == 2
    assert max(differences) < 1e-5


def test_the_example_of_g2p():
    folder_of("g2p_en")
    out = printed("g2p.py", "--count", "40")
    assert re.findall(r": (\d+) of (\d+) words said the same", out) == [("40", "40")] * 2
    assert "AE2 K T IH0 V EY1 SH AH0 N" in printed("g2p.py", "activationist")

"""Tests of a bridge need its framework; without it they are not collected."""

from importlib.util import find_spec

FRAMEWORKS = ("onnx", "sklearn", "torch")

collect_ignore_glob = [f"test_{name}*.py" for name in FRAMEWORKS if find_spec(name) is None]

"""Tests of a bridge need its framework; without it they are not collected."""

import os
from importlib.util import find_spec

FRAMEWORKS = ("jax", "keras", "onnx", "sklearn", "torch")

collect_ignore_glob = [f"test_{name}*.py" for name in FRAMEWORKS if find_spec(name) is None]

# Keras's default is TensorFlow. With JAX, outputs before the first real step are other ones.
os.environ["KERAS_BACKEND"] = "torch"
if find_spec("torch") is None:
    collect_ignore_glob.append("test_keras*.py")

"""What runs the other nodes of a model: ONNX Runtime, or the evaluator of the onnx package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from ..checks import choice
from ..runtime import get_num_threads

__all__ = ["Engine", "Runner", "engine_of", "value_info"]

Engine = Literal["onnxruntime", "reference"]
Runner = Callable[[Mapping[str, Any]], list[Any]]


def engine_of(name: Engine | None) -> Callable[[onnx.ModelProto], Runner]:
    """What makes a runner of a model; for None, ONNX Runtime where it is installed."""
    if name is not None:
        choice("engine", name, ("onnxruntime", "reference"))
    if name == "reference":
        return evaluated
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        if name is None:
            return evaluated
        raise ImportError(
            f"onnxruntime is missing ({error}): pip install onnxruntime, or engine='reference'"
        ) from error
    return compiled


def evaluated(model: onnx.ModelProto) -> Runner:
    """Run a model by the onnx package's evaluator."""
    evaluator = ReferenceEvaluator(model)
    return lambda feeds: list(evaluator.run(None, dict(feeds)))


def compiled(model: onnx.ModelProto) -> Runner:
    """Run a model by ONNX Runtime, on as many threads as this package has now.

    Its threads do not spin while they wait: they would take the cores from this package's.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; hints on how to write a graph are no one's here
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda feeds: list(session.run(None, dict(feeds)))


def value_info(name: str, value: Any) -> onnx.ValueInfoProto:
    """The type of a value that goes into a model; its shape is left open."""
    if not isinstance(value, (np.ndarray, np.generic)):
        got = type(value).__name__
        raise TypeError(f"{name}: expected a tensor between parts of the model, got {got}")
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, None)

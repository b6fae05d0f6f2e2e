"""The bridge to ONNX: recurrent nodes of a model as layers, and layers as ONNX models.

It needs the package onnx, which ``pip install 'rnnkern[onnx]'`` brings. ``import rnnkern`` does not
import it; ``rnnkern.onnx`` does when it is first used.
"""

try:
    import onnx as _onnx  # noqa: F401  (here, so that the first import says what is missing)
except ImportError as error:
    raise ImportError(f"onnx is missing ({error}): pip install 'rnnkern[onnx]'") from error

from .export import export
from .model import Model, load

__all__ = ["Model", "export", "load"]

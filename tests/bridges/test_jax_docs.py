"""The public names of `rnnkern.jax` are documented, and the examples in their docstrings run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from importlib.util import find_spec

import pytest
import test_docs

import rnnkern as rk
import rnnkern.jax

HAS_FLAX = find_spec("flax") is not None
PUBLIC = {name: getattr(rk.jax, name) for name in rk.jax.__all__}
if HAS_FLAX:
    import rnnkern.jax.nnx

    PUBLIC |= {f"nnx.{name}": getattr(rk.jax.nnx, name) for name in rk.jax.nnx.__all__}
MODULES = ["rnnkern.jax"] + [
    m.name
    for m in pkgutil.iter_modules(rk.jax.__path__, "rnnkern.jax.")
    if HAS_FLAX or not m.name.endswith(".nnx")
]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_has_the_sections_that_fit(name):
    thing = PUBLIC[name]
    wanted = {"Examples", "Parameters", "Raises"}
    takes = thing.__init__ if inspect.isclass(thing) else thing  # flax hides a class's
    assert test_docs.entries(thing, "Parameters") == test_docs.parameters_of(takes)
    if inspect.isfunction(thing) and inspect.signature(thing).return_annotation != "None":
        wanted.add("Returns")
    assert wanted <= test_docs.sections(thing)
    assert inspect.getdoc(thing).splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_examples_are_found():
    module = importlib.import_module("rnnkern.jax.functions")
    assert doctest.testmod(module).attempted >= 30

"""The public names of `rnnkern.keras` are documented, and the examples in their docstrings run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import test_docs

import rnnkern as rk
import rnnkern.keras

# Keras reads PyTorch's tensors in a way of which NumPy warns.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

NAMES = {name: getattr(rk.keras, name) for name in rk.keras.__all__}
METHODS = {
    f"Recurrent.{name}": getattr(rk.keras.Recurrent, name)
    for name in ("from_keras", "reset_state", "__call__")
}
MODULES = ["rnnkern.keras"] + [
    m.name for m in pkgutil.iter_modules(rk.keras.__path__, "rnnkern.keras.")
]


@pytest.mark.parametrize("name", [*NAMES, *METHODS])
def test_docstring_has_the_sections_that_fit(name):
    thing = {**NAMES, **METHODS}[name]
    wanted = {"Examples"}
    if test_docs.parameters_of(thing):
        wanted.add("Parameters")
        assert test_docs.entries(thing, "Parameters") == test_docs.parameters_of(thing)
    if inspect.isroutine(thing) and name != "Recurrent.reset_state":
        wanted |= {"Returns", "Raises"}
    assert wanted <= test_docs.sections(thing)
    assert inspect.getdoc(thing).splitlines()[0].endswith(".")


def test_classes_have_whole_signatures():
    test_docs.test_classes_have_whole_signatures(rk.keras.Recurrent)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_examples_are_found():
    found = [doctest.testmod(importlib.import_module(name)).attempted for name in MODULES]
    assert sum(found) >= 40

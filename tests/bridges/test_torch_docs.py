"""The public names of `rnnkern.torch` are documented, and the examples in their docstrings run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import test_docs

import rnnkern as rk
import rnnkern.torch

NAMES = {name: getattr(rk.torch, name) for name in rk.torch.__all__}
CLASSES = [thing for thing in NAMES.values() if inspect.isclass(thing)]
METHODS = {
    f"{cls.__name__}.{name}": getattr(cls, name)
    for cls in CLASSES
    for name in ("forward", "as_layer")
    if hasattr(cls, name)
}
MODULES = ["rnnkern.torch"] + [
    m.name for m in pkgutil.iter_modules(rk.torch.__path__, "rnnkern.torch.")
]


@pytest.mark.parametrize("name", [*NAMES, *METHODS])
def test_docstring_has_the_sections_that_fit(name):
    thing = {**NAMES, **METHODS}[name]
    wanted = set()
    if name == "Accelerated":
        wanted = {"Attributes"}
        assert test_docs.entries(thing, "Attributes") == test_docs.parameters_of(thing)
    elif test_docs.parameters_of(thing):
        wanted.add("Parameters")
        assert test_docs.entries(thing, "Parameters") == test_docs.parameters_of(thing)
    if name in NAMES and name != "Accelerated":
        wanted.add("Examples")
    if inspect.isfunction(thing):
        wanted |= {"Returns", "Raises"}
    assert wanted <= test_docs.sections(thing)
    assert inspect.getdoc(thing).splitlines()[0].endswith(".")


@pytest.mark.parametrize("cls", CLASSES)
def test_classes_have_whole_signatures(cls):
    test_docs.test_classes_have_whole_signatures(cls)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_examples_are_found():
    module = importlib.import_module("rnnkern.torch.modules")
    assert doctest.testmod(module).attempted >= 30

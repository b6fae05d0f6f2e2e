"""The public names of `rnnkern.onnx` are documented, and the examples in their docstrings run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import test_docs

import rnnkern as rk
import rnnkern.onnx

NAMES = {"Model": rk.onnx.Model, "export": rk.onnx.export, "load": rk.onnx.load}
METHODS = {
    f"Model.{name}": value
    for name, value in vars(rk.onnx.Model).items()
    if inspect.isfunction(value) and not name.startswith("_")
}
PUBLIC = {**NAMES, **METHODS}
MODULES = [m.name for m in pkgutil.iter_modules(rk.onnx.__path__, "rnnkern.onnx.")]


def test_all_names_are_here():
    assert sorted(NAMES) == sorted(rk.onnx.__all__)
    assert sorted(METHODS) == ["Model.freeze", "Model.run", "Model.save"]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_has_the_sections_that_fit(name):
    thing = PUBLIC[name]
    wanted = {"Examples"}
    if test_docs.parameters_of(thing):
        wanted.add("Parameters")
        assert test_docs.entries(thing, "Parameters") == test_docs.parameters_of(thing)
    if inspect.isfunction(thing) and inspect.signature(thing).return_annotation != "None":
        wanted.add("Returns")
    assert wanted <= test_docs.sections(thing)
    assert inspect.getdoc(thing).splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_the_examples_are_found():
    module = importlib.import_module("rnnkern.onnx.model")
    assert doctest.testmod(module).attempted >= 15

"""The public names of `rnnkern.sklearn` are documented, and their examples run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
import test_docs

import rnnkern as rk
import rnnkern.sklearn

CLASSES = {name: getattr(rk.sklearn, name) for name in rk.sklearn.__all__}
METHODS = {
    f"{name}.{method}": getattr(cls, method)
    for name, cls in CLASSES.items()
    for method in ("fit", "partial_fit", "predict", "predict_proba", "predict_log_proba", "score")
    if hasattr(cls, method)
}
MODULES = ["rnnkern.sklearn"] + [
    m.name for m in pkgutil.iter_modules(rk.sklearn.__path__, "rnnkern.sklearn.")
]


@pytest.mark.parametrize("name", [*CLASSES, *METHODS])
def test_docstring_has_the_sections_that_fit(name):
    thing = {**CLASSES, **METHODS}[name]
    wanted = {"Parameters", "Raises"} | ({"Examples", "Attributes"} if name in CLASSES else set())
    wanted |= {"Returns"} if name in METHODS else set()
    assert wanted <= test_docs.sections(thing)
    assert test_docs.entries(thing, "Parameters") == test_docs.parameters_of(thing)
    assert inspect.getdoc(thing).splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", CLASSES)
def test_attributes_are_described_and_there_after_fit(name):
    model = CLASSES[name](hidden_size=2, max_epochs=1)
    tags = {"RNNClassifier": [0, 1], "RNNRegressor": [0, 1], "RNNTagger": [[0, 1], [1, 0]]}
    model.fit([[[0.0], [1.0]], [[1.0], [0.0]]], tags.get(name))
    described = test_docs.entries(CLASSES[name], "Attributes")
    found = {n for n in dir(model) if re.fullmatch(r"[a-z]\w*[a-z]_", n)}
    assert described == found


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_examples_are_found():
    module = importlib.import_module("rnnkern.sklearn.estimators")
    assert doctest.testmod(module).attempted >= 20


def test_the_figures_of_the_page_are_there():
    """Its snippets, which tests/test_docs.py runs, say what the table of results says."""
    text = (test_docs.ROOT / "docs" / "sklearn.md").read_text()
    printed = re.findall(r"print\(f.*# (0\.\d+)$", text, re.MULTILINE)
    table = re.findall(r"^\| [^|]* \| (0\.\d+) \| 0\.\d \|", text, re.MULTILINE)
    assert printed == table
    assert len(table) == 4

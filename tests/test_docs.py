"""Every public name is documented, and every example in the documentation runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from itertools import pairwise

import pytest

import rnnkern as rk
from rnnkern import diagnose, files, reference

MODULES = [
    importlib.import_module(f"rnnkern.{module.name}")
    for module in pkgutil.iter_modules(rk.__path__)
    if not module.name.startswith("_")
]


def public():
    """The public functions and classes, with their methods and properties, by name."""
    exported = [getattr(rk, name) for name in rk.__all__ if name != "__version__"]
    exported += [getattr(m, name) for m in (diagnose, files, reference) for name in m.__all__]
    found = {}
    for thing in exported:
        if not (inspect.isfunction(thing) or inspect.isclass(thing)):
            continue
        name = f"{thing.__module__}.{thing.__name__}"
        found[name] = thing
        for owner in inspect.getmro(thing) if inspect.isclass(thing) else ():
            if not owner.__module__.startswith("rnnkern"):
                continue
            for member, value in vars(owner).items():
                named = not member.startswith("_") or member == "__call__"
                if named and (inspect.isroutine(value) or isinstance(value, property)):
                    found[f"{name}.{member}"] = value
    return found


PUBLIC = public()
COMPILED = [name for name, thing in PUBLIC.items() if inspect.ismethoddescriptor(thing)]
each_public = pytest.mark.parametrize("name", PUBLIC)


def sections(thing):
    """Titles of a numpydoc docstring's sections: lines that stand over dashes."""
    lines = inspect.getdoc(thing).splitlines()
    return {title for title, dashes in pairwise(lines) if title and dashes == "-" * len(title)}


def parameters_of(thing):
    target = thing.__init__ if inspect.isclass(thing) else thing
    return [
        p.name
        for p in inspect.signature(target).parameters.values()
        if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]


def test_the_public_names_are_found():
    some = {"rnnkern.layers.LSTM", "rnnkern.layers.LSTM.backward", "rnnkern.reference.forward"}
    assert some <= set(PUBLIC)
    assert {name.rpartition(".")[2] for name in PUBLIC} >= set(rk.__all__) - {"__version__"}


@each_public
def test_docstring_says_what_it_is(name):
    doc = inspect.getdoc(PUBLIC[name])
    if doc is None:  # a property may stand among its class's attributes
        owner, _, member = name.rpartition(".")
        doc = inspect.getdoc(PUBLIC[owner])
        assert isinstance(PUBLIC[name], property)
        assert f"\n{member} : " in doc[doc.index("Attributes\n----------\n") :]
    assert doc.splitlines()[0].endswith(".")


@each_public
def test_docstring_has_the_sections_that_fit(name):
    thing = PUBLIC[name]
    if inspect.isclass(thing):
        if any(thing is getattr(rk, public_name) for public_name in rk.__all__):
            found = sections(thing)  # of what the caller constructs, or is handed
            assert {"Parameters", "Examples"} <= found or "Attributes" in found
    elif inspect.isroutine(thing) and not inspect.isabstract(PUBLIC.get(name.rpartition(".")[0])):
        wanted = {"Examples"}
        if parameters_of(thing):
            wanted.add("Parameters")
        if inspect.signature(thing).return_annotation not in ("None", "Iterator[None]"):
            wanted.add("Returns")
        assert wanted <= sections(thing), f"lacks {sorted(wanted - sections(thing))}"


@each_public
def test_every_parameter_is_described(name):
    thing = PUBLIC[name]
    if isinstance(thing, property) or "Parameters" not in sections(thing):
        return
    doc = inspect.getdoc(thing)
    start = doc.index("Parameters\n----------\n")
    listed = doc[start:].split("\n\n")[0].splitlines()[2:]
    described = {
        one.strip("* ")
        for line in listed
        if not line.startswith(" ")
        for one in line.partition(" : ")[0].split(",")
    }
    assert set(parameters_of(thing)) <= described


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_examples_run(module):
    with rk.num_threads(rk.get_num_threads()):  # which an example sets
        result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0 or not any(name.startswith(module.__name__) for name in PUBLIC)


@pytest.mark.parametrize("name", COMPILED)
def test_examples_of_compiled_methods_run(name):
    (examples,) = doctest.DocTestFinder().find(PUBLIC[name], name, module=False, globs={})
    result = doctest.DocTestRunner().run(examples)
    assert result.failed == 0
    assert result.attempted > 0


def test_compiled_methods_have_signatures():
    assert {name.rpartition(".")[2] for name in COMPILED} == {"step", "run"}
    for name in COMPILED:
        assert str(inspect.signature(PUBLIC[name])) == "(self, /, x, out=None)"
    # The class's own is Python's: pybind11's constructors have none that can be read.
    assert list(inspect.signature(rk.Stream).parameters) == ["net", "params", "batch_size"]

"""Every public name is documented, and the examples in docstrings and in the README run."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from dataclasses import is_dataclass
from importlib.util import find_spec
from itertools import pairwise, takewhile
from pathlib import Path

import pytest
from helpers import BRIDGES

import rnnkern as rk
from rnnkern import diagnose, distributed, files, reference, schedules
from rnnkern.docstrings import complete
from rnnkern.layers import LAYERS, _Layer

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(rk.__path__, "rnnkern.")
    if "._" not in module.name and not module.name.startswith(BRIDGES)
]


def public():
    """The public functions and classes, with their methods and properties, by name."""
    exported = [getattr(rk, name) for name in rk.__all__ if name != "__version__"]
    modules = (diagnose, distributed, files, reference, schedules)
    exported += [getattr(module, name) for module in modules for name in module.__all__]
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


def entries(thing, section):
    """The names that a section of a docstring describes."""
    lines = inspect.getdoc(thing).partition(f"{section}\n{'-' * len(section)}\n")[2].splitlines()
    heads = [line.partition(" : ")[0] for line in takewhile(bool, lines) if line[:1] != " "]
    return {name.strip("* ") for head in heads for name in head.split(",")} - {""}


def parameters_of(thing):
    """The parameters' names."""
    return set(inspect.signature(thing).parameters) - {"self"}


def is_record(thing):
    return is_dataclass(thing) or hasattr(thing, "_fields")


# Classes whose objects the caller is handed; the others' the caller constructs. The reference
# describes its own in comments.
HANDED = {
    *("AttentionGradients", "AttentionMemory", "Batch", "EnsembleGradients", "Gradients"),
    *("ModuleGradients", "ModuleTape", "ParameterGradients", "Step", "Stream", "Tape", "Trace"),
    *("Shard", "Window"),
    *("Block", "Flow", "Report", "Saturation", "Spec"),
}
CLASSES = {
    name: thing
    for name, thing in PUBLIC.items()
    if inspect.isclass(thing) and not thing.__module__.startswith(reference.__name__)
}
ROUTINES = {
    name: thing
    for name, thing in PUBLIC.items()
    if inspect.isroutine(thing) and not inspect.isabstract(PUBLIC.get(name.rpartition(".")[0]))
}


@pytest.mark.parametrize("cls", [c for c in CLASSES.values() if not issubclass(c, Exception)])
def test_classes_have_whole_signatures(cls):
    """Completion, help and type checkers see every option."""
    kinds = {p.kind for p in inspect.signature(cls).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


@pytest.mark.parametrize("cls", LAYERS.values(), ids=lambda cls: cls.__name__)
def test_what_all_layers_take_is_the_same_in_each(cls):
    own = inspect.signature(cls).parameters
    for name, shared in inspect.signature(_Layer.__init__).parameters.items():
        if name not in ("self", "cell"):
            assert str(own[name]) == str(shared)


@pytest.mark.parametrize("cls", LAYERS.values(), ids=lambda cls: cls.__name__)
def test_an_unknown_option_is_said_to_be_the_class_s(cls):
    said = rf"^{cls.__name__}\.__init__\(\) got an unexpected keyword argument 'dropuot'"
    with pytest.raises(TypeError, match=said):
        cls(3, 8, dropuot=0.1)


@pytest.mark.parametrize("name", [n for n, thing in ROUTINES.items() if inspect.isfunction(thing)])
def test_an_unknown_argument_is_never_said_to_be_a_private_class_s(name):
    owner = PUBLIC[name].__qualname__.rpartition(".")[0]
    assert not owner or owner in {cls.__name__ for cls in CLASSES.values()}


def test_the_public_names_are_found():
    some = {
        "rnnkern.layers.lstm.LSTM",
        "rnnkern.layers.lstm.LSTM.backward",
        "rnnkern.reference.layers.forward",
    }
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


@pytest.mark.parametrize("name", CLASSES)
def test_docstring_of_a_class_has_the_sections_that_fit(name):
    thing = CLASSES[name]
    if not issubclass(thing, Exception):
        wanted = {"Attributes"} if thing.__name__ in HANDED else {"Parameters", "Examples"}
        assert wanted <= sections(thing), f"lacks {sorted(wanted - sections(thing))}"


@pytest.mark.parametrize("name", ROUTINES)
def test_docstring_of_a_routine_has_the_sections_that_fit(name):
    thing = ROUTINES[name]
    wanted = {"Examples"}
    if parameters_of(thing):
        wanted.add("Parameters")
    if inspect.signature(thing).return_annotation not in ("None", "Iterator[None]"):
        wanted.add("Returns")
    assert wanted <= sections(thing), f"lacks {sorted(wanted - sections(thing))}"


@pytest.mark.parametrize("name", [*ROUTINES, *CLASSES])
def test_all_parameters_are_described_and_no_others(name):
    thing = PUBLIC[name]
    if "Parameters" in sections(thing):  # where it must be: the tests above
        assert entries(thing, "Parameters") == parameters_of(thing)


@pytest.mark.parametrize("name", [n for n in PUBLIC if n.rpartition(".")[0] not in PUBLIC])
def test_classes_and_functions_describe_their_own_parameters(name):
    """A page or a help text that sends its reader elsewhere for each parameter is of no use."""
    parameters = inspect.getdoc(PUBLIC[name]).partition("Parameters\n----------\n")[2]
    assert not re.search(r"^ +As (in|of) `\w", parameters.partition("\n\n")[0], re.MULTILINE)


def test_shared_parameters_bring_their_references():
    def first(a, b, c):
        """First.

        Parameters
        ----------
        a, b : int
            Sizes [2]_.
        c : str
            A name.

        References
        ----------
        .. [1] One.
        .. [2] Two,
           2020.
        """

    class Second:
        """Second [1]_.

        Parameters
        ----------
        d : float
            Own.
        c, b
            As in `first`. Not with `d`.

        References
        ----------
        .. [1] Three.

        Examples
        --------
        >>> 1
        1
        """

    complete(first, Second)
    assert Second.__doc__ == inspect.cleandoc(
        """Second [1]_.

        Parameters
        ----------
        d : float
            Own.
        b : int
            Sizes [2]_.
        c : str
            A name.
            Not with `d`.

        References
        ----------
        .. [1] Three.
        .. [2] Two,
           2020.

        Examples
        --------
        >>> 1
        1"""
    )


@pytest.mark.parametrize("name", [n for n, c in CLASSES.items() if c.__name__ in HANDED])
def test_all_fields_are_described_and_no_others(name):
    thing, described = CLASSES[name], entries(CLASSES[name], "Attributes")
    if is_record(thing):
        properties = {n for n, value in vars(thing).items() if isinstance(value, property)}
        assert parameters_of(thing) <= described <= parameters_of(thing) | properties
    assert described


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_examples_run(module):
    with rk.num_threads(rk.get_num_threads()):  # which an example sets
        result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted > 0 or not any(
        getattr(thing, "__module__", None) == module.__name__ and thing.__name__ not in HANDED
        for thing in PUBLIC.values()
    )


@pytest.mark.parametrize("name", COMPILED)
def test_examples_of_compiled_methods_run(name):
    (examples,) = doctest.DocTestFinder().find(PUBLIC[name], name, module=False, globs={})
    result = doctest.DocTestRunner().run(examples)
    assert result.failed == 0
    assert result.attempted > 0


SNIPPET = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs/tutorial.md"  # whose snippets continue each other
SNIPPETS = [pytest.param("\n".join(SNIPPET.findall(TUTORIAL.read_text())), id="docs/tutorial.md")]
SNIPPETS += [
    pytest.param(code, id=f"{path.relative_to(ROOT)}-{i}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    for i, code in enumerate(SNIPPET.findall(path.read_text()))
    if path != TUTORIAL
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run_each_on_its_own(code, tmp_path):
    """As a reader would paste it: in a fresh interpreter, in an empty folder."""
    frameworks = r"^(?:import|from) (keras|torch|onnx|onnxruntime|jax|flax)\b"
    names = re.findall(frameworks, code, re.MULTILINE)
    env = {"KERAS_BACKEND": "torch", **os.environ}
    for name in [*names, env["KERAS_BACKEND"]] if "keras" in names else names:
        if find_spec(name) is None:
            pytest.skip(f"without {name}, which a snippet takes")
    # Keras reads PyTorch's tensors in a way of which NumPy warns.
    allowed = ["-W", "ignore:__array__ implementation doesn't:DeprecationWarning"]
    command = [sys.executable, "-W", "error", *allowed, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_snippets_are_found():
    assert len(SNIPPETS) >= 16


def test_the_readmes_example_learns(capsys):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    exec(SNIPPET.findall(text)[0], {})
    losses = [float(loss) for loss in re.findall(r"mse (\S+)", capsys.readouterr().out)]
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 100  # from 0.0098 to 0.00001


def test_every_public_name_is_in_the_reference():
    """Of the bridges too, whose frameworks need not be installed: their source is read."""
    names = [name for name in rk.__all__ if name != "__version__"]
    package = Path(rk.__file__).parent
    modules = ("diagnose", "distributed", "files", "reference", "schedules", *BRIDGES, "jax.nnx")
    for module in modules:
        own = module.removeprefix("rnnkern.")
        path = package / own.replace(".", "/")
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
        (listed,) = re.findall(r"^__all__ = (\[.*?\])", source, re.DOTALL | re.MULTILINE)
        names += [f"{own}.{name}" for name in ast.literal_eval(listed)]
    text = (ROOT / "docs/reference.rst").read_text()
    pages = re.findall(r"^(?:   |\.\. py:data:: )([\w.]+)$", text, re.MULTILINE)
    assert sorted(pages) == sorted(names)


def test_compiled_methods_have_signatures():
    assert {name.rpartition(".")[2] for name in COMPILED} == {"step", "run"}
    for name in COMPILED:
        assert str(inspect.signature(PUBLIC[name])) == "(self, /, x, out=None, *, mask=None)"
    # The class's own is Python's: pybind11's constructors have none that can be read.
    assert list(inspect.signature(rk.Stream).parameters) == ["frozen", "batch_size"]

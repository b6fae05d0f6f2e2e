"""What was built: no set's code outside its namespace; and what an import brings along."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import BRIDGES

import rnnkern as rk
from rnnkern import _core, layers

ROOT = Path(__file__).parents[1]
PACKAGE = Path(rk.__file__).parent
LIBRARY = _core.__file__
NM, OBJDUMP, CXX = map(shutil.which, ("nm", "objdump", "g++"))


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


# ---- instruction sets --------------------------------------------------------------------------


def sets_of_this_machine():
    """Name and compiler flags of the instruction sets that CMake builds here."""
    file = ROOT / "CMakeLists.txt"
    text = file.read_text() if file.exists() else ""
    branches = re.findall(
        r'if\(CMAKE_SYSTEM_PROCESSOR MATCHES "([^"]+)"\)(.+?)(?=else)', text, re.DOTALL
    )
    return [
        (name, flags.split())
        for processors, rows in branches
        if re.search(processors, platform.machine())
        for name, flags in re.findall(r"rnnkern_instruction_set\((\w+)([^)]*)\)", rows)
    ]


SETS = sets_of_this_machine()
# A symbol that the baseline shares with a set is found in that set, where it does harm.
BEYOND = [
    pytest.param(name, flags, id=name, marks=[pytest.mark.slow] * (name == "baseline"))
    for name, flags in SETS
]


def test_the_table_of_sets_was_read():
    if not (ROOT / "CMakeLists.txt").exists():
        pytest.skip("no sources beside the tests")
    assert {name for name, _ in SETS} >= set(rk.info()["available"])


@pytest.mark.skipif(not (NM and CXX), reason="no g++ or nm here")
@pytest.mark.parametrize(("name", "flags"), BEYOND)
def test_a_set_shares_no_code(name, flags, tmp_path):
    """The linker merges weak symbols: a shared one might bring instructions that others lack.

    Without optimisation nothing that a file holds is inlined away, so nothing hides.
    """
    symbols = []
    for source, definitions in (
        ("kernels.cpp", ()),
        ("module_kernels.cpp", ()),
        # It has most of what cells have.
        ("cell_kernels.cpp", ("-DRNNKERN_CELLS=RNNKERN_CELL(lstm_projected)",)),
    ):
        target = tmp_path / f"{source}.o"
        output(
            *(CXX, "-std=c++17", "-O0", "-fopenmp", "-fPIC", "-Wno-psabi", *flags, *definitions),
            *(f"-I{ROOT / 'cpp/core'}", f"-DRNNKERN_ISA={name}", "-c"),
            *(ROOT / "cpp/core" / source, "-o", target),
        )
        listed = output(NM, "-C", target)
        symbols += re.findall(r"^[0-9a-f]* +(\w) (.+)$", listed, re.MULTILINE)
    own = f"rnnkern::{name}::"
    assert sum(own in symbol for _, symbol in symbols) > 100
    # V and u are merged, too, but they are data: the table of kinds.
    visible = [symbol for kind, symbol in symbols if kind in "TDBRW"]
    # DW.ref. is a pointer to a function, not code.
    assert not [s for s in visible if own not in s and not s.startswith("DW.ref.")]
    # Nothing of the C++ standard library is asked for, and nothing runs when the library is loaded.
    wanted = [symbol for kind, symbol in symbols if kind == "U"]
    assert not [s for s in wanted if re.match(r"std::|operator |__cxa_", s)]
    assert not [symbol for _, symbol in symbols if "_GLOBAL__sub_I" in symbol]


@pytest.fixture(scope="module")
def functions():
    """Name and instructions of all functions in the library as it was linked."""
    if not OBJDUMP or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("no objdump here, or no x86")
    # A wheel's library is stripped: its functions have names only where it was built.
    built = os.environ.get("RNNKERN_RELEASED")
    for library in (LIBRARY, *(Path(built).glob("_core*.so") if built else ())):
        text = output(OBJDUMP, "-d", "-C", "--no-show-raw-insn", library)
        found = re.findall(r"^[0-9a-f]+ <(.+)>:\n((?:.+\n)+)", text, re.MULTILINE)
        if any("rnnkern::" in name for name, _ in found):
            return found
    return pytest.skip("the library is stripped: RNNKERN_RELEASED names the folder of its build")


def uses_vectors(instructions, registers="xyz"):
    """Whether there is an instruction of AVX or later; all of theirs begin with v."""
    return re.search(rf"\tv\w+ .*%[{registers}]mm", instructions) is not None


def test_linked_code_is_for_the_plain_machine(functions):
    beyond = [name for name, text in functions if uses_vectors(text)]
    assert any("rnnkern::avx2::" in name for name in beyond)
    # Some binutils leave a lambda's name as the compiler made it.
    assert not [name for name in beyond if not re.search(r"rnnkern(::|\d)avx(2|512)", name)]
    widest = [name for name, text in functions if uses_vectors(text, "z")]
    assert all(re.search(r"rnnkern(::|\d)avx512", name) for name in widest)


def test_asking_for_a_set_needs_no_set(functions):
    asking = [text for name, text in functions if name.endswith("::runs_here()")]
    assert len(asking) == len(SETS)
    assert not any(uses_vectors(text) for text in asking)


@pytest.mark.skipif(not NM, reason="no nm here")
def test_exports():
    symbols = re.findall(r" ([TDBR]) (\S+)", output(NM, "-D", "--defined-only", LIBRARY))
    assert symbols == [("T", "PyInit__core")]


# ---- imports -----------------------------------------------------------------------------------

EXTRAS = ["rich", "matplotlib", "safetensors", "torch", "onnx", "keras", "sklearn", "threadpoolctl"]
MODULES = [
    module.name
    for module in pkgutil.walk_packages([PACKAGE], "rnnkern.")
    if not module.name.startswith(BRIDGES)
]


def imported(*codes):
    """Packages outside the standard library that each code imports, the extras missing.

    Each runs in a child of its own of one process, which has imported NumPy.
    """
    parent = f"""if True:
        import os, sys
        before = set(sys.modules)
        import numpy
        for name in {EXTRAS}:
            sys.modules[name] = None  # an import of it fails
        for code in {[inspect.cleandoc(code) for code in codes]}:
            if os.fork():
                assert os.wait()[1] == 0, code
                continue
            exec(code, {{}})
            found = {{name.partition(".")[0] for name, module in sys.modules.items()
                      if module is not None and name not in before}}
            print(*sorted(found - set(sys.stdlib_module_names)), flush=True)
            os._exit(0)
    """
    environment = {k: v for k, v in os.environ.items() if k != "RNNKERN_ISA"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", parent],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_import_needs_numpy_alone():
    assert imported("import rnnkern") == [["numpy", "rnnkern"]]


def test_modules_without_extras():
    found = imported(*(f"import {module}" for module in MODULES))
    others = {m: f for m, f in zip(MODULES, found, strict=True) if f != ["numpy", "rnnkern"]}
    assert not others


def test_layers_do_without_the_reference():
    """Its import would cost as much as the package's own."""
    imported("""import sys, numpy as np, rnnkern as rk
        gru = rk.GRU(3, 5)
        gru.backward(gru.forward(np.zeros((2, 1, 3), np.float32))[2])
        assert "rnnkern.reference" not in sys.modules""")


LATER = {
    "batches": ["Batch", "Batches"],
    "diagnose": [],
    "files": [],
    "model": ["num_parameters"],
    "modules": [
        "CRF",
        "Attention",
        "AttentionGradients",
        "AttentionMemory",
        "Dropout",
        "Embedding",
        "LayerNorm",
        "Linear",
        "ModuleGradients",
        "Pooling",
        "binary_cross_entropy",
        "cross_entropy",
        "gaussian_nll",
        "huber",
        "mean_squared_error",
        "quantile",
    ],
    "optim": ["SGD", "Adam", "AdamW", "RMSprop", "Step"],
    "reference": [],
    "saved": ["load", "restore", "save"],
    "schedules": [],
    "stopping": ["EarlyStopping"],
    "truncated": ["Window", "truncated_bptt"],
    "weights": ["from_state_dict"],
}


def test_what_inference_does_without_is_imported_when_asked_for():
    def asking_for(module, name):
        return f"""import sys, rnnkern as rk
            assert not hasattr(rk, "Adams")
            assert set(dir(rk)) >= {{*rk.__all__, *{list(LATER)}}}
            assert not {{"rnnkern." + m for m in {list(LATER)}}} & set(sys.modules)
            first = rk.{name}
            assert all(vars(rk)[n] is vars(rk.{module})[n] for n in {LATER[module]})
            assert first is {"rk." + module if name == module else f"rk.{module}.{name}"}"""

    imported(*(asking_for(m, name) for m, names in LATER.items() for name in [m, *names]))


def test_a_bridge_is_imported_when_asked_for():
    pytest.importorskip("sklearn", reason="a bridge to a framework")
    assert "sklearn" in dir(rk)
    assert rk.sklearn.RNNTagger


def test_a_bridge_without_its_framework_says_what_to_install():
    imported("""import pydoc, rnnkern as rk
        assert "torch" not in dir(rk)
        pydoc.render_doc(rk)
        try:
            rk.torch
        except ImportError as error:
            assert "rnnkern[torch]" in str(error)
        else:
            raise AssertionError("no error")""")


def test_all_public_names_can_be_had_at_once():
    imported("from rnnkern import *; import rnnkern; assert set(rnnkern.__all__) <= set(dir())")


def test_public_names():
    assert len(set(rk.__all__)) == len(rk.__all__)
    for name in rk.__all__:
        assert inspect.getdoc(getattr(rk, name)), name


def test_every_class_of_layers_is_public():
    files = {module.name for module in pkgutil.iter_modules(layers.__path__, "rnnkern.layers.")}
    modules = [importlib.import_module(name) for name in files]
    classes = {thing for module in modules for thing in vars(module).values() if is_layer(thing)}
    assert classes == set(layers.LAYERS.values())
    names = {cls.__name__ for cls in classes}
    assert names <= set(layers.__all__)
    assert names <= set(rk.__all__)
    assert all(getattr(rk, cls.__name__) is cls for cls in classes)


def is_layer(thing):
    return inspect.isclass(thing) and issubclass(thing, layers._Layer) and thing != layers._Layer


def test_the_stub_is_the_module():
    """_core.pyi declares what the compiled module has, neither more nor less."""

    def declared(body):
        names = set()
        for node in body:
            if isinstance(node, ast.AnnAssign):
                names.add(node.target.id)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
        return names - {"Array"}

    def public(thing):
        return {name for name in vars(thing) if not name.startswith("_")}

    body = ast.parse((PACKAGE / "_core.pyi").read_text()).body
    assert declared(body) == public(_core) | {"__version__"}
    for node in body:
        if isinstance(node, ast.ClassDef):
            assert declared(node.body) - {"__init__"} == public(getattr(_core, node.name))
    assert (PACKAGE / "py.typed").exists()

"""The documentation site: ``sphinx-build -c docs . build/site``, from the root of the repository.

The root is the source folder: relative links between the pages of docs/, benchmarks/ and the root
then lead to the same pages on the site and in the repository.
"""

import re
from pathlib import Path

from sphinx.ext.autosummary import Autosummary
from sphinx.util import inspect

HERE = Path(__file__).parent

project = "rnnkern"
author = copyright = "The rnnkern authors"
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
]

root_doc = "docs/index"
include_patterns = ["*.md", "benchmarks/*.md", "docs/**.md", "docs/**.rst"]
exclude_patterns = [".*", "README.md", "build", "docs/static", "docs/templates"]
templates_path = [str(HERE / "templates")]
nitpicky = True  # an unknown target is a warning
myst_heading_anchors = 4  # as GitHub's

# The reference: a page for each name in docs/reference.rst, from its docstring.
default_role = "py:obj"
autodoc_typehints = "none"  # docstrings have the types
autodoc_preserve_defaults = True
autodoc_mock_imports = [  # what the bridges need, and what runs with it at import
    *("flax", "google", "jax", "keras", "mpi4py", "onnx", "scipy", "sklearn", "torch"),
    *("rnnkern.jax.primitives", "rnnkern.torch.operators"),
]
numpydoc_show_class_members = False  # the template shows them

html_theme = "furo"
html_title = "rnnkern"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
pygments_dark_style = "github-dark"  # Furo's default underlines modules, like links
html_copy_source = False
html_additional_pages = {"index": "redirect.html"}
copybutton_exclude = ".linenos, .gp, .go"  # prompts and output


class Summary(Autosummary):
    """A table of names, without the citations of the docstrings' first lines."""

    def get_items(self, names):
        items = super().get_items(names)
        return [
            (name, sig, re.sub(r" \[\S+\]_", "", line), real) for name, sig, line, real in items
        ]


def code(app, env, node, content):
    """A name in single backticks without a page, such as a parameter's, is code."""
    return content if node["reftype"] == "obj" else None


def constructor(app, what, name, obj, options, signature, annotation):
    """The signature of a class whose base is imported as a mock is that of its constructor."""
    if what == "class" and signature == "(*args, **kwargs)":
        own = inspect.signature(obj.__init__, bound_method=True)
        return inspect.stringify_signature(own, show_annotation=False), annotation
    return None


def skipped(app, what, name, obj, skip, options):
    """Skip fields of named tuples, which the class's docstring describes, and the mocks' call.

    In the reference, a comment at each field describes it.
    """
    doc = obj.__doc__ or ""
    if doc.startswith("Alias for field number"):
        return None if app.env.docname.startswith("docs/reference/rnnkern.reference.") else True
    return True if doc.startswith("Call self as a function") else None


def setup(app):
    app.add_directive("autosummary", Summary, override=True)
    app.connect("autodoc-process-signature", constructor)
    app.connect("autodoc-skip-member", skipped)
    app.connect("missing-reference", code)

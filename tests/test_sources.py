"""What the sources promise of themselves: the length of functions in C++."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CPP = Path(__file__).parents[1] / "cpp"
MOST_LINES = {"bindings": 60, "core": 80}  # of a function, from its type to its closing brace
# Raw strings, comments, strings, characters, preprocessor lines.
NOT_CODE = re.compile(
    r'R"(\w*)\(.*?\)\1"|//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<!\d)\'(?:\\.|[^\'\\\n])\''
    r"|^[ \t]*#(?:\\\n|[^\n])*",
    re.DOTALL | re.MULTILINE,
)
TEMPLATE = r"\s*(?:template\s*<[^;{}]*?>\s*(?=\w))?"
# What the brace of a function's body follows; others begin lists of values.
OF_BODY = re.compile(r"(?:[)}]|\b(?:const|noexcept|override|final)|->[^(){};]*)\s*$")
SCOPE = re.compile(TEMPLATE + r"(?:inline\s+)?(?:namespace|struct|class|enum|union|extern)\b")


def functions(text):
    """Name, number of lines and first line of each function that a file defines.

    Lambdas count as lines of the function around them.
    """
    text = NOT_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    begin, braces, first = 0, [], None  # first: of the function that contains the place
    for place in (found.start() for found in re.finditer(r"[;{}]", text)):
        head = text[begin:place]
        if text[place] == "{":
            kind = "values"
            if first is None and SCOPE.match(head):
                kind = "scope"
            elif first is None and "(" in head and OF_BODY.search(head):
                kind, first = "function", begin + re.match(TEMPLATE, head).end()
            braces.append(kind)
            begin = begin if kind == "values" else place + 1
        elif text[place] == "}":
            kind = braces.pop()
            if kind == "function":
                name = re.search(r"(operator\W+|[~\w]+)\s*\(", text[first:place])[1]
                line, lines = text.count("\n", 0, first) + 1, text.count("\n", first, place) + 1
                yield name, lines, line
                first = None
            begin = begin if kind == "values" else place + 1
        elif "values" not in braces or first is not None:
            begin = place + 1
    assert not braces


def test_the_functions_of_a_text_are_found():
    text = """
        // not() {
        struct A {
          A() : b_{1}, c_("{") {
            f([&] { g(); });
          }
          int size() const { return 1; }
          int values[2] = {1, 2};
        };
        template <class T>
        auto of(T x) -> int {
          if (x) { return '}'; }

          return h{1, 2}();
        }
    """
    assert list(functions(text)) == [("A", 3, 4), ("size", 1, 7), ("of", 5, 11)]


@pytest.mark.skipif(not CPP.exists(), reason="no sources beside the tests")
@pytest.mark.parametrize("folder", MOST_LINES)
def test_functions_are_short(folder):
    files = [p for p in sorted((CPP / folder).rglob("*")) if p.suffix in (".h", ".cpp")]
    found = [(*function, path) for path in files for function in functions(path.read_text())]
    assert len(found) > 200
    too_long = [
        f"{path.relative_to(CPP)}:{line}: {name} has {lines} lines"
        for name, lines, line, path in found
        if lines > MOST_LINES[folder]
    ]
    assert not too_long

"""Shared parameters in docstrings: "As in `RNN`." becomes the description that `RNN` has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

# Patterns are compiled when a docstring is first read, so that importing the package costs nothing.
_TITLE = r"(?m)^(\w[\w ]*)\n-+\n"
_ENTRY = r"(?m)^(\S.*(?:\n\S.*)*)\n((?: .*\n?)+)"  # names and type, description
_SHARED = r" +As (?:in|of) `([\w.]+)`\.(?:\s+|$)"
_REFERENCE = r"(?m)^\.\. \[(\d+)\] (.*(?:\n .*)*)"
_CITATION = r"\[(\d+)\]_"

Sections = dict[str, str]  # bodies by title, the summary's is ""


def complete(*things: Any, of: Mapping[str, Any] | None = None) -> None:
    """Write out the parameters that the docstrings of classes or functions share.

    An entry whose description is "As in `name`." gets the description of the same parameter in the
    docstring of that thing, and its type unless it has one of its own. More sentences stay after
    it. The references that the description cites are added under new numbers. A class's docstring
    is completed when it is first read. ``python -OO`` has no docstrings, and nothing is done.

    Parameters
    ----------
    things : classes or functions
        Each is completed by those before it, and by later ones as they are written.
    of : dict of str to class or function, optional
        What else entries may name.
    """
    sources = {thing.__name__: thing.__doc__ for thing in things} | dict(of or {})
    for thing in things:
        if thing.__doc__:
            doc = _Completed(thing.__doc__, dict(sources))
            thing.__doc__ = doc if inspect.isclass(thing) else doc.text()
        sources[thing.__name__] = thing


class _Completed:
    """A docstring that is completed when it is read."""

    def __init__(self, doc: str, sources: Mapping[str, Any]) -> None:
        self._doc, self._sources, self._text = doc, sources, ""

    def __get__(self, instance: Any, owner: Any = None) -> str:
        return self.text()

    def text(self) -> str:
        if not self._text:
            sections = _sections(self._doc)
            references = dict(re.findall(_REFERENCE, sections.get("References", "")))
            for title in ("Parameters", "Attributes"):
                if re.search(_SHARED, sections.get(title, "")):
                    sections[title] = self._section(title, sections[title], references)
            if references:
                texts = (f".. [{number}] {text}\n" for number, text in references.items())
                examples = {"Examples": sections.pop("Examples", "")}
                sections |= {"References": "".join(texts) + "\n"} | examples
            summary, *titles = sections
            bodies = (f"{title}\n{'-' * len(title)}\n{sections[title]}" for title in titles)
            self._text = sections[summary] + "".join(bodies)
        return self._text

    def _section(self, title: str, body: str, references: dict[str, str]) -> str:
        """The completed section; the references that it cites are added."""
        lines = []
        for head, text in re.findall(_ENTRY, body):
            shared = re.match(_SHARED, text)
            if shared is None or shared[1] not in self._sources:
                lines.append(f"{head}\n{text.rstrip()}\n")
                continue
            source = self._sources[shared[1]]
            theirs = _sections(source if isinstance(source, str) else source.__doc__)
            cited = dict(re.findall(_REFERENCE, theirs.get("References", "")))

            def renumbered(citation: re.Match[str], cited: Mapping[str, str] = cited) -> str:
                return f"[{_number(references, cited[citation[1]])}]_"

            names, kind = _names(head)
            for other_head, other_text in re.findall(_ENTRY, theirs.get(title, "")):
                others, other_kind = _names(other_head)
                if common := [name for name in others if name in names]:
                    kinds = f" : {kind or other_kind}" if kind or other_kind else ""
                    description = re.sub(_CITATION, renumbered, other_text.rstrip())
                    lines.append(f"{', '.join(common)}{kinds}\n{description}\n")
            if more := text[shared.end() :].rstrip():
                lines.append(f"    {more}\n")
        return "".join(lines) + "\n"


def _sections(doc: str) -> Sections:
    parts = re.split(_TITLE, inspect.cleandoc(doc))
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def _names(head: str) -> tuple[list[str], str]:
    names, _, kind = head.replace("\n", " ").partition(" : ")
    return names.split(", "), kind


def _number(references: dict[str, str], text: str) -> str:
    """The number of a reference in a docstring, to which it is added if it is new."""
    for number, known in references.items():
        if known.split() == text.split():
            return number
    number = str(len(references) + 1)
    references[number] = text
    return number

"""Text as a character model reads it: files, vocabulary, ids.

V is the number of characters in a vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rnnkern import files

Array: TypeAlias = NDArray[Any]

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # how <unk>, id 0, is written
MIN_COUNT = 3  # characters seen less often than this in the training text become <unk>
HELD_OUT_SHARE = 0.1
STDLIB_CHARACTERS = 16_000_000


class CharLMError(ValueError):
    """Text, parameters or surroundings that the character model can't work with."""


def stdlib_texts(limit: int = STDLIB_CHARACTERS) -> list[str]:
    """Read the source of the running interpreter's standard library.

    Parameters
    ----------
    limit : int
        Read no further file once this many characters are there.

    Returns
    -------
    list of str
        One text a module, in the order of their paths; no tests, no installed packages,
        nothing that is not UTF-8.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    texts: list[str] = []
    total = 0
    for path in sorted(root.rglob("*.py")):
        if skipped.isdisjoint(path.relative_to(root).parts) and (text := _text_of(path)):
            texts.append(text)
            total += len(text)
            if total >= limit:
                break
    if not texts:
        raise CharLMError(f"{root}: no source of the standard library here; give FILE")
    return texts


def read_texts(paths: Iterable[Path]) -> list[str]:
    """Read files, and folders with all UTF-8 files under them that are not hidden, sorted.

    Raises
    ------
    CharLMError
        A path is missing, is empty or, where a file was named, is not UTF-8.
    """
    texts: list[str] = []
    for path in paths:
        if path.is_dir():
            found: list[str] = []
            for file in sorted(path.rglob("*")):
                hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
                if file.is_file() and not hidden and (text := _text_of(file)):
                    found.append(text)
            if not found:
                raise CharLMError(f"{path}: expected UTF-8 text in this folder, found none")
            texts += found
        else:
            text = _text_of(path)
            if text is None:
                raise CharLMError(f"{path}: expected UTF-8 text, got other bytes")
            if not text:
                raise CharLMError(f"{path}: expected text, got an empty file")
            texts.append(text)
    return texts


def _text_of(path: Path) -> str | None:
    try:
        with files.naming(str(path)):
            text = path.read_text(encoding="utf-8-sig")
    except files.FileError:  # other bytes than UTF-8
        return None
    return None if "\0" in text else text


class Vocabulary:
    """The characters a model knows; id 0 is <unk>, all others are ``characters`` in order.

    Parameters
    ----------
    characters : str
        Distinct characters, at least one.

    Raises
    ------
    CharLMError
        There is none, or one occurs twice.

    Examples
    --------
    >>> from rnnkern.cli.text import Vocabulary
    >>> Vocabulary("ab").encode("ba?").tolist()
    [2, 1, 0]
    """

    def __init__(self, characters: str) -> None:
        if not 0 < len(set(characters)) == len(characters):
            expected = "at least one character, and each once"
            raise CharLMError(f"vocabulary: expected {expected}, got {characters[:80]!r}")
        self.characters = characters
        codes = np.array([ord(c) for c in characters], np.int64)
        self._ids = np.zeros(0x110000, np.int32)  # one entry for each code point
        self._ids[codes] = np.arange(1, len(codes) + 1)

    def __len__(self) -> int:
        return len(self.characters) + 1

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Take the characters that `text` holds at least ``MIN_COUNT`` times."""
        codes, counts = np.unique(_code_points(text), return_counts=True)
        frequent = codes[counts >= MIN_COUNT]
        if not len(frequent):
            raise CharLMError(
                f"text: expected a character that occurs at least {MIN_COUNT} times in the part to "
                f"train on, got none"
            )
        return cls("".join(map(chr, frequent)))

    def encode(self, text: str) -> Array:
        """Return the ids of `text`, int32 (len(text),)."""
        return self._ids[_code_points(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`."""
        letters = UNKNOWN + self.characters
        return "".join(letters[i] for i in ids)


def _code_points(text: str) -> Array:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@dataclass(frozen=True)
class Corpus:
    """Text as ids: `train` and `held_out` (n,) int32, and the SHA-256 of the whole.

    The last tenth of *each* file is held out: files differ in style, and so the number does
    not hang on which of them come last. The vocabulary is that of the training part.
    """

    vocabulary: Vocabulary
    train: Array
    held_out: Array
    digest: str

    @classmethod
    def of(cls, texts: Sequence[str]) -> Corpus:
        """Split `texts` and encode them."""
        cuts = [len(text) - math.ceil(len(text) * HELD_OUT_SHARE) for text in texts]
        train = "".join(text[:cut] for text, cut in zip(texts, cuts, strict=True))
        held_out = "".join(text[cut:] for text, cut in zip(texts, cuts, strict=True))
        vocabulary = Vocabulary.of(train)
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
        return cls(vocabulary, vocabulary.encode(train), vocabulary.encode(held_out), digest)

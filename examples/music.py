"""Compose chorales: a GRU learns the four voices of Bach's (music21's corpus).

Two models. `--model voices` (default) reads each sixteenth note as four symbols, one a voice, in
which a note that goes on is a symbol of its own, and writes one symbol after the other: soprano,
alto, tenor, bass. It composes. `--model roll` reads a piano roll of quarter notes, 88 keys, and
gives the probability of each key (Boulanger-Lewandowski et al. 2012, arXiv:1206.6392): its negative
log likelihood a frame is comparable to published figures of such corpora.

Pieces are split by their number: every tenth is held out, the one after it is for testing.

`predict [SECONDS]` composes a new chorale with the trained model of voices, as MIDI.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from data import SILENT, VOICES, InputError, chorales
from matplotlib.figure import Figure
from run import Application, Training, endless, learning_curve, main

import rnnkern as rk

STEPS, QUICK_STEPS, BATCH = 1500, 40, 16
LOWEST, KEYS = 21, 88  # of a piano
HOLD = 0  # a note goes on; symbol 1 is silence, pitches follow
LENGTH = 64  # sixteenths of a training window of voices: four bars


def parts(count: int) -> dict[str, list[int]]:
    """Indices of pieces to train on, to choose by and to test on."""
    found: dict[str, list[int]] = {"train": [], "held out": [], "test": []}
    for i in range(count):
        found[{8: "held out", 9: "test"}.get(i % 10, "train")].append(i)
    return found


# ---- piano roll ----------------------------------------------------------------------------------


def rolls() -> list[np.ndarray]:
    """Which keys sound at each quarter note, (T, 88)."""
    found = []
    for pitches in chorales()[1]:
        quarter = pitches[::4]
        roll = np.zeros((len(quarter), KEYS), np.float32)
        for voice in range(VOICES):
            sounding = np.flatnonzero(quarter[:, voice] != SILENT)
            roll[sounding, quarter[sounding, voice] - LOWEST] = 1
        found.append(roll)
    return found


class Roll:
    """The model of piano rolls."""

    def __init__(self, hidden: int, seed: int, quick: bool, compute: Any = None) -> None:
        self.model = {
            "gru": rk.GRU(KEYS, hidden, seed=seed, compute=compute),
            "drop": rk.Dropout(0.3, seed=seed + 1),
            "head": rk.Linear(hidden, KEYS, seed=seed + 2),
        }
        pieces = rolls()
        self.pieces = {name: [pieces[i] for i in own] for name, own in parts(len(pieces)).items()}
        if quick:
            self.pieces = {name: own[:20] for name, own in self.pieces.items()}
        self.batches = rk.Batches(self.pieces["train"], batch_size=BATCH, seed=seed)

    def gradients(self, batch: Any) -> tuple[float, dict[str, Any]]:
        x, target, lengths = batch.x[:-1], batch.x[1:], np.maximum(batch.lengths - 1, 0)
        y, _, of_gru = self.model["gru"].forward(x, lengths=lengths)
        kept, of_drop = self.model["drop"].forward(y, lengths=lengths)
        z, of_head = self.model["head"].forward(kept)
        real = np.arange(len(x))[:, None] < lengths
        loss, dz = rk.binary_cross_entropy(
            z, target, mask=np.broadcast_to(real[..., None], z.shape)
        )
        head = self.model["head"].backward(of_head, dz * KEYS)  # nats a frame, not a key
        dy = self.model["drop"].backward(of_drop, head.x).x
        return loss * KEYS, {"gru": self.model["gru"].backward(of_gru, dy), "head": head}

    def nats_a_frame(self, name: str) -> float:
        """Negative log likelihood of all frames, the first one of each piece from a zero roll."""
        total = frames = 0.0
        for roll in self.pieces[name]:
            before = np.concatenate([np.zeros((1, KEYS), np.float32), roll[:-1]])[:, None]
            z = self.model["head"](self.model["gru"](before)[0])
            total += rk.binary_cross_entropy(z, roll[:, None], reduction="sum")[0]
            frames += len(roll)
        return float(total / frames)


# ---- voices --------------------------------------------------------------------------------------


def symbols() -> tuple[list[np.ndarray], list[int]]:
    """Each piece as a sequence of symbols, four a sixteenth; and the pitches of the symbols."""
    _, pitches, begins = chorales()
    known = sorted({int(p) for piece in pitches for p in np.unique(piece)} - {SILENT})
    number = {SILENT: 1, **{pitch: i for i, pitch in enumerate(known, 2)}}
    found = []
    for piece, first in zip(pitches, begins, strict=True):
        named = np.vectorize(number.__getitem__)(piece)
        goes_on = ~first & (np.roll(piece, 1, axis=0) == piece)
        goes_on[0] = False
        found.append(np.where(goes_on, HOLD, named).reshape(-1))
    return found, known


class Voices:
    """The model of voices: the symbol to come from those before, and whose turn it is."""

    def __init__(self, hidden: int, seed: int, quick: bool, compute: Any = None) -> None:
        pieces, self.known = symbols()
        count = len(self.known) + 2
        self.model = {
            "symbols": rk.Embedding(count * VOICES, 48, seed=seed),
            "gru": rk.GRU(48, hidden, num_layers=2, dropout=0.2, seed=seed + 1, compute=compute),
            "head": rk.Linear(hidden, count, seed=seed + 2),
        }
        self.count = count
        self.pieces = {name: [pieces[i] for i in own] for name, own in parts(len(pieces)).items()}
        if quick:
            self.pieces = {name: own[:20] for name, own in self.pieces.items()}
        length = LENGTH * VOICES
        windows = [
            piece[start : start + length + 1]
            for piece in self.pieces["train"]
            for start in range(0, max(1, len(piece) - length // 2), length // 2 // VOICES * VOICES)
        ]
        self.batches = rk.Batches(windows, batch_size=BATCH, seed=seed)

    def ids(self, symbols: np.ndarray, first_voice: int = 0) -> np.ndarray:
        """A symbol of each voice has an embedding of its own."""
        voices = (np.arange(len(symbols)) + first_voice) % VOICES
        return symbols + self.count * voices.reshape(-1, *[1] * (symbols.ndim - 1))

    def gradients(self, batch: Any) -> tuple[float, dict[str, Any]]:
        x, target = batch.x[:-1], batch.x[1:]
        lengths = np.maximum(batch.lengths - 1, 0)
        vectors, of_symbols = self.model["symbols"].forward(self.ids(x))
        y, _, of_gru = self.model["gru"].forward(vectors, lengths=lengths)
        z, of_head = self.model["head"].forward(y)
        loss, dz = rk.cross_entropy(z, target, mask=np.arange(len(x))[:, None] < lengths)
        head = self.model["head"].backward(of_head, dz)
        gru = self.model["gru"].backward(of_gru, head.x)
        symbols = self.model["symbols"].backward(of_symbols, gru.x)
        return loss, {"symbols": symbols, "gru": gru, "head": head}

    def nats_a_frame(self, name: str) -> float:
        """Negative log likelihood of a sixteenth, all four voices, without each piece's first."""
        total = frames = 0.0
        for piece in self.pieces[name]:
            y, _ = self.model["gru"](self.model["symbols"](self.ids(piece[:-1, None])))
            total += rk.cross_entropy(self.model["head"](y), piece[1:, None], reduction="sum")[0]
            frames += len(piece) / VOICES
        return float(total / frames)


def compose(model: dict[str, Any], about: dict[str, Any], sixteenths: int, seed: int) -> np.ndarray:
    """A new chorale: pitches (T, 4), 0 in rests, and where notes begin, as symbols of a pitch."""
    generator = np.random.default_rng(seed)
    count = len(about["known"]) + 2
    stream = model["gru"].stream()
    table, start = model["symbols"].params["weight"], np.array(about["start"])
    written = start.tolist()
    y = stream.run(
        np.ascontiguousarray(table[start + count * (np.arange(len(start)) % VOICES)][:, None])
    )[-1]
    while len(written) < sixteenths * VOICES:
        z = model["head"](y)[0].astype(np.float64) / 0.9
        share = np.exp(z - z.max()).cumsum()
        symbol = int(np.searchsorted(share, generator.random() * share[-1], side="right"))
        y = stream.step(table[symbol + count * (len(written) % VOICES)][None])
        written.append(symbol)
    return np.array(written).reshape(-1, VOICES)


def write_midi(path: Path, written: np.ndarray, known: list[int]) -> None:
    import mido

    ticks = 120  # a sixteenth
    file = mido.MidiFile(ticks_per_beat=4 * ticks)
    for voice in range(VOICES):
        track = mido.MidiTrack()
        file.tracks.append(track)
        track.append(mido.Message("program_change", program=19, channel=voice))  # church organ
        waited, sounding = 0, None
        for symbol in [*written[:, voice].tolist(), 1]:
            if symbol != HOLD:
                if sounding is not None:
                    track.append(
                        mido.Message("note_off", note=sounding, channel=voice, time=waited)
                    )
                    waited, sounding = 0, None
                if symbol > 1:
                    sounding = known[symbol - 2]
                    track.append(mido.Message("note_on", note=sounding, velocity=80,
                                              channel=voice, time=waited))  # fmt: skip
                    waited = 0
            waited += ticks
    file.save(path)
    # A synthesizer of Debian's, if it is there: apt install fluidsynth fluid-soundfont-gm
    font = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
    if shutil.which("fluidsynth") and font.exists():
        sound = path.with_suffix(".wav")
        command = ["fluidsynth", "-ni", "-F", str(sound), "-r", "44100", str(font), str(path)]
        subprocess.run(command, check=True, capture_output=True)
        print(f"wrote {sound}")


def draw_roll(axes: Any, written: np.ndarray, known: list[int]) -> None:
    """The voices as lines over time."""
    colors = ("#d55e00", "#e69f00", "#009e73", "#0072b2")
    for voice, (name, color) in enumerate(
        zip(("soprano", "alto", "tenor", "bass"), colors, strict=True)
    ):
        begins = np.flatnonzero(written[:, voice] != HOLD)
        ends = [*begins[1:], len(written)]
        label = name
        for first, end in zip(begins, ends, strict=True):
            if (symbol := written[first, voice]) > 1:
                pitch = known[symbol - 2]
                axes.plot([first / 4, end / 4 - 0.05], [pitch, pitch], color=color, linewidth=3,
                          solid_capstyle="butt", label=label)  # fmt: skip
                label = None
    axes.set(xlabel="quarter notes", ylabel="pitch (MIDI)")
    axes.grid()
    axes.legend(ncols=4, loc="upper center", fontsize=8)


# ---- the run -------------------------------------------------------------------------------------


def of_options(args: argparse.Namespace) -> Roll | Voices:
    hidden = 48 if args.quick else 192
    made = Roll if args.model == "roll" else Voices
    return made(hidden, args.seed, args.quick, args.compute)


def prepare(args: argparse.Namespace) -> Training:
    run = of_options(args)
    optimizer = rk.Adam(
        run.model, lr=rk.schedules.Cosine(2e-3, QUICK_STEPS if args.quick else STEPS, warm_up=20)
    )
    source = endless(run.batches)

    def evaluate() -> dict[str, float]:
        return {"nats a frame": run.nats_a_frame("held out")}

    about: dict[str, Any] = {"model": args.model}
    if isinstance(run, Voices):
        about |= {"known": run.known, "start": run.pieces["test"][0][: 4 * VOICES].tolist()}
    return Training(
        run.model, optimizer, max_norm=1.0,
        next_batch=lambda number: next(source), gradients=run.gradients,
        terms=lambda batch: np.maximum(batch.lengths - 1, 0).sum(), evaluate=evaluate,
        state={"batches": run.batches}, about=about,
    )  # fmt: skip


def finish(training: Training, args: argparse.Namespace) -> tuple[dict[str, Any], Figure]:
    run = of_options(args)
    run.model = training.model
    test = run.nats_a_frame("test")
    grid = "quarter note, 88 keys" if args.model == "roll" else "sixteenth, four voices"
    print(f"negative log likelihood of the test pieces: {test:.3f} nats a frame ({grid})")
    figure = Figure(figsize=(11, 8 if args.model == "voices" else 4.5), layout="constrained")
    rows = figure.subplots(2 if args.model == "voices" else 1, 1, squeeze=False)[:, 0]
    unit = "nats a frame" if args.model == "roll" else "nats a symbol"
    learning_curve(rows[0], training, unit, "nats a frame", same_unit=args.model == "roll")
    rows[0].set_title(f"{test:.2f} nats a frame on test pieces ({grid})")
    if args.model == "voices":
        about = training.about
        written = compose(training.model, about, 64 if args.quick else 256, args.seed)
        draw_roll(rows[1], written[:128], about["known"])
        rows[1].set_title("A new chorale, its first bars")
        write_midi(args.out / "chorale.mid", written, about["known"])
        print(f"wrote {args.out / 'chorale.mid'}")
    return {"model": args.model, "test_nats_a_frame": test}, figure


def predict(model: dict[str, Any], about: dict[str, Any], args: argparse.Namespace) -> None:
    if about["model"] != "voices":
        raise InputError("predict: expected a model of voices, got one of a piano roll")
    sixteenths = round(8 * (args.input or 30.0))  # 120 quarters a minute
    written = compose(model, about, sixteenths, args.seed)
    path = args.out / f"chorale-{args.seed}.mid"
    write_midi(path, written, about["known"])
    print(f"wrote {path}")


def seconds(text: str) -> float:
    """The length of a chorale, from a second to a day."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 1 <= found <= 86400:
        raise argparse.ArgumentTypeError(f"expected seconds from 1 to 86400, got {text!r}")
    return found


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=["voices", "roll"], default="voices")


APPLICATION = Application(
    name="music",
    doc=__doc__,
    steps=STEPS,
    quick_steps=QUICK_STEPS,
    evaluate_every=250,
    prepare=prepare,
    finish=finish,
    predict=predict,
    inputs="[SECONDS]",
    count="?",
    read=seconds,
    draws=True,
    options=options,
)

if __name__ == "__main__":
    raise SystemExit(main(APPLICATION))

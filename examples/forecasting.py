"""Forecast the weekly carbon dioxide at Mauna Loa, 1958 to 2001, with its uncertainty.

A GRU reads the weeks before and gives a normal distribution of the next week (DeepAR, Salinas et
al. 2020, arXiv:1704.04110, for one series). A forecast draws many paths, each of which feeds its
own values back. Training uses the weeks up to 1992; the years after are held out. The seasonal
naive forecast, the same week of the year before with or without its growth, is the baseline.

`predict FILE [WEEK]` forecasts a year after the end of your own series: numbers, one week a line.
WEEK is the last one's number in its year (52), since the model reads the season of the year, too.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
from data import InputError, text_of
from matplotlib.figure import Figure
from run import Application, Training, learning_curve, main

import rnnkern as rk

YEAR = 52  # weeks; of a season, and of a forecast
CONTEXT = 2 * YEAR  # weeks that are read before a forecast
BATCH = 32
PATHS = 200
QUANTILES = np.arange(1, 20) / 20
HELD_OUT_FROM = 1992


def series() -> tuple[np.ndarray, np.ndarray]:
    """Carbon dioxide in ppm, nan where no week was measured, and the year of each week."""
    from statsmodels.datasets import co2  # here: predicting does not need it

    table = co2.load_pandas().data["co2"]
    years = table.index.year.to_numpy() + table.index.day_of_year.to_numpy() / 365.25
    return table.to_numpy(np.float64), years


def inputs(windows: np.ndarray, phases: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows (T, B) in ppm become x (T, B, 4), with each window's level and scale.

    x has the value, whether it is there, and the phase of the year. Level and scale are those of
    the context, so that a model of one decade fits another.
    """
    level = np.nanmean(windows[CONTEXT - YEAR : CONTEXT], axis=0)
    scale = np.nanstd(windows[CONTEXT - YEAR : CONTEXT], axis=0) + 1e-3
    scaled = (windows - level) / scale
    there = ~np.isnan(scaled)
    angle = 2 * np.pi * phases
    columns = [np.where(there, scaled, 0), there, np.sin(angle), np.cos(angle)]
    return np.stack(columns, axis=-1).astype(np.float32), level, scale


def paths(model: dict[str, Any], context: np.ndarray, phases: np.ndarray, seed: int) -> np.ndarray:
    """Draw PATHS continuations (weeks, PATHS) of a context, in ppm; phases go on behind it."""
    generator = np.random.default_rng(seed)
    x, level, scale = inputs(context[:, None], phases[: len(context), None])
    gru, head = model["gru"], model["head"]
    stream = gru.stream(PATHS)
    y = stream.run(np.repeat(x, PATHS, axis=1))[-1]
    found = []
    for phase in phases[len(context) :]:
        mean, log_variance = head(y).T
        value = mean + np.exp(log_variance / 2) * generator.standard_normal(PATHS)
        found.append(value)
        angle = np.full(PATHS, 2 * np.pi * phase)
        columns = [value, np.ones(PATHS), np.sin(angle), np.cos(angle)]
        y = stream.step(np.stack(columns, axis=-1).astype(np.float32))
    return np.array(found) * scale + level


def pinball(quantiles: np.ndarray, truth: np.ndarray) -> float:
    """Mean quantile loss, in ppm: twice the mean is the CRPS, approximately."""
    error = truth[:, None] - quantiles
    return float(np.nanmean(np.maximum(QUANTILES * error, (QUANTILES - 1) * error)))


def naive(context: np.ndarray) -> dict[str, np.ndarray]:
    """The baselines: the last year again, without and with the growth of a year."""
    filled = interpolated(context)
    again = filled[-YEAR:]
    growth = again.mean() - filled[-2 * YEAR : -YEAR].mean()
    return {"seasonal naive": again, "seasonal naive with growth": again + growth}


def interpolated(values: np.ndarray) -> np.ndarray:
    places, there = np.arange(len(values)), ~np.isnan(values)
    return np.interp(places, places[there], values[there])


def measures(model: dict[str, Any], values: np.ndarray, phases: np.ndarray, every: int) -> Any:
    """Errors of the forecasts of all origins in the held-out years, `every` so many weeks apart."""
    first = int(np.searchsorted(phases, HELD_OUT_FROM))
    absolute: dict[str, list[float]] = {"GRU": [], **{name: [] for name in naive(values[:CONTEXT])}}
    inside, losses = [], []
    for origin in range(first, len(values) - YEAR, every):
        context = values[origin - CONTEXT : origin]
        truth = values[origin : origin + YEAR]
        drawn = paths(model, context, phases[origin - CONTEXT : origin + YEAR], origin)
        quantiles = np.quantile(drawn, QUANTILES, axis=1).T
        losses.append(pinball(quantiles, truth))
        inside.append(np.nanmean((quantiles[:, 1] <= truth) & (truth <= quantiles[:, -2])))
        forecasts = {"GRU": quantiles[:, len(QUANTILES) // 2], **naive(context)}
        for name, forecast in forecasts.items():
            absolute[name].append(float(np.nanmean(np.abs(forecast - truth))))
    errors = {name: float(np.mean(found)) for name, found in absolute.items()}
    return errors, 2 * float(np.mean(losses)), float(np.mean(inside))


def gradients(
    model: dict[str, Any], batch: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[float, dict[str, Any]]:
    """The loss of a batch, of x, targets and which of them count, and the gradients."""
    x, target, counts = batch
    y, _, of_gru = model["gru"].forward(x)
    outputs, of_head = model["head"].forward(y)
    loss, d_outputs = rk.gaussian_nll(outputs, target, mask=counts)
    head = model["head"].backward(of_head, d_outputs)
    return loss, {"gru": model["gru"].backward(of_gru, head.x), "head": head}


def prepare(args: argparse.Namespace) -> Training:
    values, phases = series()
    train = int(np.searchsorted(phases, HELD_OUT_FROM))
    length = CONTEXT + YEAR
    hidden = 24 if args.quick else 48
    model = {
        "gru": rk.GRU(4, hidden, seed=args.seed, compute=args.compute),
        "head": rk.Linear(hidden, 2, seed=args.seed + 1),
    }
    steps = QUICK_STEPS if args.quick else STEPS
    optimizer = rk.Adam(model, lr=rk.schedules.Cosine(4e-3, steps, warm_up=20))

    def next_batch(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        generator = np.random.default_rng([args.seed, number])
        starts = generator.integers(0, train - length, BATCH)
        places = starts + np.arange(length)[:, None]
        x, level, scale = inputs(values[places], phases[places])
        target = ((values[places] - level) / scale)[1:, :, None].astype(np.float32)
        counts = ~np.isnan(target)
        counts[: YEAR - 1] = False  # the first year only fills the state
        return x[:-1], target, counts

    def evaluate() -> dict[str, float]:
        errors, crps, _ = measures(model, values, phases, 8 * YEAR if args.quick else YEAR)
        return {"CRPS": crps, "MAE": errors["GRU"]}

    return Training(
        model, optimizer, max_norm=1.0, next_batch=next_batch, gradients=partial(gradients, model),
        terms=lambda batch: batch[2].sum(), evaluate=evaluate,
        rows=lambda batch: BATCH,
        part=lambda batch, rows: tuple(array[:, rows] for array in batch),
    )  # fmt: skip


def finish(training: Training, args: argparse.Namespace) -> tuple[dict[str, Any], Figure]:
    values, phases = series()
    errors, crps, inside = measures(training.model, values, phases, YEAR if args.quick else 13)
    print("mean absolute error of the weeks of a year ahead, ppm:")
    for name, error in errors.items():
        print(f"  {name:28} {error:.3f}")
    print(f"CRPS {crps:.3f} ppm; {inside:.0%} of the weeks inside the 80 % interval")
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    learning_curve(left, training, "negative log likelihood (nats)")
    origin = int(np.searchsorted(phases, 1999.5))
    drawn = paths(training.model, values[origin - CONTEXT : origin],
                  phases[origin - CONTEXT : origin + YEAR], 0)  # fmt: skip
    draw(right, phases, values, origin, drawn)
    right.set(title=f"A year ahead: mean error {errors['GRU']:.2f} ppm, baseline "
                    f"{errors['seasonal naive with growth']:.2f} ppm")  # fmt: skip
    figures = {"mean_absolute_error_ppm": errors, "crps_ppm": crps, "inside_80_percent": inside}
    return figures, figure


def draw(axes: Any, phases: np.ndarray, values: np.ndarray, origin: int, drawn: np.ndarray) -> None:
    low, middle, high = np.quantile(drawn, [0.1, 0.5, 0.9], axis=1)
    ahead = phases[origin : origin + len(drawn)]
    axes.fill_between(ahead, low, high, color="#56b4e9", alpha=0.4, label="80 % interval")
    axes.plot(ahead, middle, color="#0072b2", label="median forecast")
    shown = slice(origin - CONTEXT, origin + YEAR)
    axes.plot(phases[shown], values[shown], ".", color="0.2", markersize=3, label="measured")
    axes.set(xlabel="year", ylabel="CO2 (ppm)")
    axes.grid()
    axes.legend()


def numbers_in(path: str) -> np.ndarray:
    """The weeks of a user's file, nan where one is missing."""
    found = []
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            try:
                found.append(float(line))
            except ValueError:
                raise InputError(
                    f"{path}, line {number}: expected a number, or nan, got {line.strip()!r}"
                ) from None
    values = np.array(found)
    if len(values) < CONTEXT:
        raise InputError(f"{path}: expected at least {CONTEXT} weeks, got {len(values)}")
    if np.isinf(values).any() or np.isnan(values[-YEAR:]).all():
        raise InputError(f"{path}: expected finite numbers, and one in the last year")
    return values


def predict(model: dict[str, Any], about: dict[str, Any], args: argparse.Namespace) -> None:
    path, *last = args.input
    if len(last) > 1 or not all(each.isdecimal() and 1 <= int(each) <= YEAR for each in last):
        expected = f"FILE and the last week's number in its year, 1 to {YEAR}"
        raise InputError(f"predict: expected {expected}, got {' '.join(args.input)}")
    values = numbers_in(path)
    week = int(*last) if last else YEAR
    phases = (week + np.arange(-CONTEXT, YEAR)) / YEAR
    drawn = paths(model, values[-CONTEXT:], phases, args.seed)
    print("week     10 %   median     90 %")
    for week, row in enumerate(np.quantile(drawn, [0.1, 0.5, 0.9], axis=1).T, 1):
        print(f"{week:4} " + " ".join(f"{value:8.2f}" for value in row))


STEPS, QUICK_STEPS = 1500, 60
APPLICATION = Application(
    name="forecasting",
    doc=__doc__,
    steps=STEPS,
    quick_steps=QUICK_STEPS,
    evaluate_every=250,
    prepare=prepare,
    finish=finish,
    predict=predict,
    inputs="FILE [WEEK]",
    draws=True,
)

if __name__ == "__main__":
    raise SystemExit(main(APPLICATION))

"""Pictures of gradients, clips, eigenvalues and gates. They need matplotlib."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from ..docstrings import complete
from ..layers import Gradients
from ..tape import Tape
from .common import (
    Array,
    Layer,
    check_layer,
    place_at,
    place_name,
    places_of,
    real_steps,
    trace_of,
    untrapped,
)
from .gates import saturation
from .spectra import spectrum

__all__ = ["plot_clips", "plot_flow", "plot_saturation", "plot_spectrum"]


@untrapped
def plot_flow(
    layer: Layer,
    grads: Gradients,
    axes: Any = None,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
) -> Any:
    """Draw the norm of dL/dh over the steps, on a log scale, a line per layer and direction.

    The line is the median over rows; zeros are not drawn, as a log scale has no place for them.

    Parameters
    ----------
    layer : recurrent layer
        An `RNN`, for example.
    grads : Gradients
        Of ``layer.backward(tape, ..., trace=True)``.
    axes : matplotlib Axes, optional
        Where to draw; on a figure of its own if not given.
    lengths : ndarray of integers, shape (B,), optional
        As in the forward: padding is left out.
    mask : ndarray of bool, shape (T, B), optional
        As in the forward: masked steps are left out. Not with `lengths`.

    Returns
    -------
    matplotlib Figure
        To be saved with ``savefig``.

    Raises
    ------
    ImportError
        If matplotlib is missing: ``pip install 'rnnkern[cli]'``.
    TypeError, ValueError
        If an argument is invalid; the message names it.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> gru = rk.GRU(3, 5, num_layers=2, seed=0)
    >>> y, _, tape = gru.forward(np.ones((7, 2, 3), np.float32))
    >>> figure = rk.diagnose.plot_flow(gru, gru.backward(tape, np.ones_like(y), trace=True))
    >>> len(figure.axes[0].lines)
    2
    """
    dh = _padding_as_nan(layer, grads, "dh", lengths, mask)
    figure, axes = _canvas(axes)
    for index, (place, direction) in enumerate(places_of(layer)):
        axes.semilogy(_positive(_over_rows(dh[index])), label=place_name(place, direction))
    axes.set(title="gradient of the hidden state", xlabel="step t")
    axes.set_ylabel("norm of dL/dh$_t$ (L2, median over rows)")
    return _finished(figure, axes)


@untrapped
def plot_clips(
    layer: Layer,
    grads: Gradients,
    axes: Any = None,
    *,
    index: int = 0,
    lengths: Array | None = None,
    mask: Array | None = None,
) -> Any:
    """Draw what the step clips do: the norm before and after `step_norm`, and the shares clipped.

    The norms (medians over rows, log scale) are those of what a step hands back to the h before
    it. The shares stand on an axis of their own, at the right: of the rows that `step_norm`
    scaled, and of the elements of dL/da that `step_value` limited.

    Parameters
    ----------
    layer, grads, axes, lengths, mask
        As in `plot_flow`.
    index : int
        Which layer and direction, counted as in a state: from 0 to L*D - 1.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ImportError, TypeError, ValueError
        As in `plot_flow`.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> rnn = rk.RNN(3, 5, seed=0)
    >>> y, _, tape = rnn.forward(np.ones((7, 2, 3), np.float32))
    >>> grads = rnn.backward(tape, np.ones_like(y), clip=rk.Clip(step_norm=0.5), trace=True)
    >>> figure = rk.diagnose.plot_clips(rnn, grads)
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['norm handed back (L2, median over rows)', 'share clipped']
    """
    before = _padding_as_nan(layer, grads, "dh_before", lengths, mask)
    scale = _padding_as_nan(layer, grads, "scale", lengths, mask)
    clipped = _padding_as_nan(layer, grads, "clipped", lengths, mask)
    place, direction = place_at(layer, index)
    figure, axes = _canvas(axes)
    axes.semilogy(_positive(_over_rows(before[index])), color="C3", linewidth=3, alpha=0.4,
                  label="norm before step_norm")  # fmt: skip
    after = _positive(_over_rows(before[index] * scale[index]))
    axes.semilogy(after, color="C2", label="norm after")
    acted = np.where(np.isnan(scale[index]), np.nan, scale[index] < 1.0)
    shares = axes.twinx()
    shares.plot(_over_rows(acted, np.nanmean), ":", color="0.4", label="share: step_norm, of rows")
    shares.plot(_over_rows(clipped[index], np.nanmean), "--", color="C0",
                label="share: step_value, of dL/da")  # fmt: skip
    shares.set(ylim=(-0.03, 1.03), ylabel="share clipped")
    axes.set(title=f"step clips, {place_name(place, direction)}", xlabel="step t")
    axes.set_ylabel("norm handed back (L2, median over rows)")
    return _finished(figure, axes, shares)


@untrapped
def plot_spectrum(layer: Layer, axes: Any = None) -> Any:
    """Draw the eigenvalues of every recurrent matrix in the complex plane, with the unit circle.

    Parameters
    ----------
    layer : recurrent layer
        An `RNN`, for example.
    axes : matplotlib Axes, optional
        Where to draw; on a figure of its own if not given.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ImportError, TypeError
        As in `plot_flow`.

    Examples
    --------
    >>> import rnnkern as rk
    >>> figure = rk.diagnose.plot_spectrum(rk.GRU(3, 5, seed=0))
    >>> len(figure.axes[0].collections)  # r, z, n
    3
    """
    blocks = spectrum(layer)
    many = len(places_of(layer)) > 1
    figure, axes = _canvas(axes)
    turn = np.linspace(0.0, 2.0 * np.pi, 200)
    axes.plot(np.cos(turn), np.sin(turn), color="0.6", linewidth=1, label="unit circle")
    for block in blocks:
        where = f"{place_name(block.layer, block.direction)}, " if many else ""
        name = f"{where}{block.gate}: radius {block.radius:.3g}"
        axes.scatter(block.eigenvalues.real, block.eigenvalues.imag, s=12, alpha=0.7, label=name)
    axes.set(title="eigenvalues of the recurrent matrices", aspect="equal")
    axes.set(xlabel="real part", ylabel="imaginary part")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom - (0.1 + 0.1 * len(blocks)) * (top - bottom))  # room for the legend
    return _finished(figure, axes, loc="lower center")


@untrapped
def plot_saturation(
    layer: Layer,
    tape: Tape,
    axes: Any = None,
    *,
    index: int = 0,
    low: float = 0.1,
    high: float = 0.9,
    tanh: float = 0.9,
) -> Any:
    """Draw the share of each gate's values near its ends, over the steps.

    Parameters
    ----------
    layer, tape, low, high, tanh
        As in `saturation`.
    axes : matplotlib Axes, optional
        Where to draw; on a figure of its own if not given.
    index : int
        Which layer and direction, counted as in a state: from 0 to L*D - 1.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ImportError, TypeError, ValueError
        As in `plot_flow`.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> lstm = rk.LSTM(3, 5, seed=0)
    >>> _, _, tape = lstm.forward(np.ones((7, 2, 3), np.float32))
    >>> figure = rk.diagnose.plot_saturation(lstm, tape)
    >>> len(figure.axes[0].lines)  # the upper and the lower end of i, f, g, o and tanh(c)
    10
    """
    found = saturation(layer, tape, low=low, high=high, tanh=tanh)
    here = place_at(layer, index)
    figure, axes = _canvas(axes)
    for k, one in enumerate(s for s in found if (s.layer, s.direction) == here):
        axes.plot(one.high, color=f"C{k}", label=f"{one.gate}, upper end")
        axes.plot(one.low, "--", color=f"C{k}", label=f"{one.gate}, lower end")
    axes.set(title=f"saturation, {place_name(*here)}", xlabel="step t", ylim=(-0.03, 1.03))
    axes.set_ylabel("share of units near an end")
    return _finished(figure, axes)


def _padding_as_nan(
    layer: Layer, grads: Gradients, name: str, lengths: Array | None, mask: Array | None
) -> Array:
    """One of a trace's arrays, nan at padding and at masked steps."""
    check_layer(layer)
    values: Array = getattr(trace_of(grads), name)
    places = len(places_of(layer))
    if values.ndim != 3 or len(values) != places:
        raise ValueError(f"grads: expected a trace of shape ({places}, T, B), got {values.shape}")
    _, T, B = values.shape
    real = real_steps(layer, lengths, mask, T, B)
    return np.where(real, values[:, : len(real)], np.nan)


def _over_rows(values: Array, middle: Any = np.nanmedian) -> Array:
    """(T, B) to (T,): what `middle` says of the rows that are there; nan where none is."""
    out = np.full(len(values), np.nan)
    some = ~np.isnan(values).all(axis=1)
    if some.any():
        out[some] = middle(values[some], axis=1)
    return out


def _positive(values: Array) -> Array:
    """nan for zeros: on a log scale matplotlib warns of a line that has nothing else."""
    return np.where(values > 0.0, values, np.nan)


def _canvas(axes: Any) -> tuple[Any, Any]:
    """The figure and the axes to draw on."""
    try:
        figure_of = import_module("matplotlib.figure").Figure  # no pyplot: no display, no globals
        kind = import_module("matplotlib.axes").Axes
    except ImportError as error:
        raise ImportError(f"matplotlib is missing ({error}): pip install 'rnnkern[cli]'") from error
    if axes is None:
        figure = figure_of(figsize=(7, 4.5), layout="constrained")
        return figure, figure.subplots()
    if not isinstance(axes, kind):
        raise TypeError(f"axes: expected matplotlib Axes or None, got {type(axes).__name__}")
    return axes.figure, axes


def _finished(figure: Any, axes: Any, *others: Any, loc: str = "best") -> Any:
    axes.grid(alpha=0.3)
    lines = [line for each in (axes, *others) for line in each.get_legend_handles_labels()[0]]
    axes.legend(handles=lines, fontsize="small", loc=loc)
    return figure


complete(plot_flow, plot_clips, plot_spectrum, plot_saturation, of={"saturation": saturation})

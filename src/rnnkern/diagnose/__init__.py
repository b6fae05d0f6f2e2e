"""How gradients flow through a layer, and why: spectra, Lyapunov exponents, saturation, reports.

Nothing here changes a layer. An ensemble is looked at member by member. The plotting functions need
matplotlib, the rest NumPy alone.

Letters, for every shape: T steps, B rows of the batch, H hidden units, P channels of h (H without a
projection), L layers, D directions.
"""

from .exponents import lyapunov
from .flow import Flow, Report, report
from .gates import Saturation, saturation
from .plots import plot_clips, plot_flow, plot_saturation, plot_spectrum
from .spectra import Block, spectrum

__all__ = [
    "Block",
    "Flow",
    "Report",
    "Saturation",
    "lyapunov",
    "plot_clips",
    "plot_flow",
    "plot_saturation",
    "plot_spectrum",
    "report",
    "saturation",
    "spectrum",
]

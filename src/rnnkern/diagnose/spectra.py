"""Eigenvalues and singular values of the recurrent matrices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .common import Array, Layer, cell_of, check_layer, places_of, untrapped

__all__ = ["Block", "spectrum"]


class Block(NamedTuple):
    """One recurrent matrix: what multiplies h, for one gate of one layer and direction.

    With a projection it is ``W_hr W_hh``, W_hh of the gate: the product from h to the next h, with
    all else left out. Its eigenvalues are those of the (H, H) matrix ``W_hh W_hr`` that are not
    zero.

    Attributes
    ----------
    layer, direction : int
        Which; direction 1 runs backward in time.
    gate : str
        Its name in the cell's formulas, such as ``f`` (LSTM) or ``z`` (GRU); ``h`` of an RNN.
    eigenvalues : ndarray of complex, shape (P,)
        The largest modulus first.
    radius : float
        The spectral radius: the largest modulus.
    singular : float
        The largest singular value: the most that one product can lengthen a vector.
    """

    layer: int
    direction: int
    gate: str
    eigenvalues: Array
    radius: float
    singular: float


@untrapped
def spectrum(layer: Layer) -> list[Block]:
    """Eigenvalues, spectral radius and largest singular value of every recurrent matrix.

    For a vanilla RNN they bound the flow back in time: with act' at most 1 (tanh, relu), a largest
    singular value below 1 is enough for gradients to vanish, and they can explode only with one
    above 1 [1]_. A gated cell also has a way past these matrices.

    Parameters
    ----------
    layer : recurrent layer
        Its parameters, as they are now.

    Returns
    -------
    list of Block
        Layer by layer, direction by direction, gate by gate; nan for a matrix that is not finite.
        Empty for a layer without recurrent weights, such as `MinGRU`; of an `IndRNN`, the weights
        themselves.

    Raises
    ------
    TypeError, ValueError
        If `layer` is not a layer, or an ensemble.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural
       networks", 2013, arXiv:1211.5063, section 2.1.

    Examples
    --------
    >>> import numpy as np, rnnkern as rk
    >>> rnn = rk.RNN(3, 4, seed=0)
    >>> rnn.params["weight_hh_l0"][...] = np.diag([0.5, -0.9, 0.2, 0.1])
    >>> (block,) = rk.diagnose.spectrum(rnn)
    >>> block.gate, round(block.radius, 3), round(block.singular, 3)
    ('h', 0.9, 0.9)
    """
    check_layer(layer)
    cell = cell_of(layer)
    params = dict(layer._checked_params())
    blocks = []
    for place, direction in places_of(layer):
        suffix = f"_l{place}" + ("_reverse" if direction else "")
        by_role = {p.role: params[p.name + suffix] for p in cell.parameters if not p.needs}
        weights, projection = by_role.get("recurrent_matrix"), by_role.get("projection_matrix")
        blocks_of, own = by_role.get("recurrent_blocks"), params.get(f"weight_hh{suffix}")
        if blocks_of is not None:
            weights = _whole(blocks_of, layer.hidden_size)
        elif weights is None and own is not None:  # a vector: each unit sees its own state alone
            weights = np.diag(own)
        if weights is None:
            continue
        matrices = np.split(weights.astype(np.float64), cell.gates)
        for (gate, *_), matrix in zip(cell.gate_table, matrices, strict=True):
            matrix = matrix if projection is None else projection.astype(np.float64) @ matrix
            values, singular = np.full(len(matrix), np.nan, np.complex128), np.nan
            if np.isfinite(matrix).all():
                values[...] = np.linalg.eigvals(matrix)
                values = values[np.argsort(-np.abs(values), kind="stable")]
                singular = float(np.linalg.norm(matrix, 2))
            blocks.append(Block(place, direction, gate, values, float(abs(values[0])), singular))
    return blocks


def _whole(blocks: Array, H: int) -> Array:
    """The matrices (G*H, H) of the blocks (G*H, H/N) on their diagonals."""
    size = blocks.shape[1]
    by_head = blocks.reshape(-1, H // size, size, size)
    whole = np.zeros((len(by_head), H // size, size, H // size, size), blocks.dtype)
    for head in range(H // size):
        whole[:, head, :, head] = by_head[:, head]
    return whole.reshape(-1, H)

"""Parts of models as PyTorch's users write them: ragged batches, attention, a random field."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Recurrent(nn.Module):
    """A recurrent layer like one of rnnkern's on ragged batches, "packed" or "padded".

    Outputs at padding are `fill`; with 0, a padded layer leaves there what it computes.
    """

    def __init__(self, layer: Any, way: str, fill: float = 0.0) -> None:
        super().__init__()
        made = getattr(nn, type(layer).__name__)
        sizes = layer.input_size, layer.hidden_size, layer.num_layers
        self.way, self.fill = way, fill
        self.layer = made(*sizes, dropout=layer.dropout, bidirectional=layer.bidirectional)
        # Backward in time from each row's end, padding excluded: a layer of its own.
        self.reverse = made(*sizes[:2]) if layer.bidirectional and way == "padded" else None
        if self.reverse is not None:
            self.layer = made(*sizes[:2])

    def place_of(self, name: str) -> tuple[nn.Module, str]:
        """Where the parameter of this name is."""
        if self.reverse is not None and name.endswith("_reverse"):
            return self.reverse, name.removesuffix("_reverse")
        return self.layer, name

    def forward(self, x: Any, lengths: Any, state: Any = None) -> tuple[Any, Any]:
        """Outputs (T, B, ...); where there are two directions, also their last (2, B, H)."""
        if self.way == "packed":
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
            y, last = self.layer(packed, state)
            y, _ = pad_packed_sequence(y, padding_value=self.fill, total_length=len(x))
            return y, last[0] if isinstance(last, tuple) else last
        step = torch.arange(len(x))[:, None]
        real = step < lengths
        if self.reverse is None:
            y, ends = self.layer(x, state)[0], None
        else:
            T, B, _ = x.shape
            places = torch.where(real, lengths - 1 - step, step) * B + torch.arange(B)

            def turned(x: Any) -> Any:
                return x.flatten(0, 1).index_select(0, places.flatten()).view(T, B, -1)

            one, other = self.layer(x)[0], turned(self.reverse(turned(x))[0])
            y = torch.cat([one, other], -1)
            ends = torch.stack([one[lengths - 1, torch.arange(B)], other[0]])
        if self.fill:
            y = y.masked_fill(~real[..., None], self.fill)
        return y, ends


class VariationalDropout(nn.Module):
    """One mask for all steps of a sequence."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Any) -> Any:
        return x * F.dropout(x.new_ones(x.shape[1:]), self.p, self.training)


class GeneralAttention(nn.Module):
    """Luong's general scores: the keys are projected, the values are not."""

    def forward(self, queries: Any, keys: Any, lengths: Any) -> Any:
        q, k, v = (x.transpose(0, 1)[:, None] for x in (queries, F.linear(keys, self.weight), keys))
        real = (torch.arange(len(keys)) < lengths[:, None])[:, None, None]
        context = F.scaled_dot_product_attention(q, k, v, real, scale=1.0)
        return context[:, 0].transpose(0, 1)


class CRF(nn.Module):
    """The forward algorithm over rows and labels at once, a step after the other."""

    def __init__(self, forbidden: Any = ()) -> None:
        super().__init__()
        self.forbidden = forbidden

    def scores(self) -> dict[str, Any]:
        """The parameters, with a score that no path takes where one is forbidden."""
        own = dict(self.named_parameters())
        if not self.forbidden:
            return own
        masks = {name: torch.zeros(array.shape, dtype=torch.bool) for name, array in own.items()}
        for one, other in self.forbidden:
            if one is None:
                masks["start_transitions"][other] = True
            elif other is None:
                masks["end_transitions"][one] = True
            else:
                masks["transitions"][one, other] = True
        return {name: array.masked_fill(masks[name], -1e4) for name, array in own.items()}

    def forward(self, emissions: Any, labels: Any, lengths: Any) -> Any:
        """The mean of the rows' negative log likelihoods."""
        scores = self.scores()
        start, end = scores["start_transitions"], scores["end_transitions"]
        transitions = scores["transitions"]
        T, B, _ = emissions.shape
        real = torch.arange(T)[:, None] < lengths
        own = emissions.gather(2, labels[..., None])[..., 0]
        between = transitions[labels[:-1], labels[1:]]
        last = labels[lengths - 1, torch.arange(B)]
        path = start[labels[0]] + (own * real).sum(0) + (between * real[1:]).sum(0) + end[last]
        first, *others = emissions.unbind()
        alpha = start + first
        for e, goes_on in zip(others, real[1:, :, None].unbind(), strict=True):
            alpha = torch.where(
                goes_on, torch.logsumexp(alpha[:, :, None] + transitions, 1) + e, alpha
            )
        return (torch.logsumexp(alpha + end, 1) - path).mean()


def rows_of(real: Any, *arrays: Any) -> list[Any]:
    """The rows of arrays (T, B, ...) that are real, one behind the other."""
    places = real.flatten().nonzero()[:, 0]
    return [array.flatten(0, 1).index_select(0, places) for array in arrays]

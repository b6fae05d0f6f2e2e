"""The applications' models in PyTorch, with copies of the parameters of rnnkern's.

A twin has `ways` to take ragged batches, of which the benchmark reports the fastest: "packed", as
`pack_padded_sequence` offers it, and "padded", where a layer computes padding, too, and what it
gives there is left out.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import music
import reinforcement
import sentiment
import torch
from data import VOICES
from torch import nn
from torch.nn import functional as F
from torch_parts import CRF, GeneralAttention, Recurrent, VariationalDropout, rows_of

import rnnkern as rk


class Twin(nn.Module):
    """A model of an application. `next_batch` makes batches in another way than rnnkern's model."""

    ways: ClassVar[tuple[str, ...]] = ("packed", "padded")
    fill: ClassVar[float] = 0.0  # of a recurrent layer's outputs at padding
    weight_decay: ClassVar[dict[str, float]] = {}  # by part/name
    next_batch: Any = None

    def __init__(self, model: dict[str, Any], way: str) -> None:
        super().__init__()
        self.way = way
        self.places: dict[str, nn.Parameter] = {}  # by part/name
        own: dict[int, nn.Parameter] = {}  # of arrays, so that tied ones stay tied
        for part, given in model.items():
            module = self.made(given)
            self.add_module(part, module)
            for name, array in given.params.items():
                where, there = (
                    module.place_of(name) if isinstance(module, Recurrent) else (module, name)
                )
                tensor = own.setdefault(id(array), nn.Parameter(torch.tensor(array)))
                setattr(where, there, tensor)
                self.places[f"{part}/{name}"] = tensor

    def made(self, part: Any) -> nn.Module:
        if isinstance(part, rk.Embedding):
            return nn.Embedding(part.num_embeddings, part.embedding_dim, part.padding_idx)
        if isinstance(part, rk.Linear):
            return nn.Linear(part.in_features, part.out_features)
        if isinstance(part, (rk.LSTM, rk.GRU)):
            return Recurrent(part, self.way, self.fill)
        if isinstance(part, rk.Dropout):
            return VariationalDropout(part.p) if part.variational else nn.Dropout(part.p)
        if isinstance(part, rk.CRF):
            return CRF(part.forbidden)
        return GeneralAttention() if isinstance(part, rk.Attention) else nn.Identity()

    def write_to(self, model: dict[str, Any]) -> None:
        """Copy the parameters into rnnkern's."""
        for place, tensor in self.places.items():
            part, name = place.split("/")
            model[part].params[name][...] = tensor.detach().numpy()

    def loss(self, batch: Any) -> Any:
        raise NotImplementedError


class Sentiment(Twin):
    fill = -math.inf  # which is no maximum
    weight_decay = sentiment.WEIGHT_DECAY

    def loss(self, batch: Any) -> Any:
        x, lengths = torch.from_numpy(batch.x), torch.from_numpy(batch.lengths)
        y, _ = self.lstm(self.drop_in(self.embedding(x)), lengths)
        z = self.head(self.drop_out(y.max(0).values))[:, 0]
        return F.binary_cross_entropy_with_logits(z, torch.from_numpy(batch.y).float())


class Entities(Twin):
    def loss(self, batch: Any) -> Any:
        own = {name: torch.from_numpy(array) for name, array in batch.items()}
        _, ends = self.spelling(self.characters(own["characters"]), own["sizes"])
        words = self.words(own["ids"])
        spellings = words.new_zeros(*words.shape[:2], 2 * ends.shape[-1])
        spellings.transpose(0, 1)[own["real"]] = torch.cat(ends.unbind(), -1)
        x = self.drop(torch.cat([words, spellings], -1))
        y, _ = self.lstm(x, own["lengths"])
        return self.crf(self.head(y), own["tags"], own["lengths"])


class MusicVoices(Twin):
    def loss(self, batch: Any) -> Any:
        x, target = (torch.from_numpy(part) for part in (batch.x[:-1], batch.x[1:]))
        lengths = torch.from_numpy(batch.lengths) - 1
        count = self.symbols.num_embeddings // VOICES
        turns = torch.arange(len(x))[:, None] % VOICES
        y, _ = self.gru(self.symbols(x + count * turns), lengths)
        y, target = rows_of(torch.arange(len(x))[:, None] < lengths, y, target)
        return F.cross_entropy(self.head(y), target)


class MusicRoll(Twin):
    def loss(self, batch: Any) -> Any:
        x, target = (torch.from_numpy(part) for part in (batch.x[:-1], batch.x[1:]))
        lengths = torch.from_numpy(batch.lengths) - 1
        y, _ = self.gru(x, lengths)
        y, target = rows_of(torch.arange(len(x))[:, None] < lengths, y, target)
        loss = F.binary_cross_entropy_with_logits(self.head(self.drop(y)), target)
        return loss * music.KEYS


class Translation(Twin):
    def loss(self, batch: Any) -> Any:
        x, lengths = torch.from_numpy(batch.x), torch.from_numpy(batch.lengths)
        target, counts = torch.from_numpy(batch.y), torch.from_numpy(batch.y_lengths) - 1
        memory, ends = self.encoder(self.source(x), lengths)
        state = torch.tanh(self.bridge(torch.cat(ends.unbind(), -1)))
        h, _ = self.decoder(self.target(target[:-1]), counts, state[None])
        context = self.attention(h, memory, lengths)
        real = torch.arange(len(target) - 1)[:, None] < counts
        both, target = rows_of(real, torch.cat([h, context], -1), target[1:])
        z = self.output(self.drop(torch.tanh(self.mix(both))))
        return F.cross_entropy(z, target, label_smoothing=0.1)


class Forecasting(Twin):
    ways = ("padded",)  # no row is shorter than another

    def loss(self, batch: Any) -> Any:
        x, target, counts = map(torch.from_numpy, batch)
        y, _ = self.gru(x, torch.full((x.shape[1],), len(x)))
        y, target = rows_of(counts, y, target)
        mean, log_variance = self.head(y).split(1, -1)
        errors = (target - mean).square() * torch.exp(-log_variance)
        return (log_variance + errors).mean() / 2 + math.log(2 * math.pi) / 2


class Reinforcement(Twin):
    """The usual way cuts a rollout into episodes; "steps" goes through it in a loop of cells."""

    ways = ("packed", "padded", "steps")

    def __init__(self, model: dict[str, Any], way: str, length: int, seed: int) -> None:
        super().__init__(model, way)
        self.rollouts = reinforcement.Rollouts({"gru": self, "heads": self.act}, length, seed)

    # What `play` does with a stream, and with the heads.

    def stream(self, rows: int) -> Reinforcement:
        return self

    @property
    def state(self) -> Any:
        return self.h[None].numpy().copy()

    @state.setter
    def state(self, h: Any) -> None:
        self.h = torch.tensor(h[0])

    def reset(self, rows: Any) -> None:
        self.h[rows] = 0

    def step(self, x: Any) -> Any:
        self.h = torch.gru_cell(torch.from_numpy(x), self.h, *self.weights)
        return self.h

    def act(self, h: Any) -> Any:
        return self.heads(h).numpy()

    def next_batch(self, number: int) -> Any:
        self.weights = tuple(self.gru.layer._flat_weights)
        with torch.inference_mode():
            return self.rollouts(number)

    def loss(self, batch: Any) -> Any:
        if self.way == "steps":
            y, actions, returns = self.by_steps(batch)
        else:
            cut = {n: torch.from_numpy(a) for n, a in reinforcement.episodes_of(batch).items()}
            y, _ = self.gru(cut["x"], cut["lengths"], cut["h"])
            y, actions, returns = rows_of(cut["real"], y, cut["action"], cut["target"])
        out = self.heads(y)
        logits, values = out[:, :3], out[:, 3]
        log_p = F.log_softmax(logits, -1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        advantage = returns - values
        chosen = log_p.gather(1, actions[:, None])[:, 0]
        actor = -(advantage.detach() * chosen).mean()
        critic = reinforcement.VALUE * advantage.square().mean()
        return actor + critic - reinforcement.ENTROPY * entropy.mean()

    def by_steps(self, batch: Any) -> tuple[Any, Any, Any]:
        keep = torch.from_numpy(~batch["resets"][..., None]).float().unbind()
        h, found = torch.from_numpy(batch["h"])[0], []
        weights = tuple(self.gru.layer._flat_weights)
        for x, kept in zip(torch.from_numpy(batch["x"]).unbind(), keep, strict=True):
            h = torch.gru_cell(x, h * kept, *weights)
            found.append(h)
        returns = torch.from_numpy(reinforcement.returns_of(batch)).flatten()
        return torch.cat(found), torch.from_numpy(batch["action"]).flatten(), returns

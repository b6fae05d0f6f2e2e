"""PyTorch's DistributedDataParallel around the drop-in modules: two processes, gloo. FOLDER."""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

import rnnkern as rk
import rnnkern.torch

SIZE = 2


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 6, 2), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def train(model, rows):
    """Three steps on some rows of batches of eight."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        rng = np.random.default_rng(step)
        x, y = (
            torch.from_numpy(rng.normal(size=(5, 8, n)).astype(np.float32))[:, rows] for n in (3, 2)
        )
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def one_of_two(rank, folder):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=SIZE)
    torch.manual_seed(rank)  # DDP sends the parameters of rank 0
    model = Tagger()
    if rank == 0:
        torch.save(model.state_dict(), f"{folder}/start.pt")
    assert rk.torch.accelerate(model).replaced == ["rnn"]
    model = DistributedDataParallel(model)
    train(model, slice(rank * 4, rank * 4 + 4))
    torch.save(model.module.state_dict(), f"{folder}/rank{rank}.pt")
    destroy_process_group()


def main():
    folder = sys.argv[1]
    torch.multiprocessing.spawn(one_of_two, (folder,), SIZE)
    alone = Tagger()
    alone.load_state_dict(torch.load(f"{folder}/start.pt"))
    train(alone, slice(0, 8))  # PyTorch's own LSTM, on all rows
    ranks = [torch.load(f"{folder}/rank{rank}.pt") for rank in range(SIZE)]
    for name, values in alone.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        # Three steps of 0.1 times gradients below 1, whose sums of 40 terms differ in their order:
        # 3 * 0.1 * 40 * 6e-8.
        assert (ranks[0][name] - values).abs().max() <= 7.2e-7
    print("DDP agrees")


if __name__ == "__main__":
    main()

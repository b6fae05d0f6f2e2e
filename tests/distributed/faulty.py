"""A run that is saved after each step, and what ends it: FOLDER STEPS [FAULT RANK STEP]."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from cases import Regression, digest, draw

import rnnkern as rk
from rnnkern.distributed import Communicator

SHARDS = 4


def fail(fault, folder):
    (folder / "fault").write_text(str(time.time()))
    if fault == "raise":
        raise RuntimeError("this rank fails")
    if fault == "exit":
        sys.exit(3)
    if fault == "hang":
        time.sleep(3600)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "term":  # to one rank alone
        os.kill(os.getpid(), signal.SIGTERM)


def main():
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    fault, rank, at = (*sys.argv[3:], None, 0, 0)[:3]
    comm = Communicator(shards=SHARDS, timeout=4 if fault == "hang" else None)
    layer = rk.GRU(3, 6, 2, dropout=0.3, seed=1)
    run = Regression(layer)
    x = [np.ones((n, 3), np.float32) for n in range(1, 12)]
    batches = rk.Batches(x, batch_size=5, seed=0)
    state = {**run.model, "opt": run.opt, "batches": batches}
    path = folder / "run.safetensors"
    if comm.first(path.exists):
        assert comm.restore(path, state) == {"note": "kept"}
    saves, step = 0, int(run.opt.state_dict()["adam.step"])
    with comm.signals():
        while step < steps and comm.stopped is None:
            for batch in batches:
                y = draw(step, *batch.x.shape[:2], 2)

                def gradients(shard, batch=batch, y=y, step=step):
                    its_first = shard.number == comm.rank * SHARDS // comm.size
                    if fault and its_first and (comm.rank, step) == (int(rank), int(at)):
                        fail(fault, folder)
                    return run.gradients(batch.x, y, shard, batch.lengths)

                run.opt.step(map(gradients, comm.shard(batch, run.model)), 1.0, comm=comm)
                step += 1
                if comm.rank == 0:
                    print(f"step {step}", flush=True)
                if step >= steps or comm.stopped is not None:
                    break
                if fault == "none":
                    time.sleep(0.02)  # for a signal to come between steps
                else:
                    comm.save(path, state, {"note": "kept"})
                    saves += 1
    comm.save(path, state, {"note": "kept"})
    if comm.rank == 0:
        print(f"saved after {step} steps", flush=True)
        (folder / f"digest-{step}").write_text(digest(*run.model.values(), run.opt))
    if comm.stopped:
        sys.exit(128 + comm.stopped)


if __name__ == "__main__":
    main()

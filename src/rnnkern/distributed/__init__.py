"""Training over several processes and machines, by MPI: the same bits for any number of ranks.

A `Communicator` cuts a batch into a fixed number of shards, which its ranks share. The optimizer's
``step(..., comm=...)`` adds up their gradients. Needs ``pip install 'rnnkern[mpi]'`` (mpi4py and
MPI) where ``mpiexec`` starts several processes; alone, a script runs without it.

>>> import numpy as np, rnnkern as rk
>>> from rnnkern.distributed import Communicator
>>> comm = Communicator(shards=4)
>>> linear = rk.Linear(3, 2, seed=0)
>>> opt, x, y = rk.SGD(linear, lr=0.1), np.ones((8, 3), np.float32), np.zeros((8, 2), np.float32)
>>> def gradients(shard):
...     out, tape = linear.forward(x[shard.rows])
...     loss, dout = rk.mean_squared_error(out, y[shard.rows])
...     shard.report(shard.share * loss)
...     return linear.backward(tape, np.float32(shard.share) * dout)
>>> opt.step((gradients(shard) for shard in comm.shard(8)), max_norm=1.0, comm=comm).applied
True
>>> len(comm.reported)
8
"""

from .communicator import MOST_SHARDS, Communicator, Shard
from .launch import end_all_on_error, launched_size

__all__ = ["MOST_SHARDS", "Communicator", "Shard"]

if launched_size() > 1:  # others may wait for this process before it has a communicator
    end_all_on_error()

"""JAX: recurrent layers as functions, run by rnnkern on the CPU.

`rnn`, `lstm`, `gru` and `min_gru` take parameters as a dict, `recurrent` any layer of rnnkern; they
work under `jax.jit`, `jax.grad` and `jax.vmap`. `rnnkern.jax.nnx` has the modules for flax. Needs
``pip install 'rnnkern[jax]'``.

>>> import jax, jax.numpy as jnp
>>> import rnnkern.jax as rkj
>>> params = rkj.init(jax.random.key(0), "gru", 3, 5)
>>> y, h = rkj.gru(params, jnp.ones((7, 2, 3)))
>>> gradients = jax.grad(lambda p: rkj.gru(p, jnp.ones((7, 2, 3)))[0].sum())(params)
"""

try:
    import jax.ffi as _ffi  # noqa: F401
except ImportError as error:
    raise ImportError(f"rnnkern.jax needs JAX: pip install 'rnnkern[jax]' ({error})") from error

from .calls import set_tape_memory
from .functions import from_layer, gru, init, lstm, min_gru, recurrent, rnn, to_layer

__all__ = [
    "from_layer",
    "gru",
    "init",
    "lstm",
    "min_gru",
    "recurrent",
    "rnn",
    "set_tape_memory",
    "to_layer",
]

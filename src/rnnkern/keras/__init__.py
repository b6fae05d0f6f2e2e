"""Keras: its recurrent layers, from layers and files into rnnkern and back.

`from_keras` makes layers of rnnkern of a Keras layer, a model or a file of Keras 2 or 3; `to_keras`
makes a Keras layer of one of rnnkern; a `Recurrent` is called as the Keras layer is. Reading files
takes h5py, but not Keras; `to_keras` takes Keras 3. ``pip install 'rnnkern[keras]'`` brings both.
``import rnnkern`` does not import this package; ``rnnkern.keras`` does when it is first used.

>>> import keras, numpy as np
>>> import rnnkern as rk, rnnkern.keras
>>> theirs = keras.layers.LSTM(5, return_sequences=True)
>>> theirs.build((None, None, 3))
>>> lstm = rk.keras.from_keras(theirs)
>>> y, (h, c) = lstm(np.ones((2, 7, 3), np.float32))
>>> y.shape
(2, 7, 5)
"""

from .export import to_keras
from .load import from_keras
from .recurrent import Recurrent

__all__ = ["Recurrent", "from_keras", "to_keras"]

"""Print a hash of all that each cell's forward and backward return, to compare wheels with."""

import hashlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from helpers import KINDS
from test_bits import CASES, bits

for kind in KINDS:
    found = hashlib.sha256()
    for case in CASES.values():
        for dtype in (np.float32, np.float64):
            layer, problem = case.make(kind, dtype, 7, 17, 9, 5)
            for name, value in sorted(bits(layer, problem, case.clip).items()):
                found.update(name.encode())
                found.update(value if isinstance(value, bytes) else np.float64(value).tobytes())
    print(kind, found.hexdigest())

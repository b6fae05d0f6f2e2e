"""Settings of every test."""

import gc
import os

import hypothesis
import pytest

# NumPy's products run on one thread, here and in child processes: its idle threads spin, on cores
# that pytest's other workers need. NumPy reads this when it is imported, after this file.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# OpenMP's idle threads sleep for the same reason: between two calls of a test, they would spin. It
# is read when the library is loaded, and decides how threads wait, not what they do.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The same examples on every run, so that a failure is a change's and not luck's.
hypothesis.settings.register_profile("rnnkern", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("rnnkern")


def pytest_collection_finish():
    """Keep the collected tests, which stay until the end, from each pass of the garbage collector.

    They are so many objects that a pass over them takes longer than most tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _caches():
    """Plans of calls do not depend on the machine that runs the tests."""
    from rnnkern import _core

    _core.set_caches(1 << 20, 32 << 20, 8)

"""Settings of every test."""

import os

import hypothesis

# NumPy's products run on one thread, here and in child processes: its idle threads spin, on cores
# that pytest's other workers need. NumPy reads this when it is imported, after this file.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# The same examples on every run, so that a failure is a change's and not luck's.
hypothesis.settings.register_profile("rnnkern", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("rnnkern")

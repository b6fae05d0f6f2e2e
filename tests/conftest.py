"""Settings of every test."""

import hypothesis

# The same examples on every run, so that a failure is a change's and not luck's.
hypothesis.settings.register_profile("rnnkern", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("rnnkern")

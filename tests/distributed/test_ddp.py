"""PyTorch's own data parallelism works with the drop-in modules."""

from __future__ import annotations

from conftest import HERE, run


def test_two_processes_of_gloo_train_as_one(tmp_path):
    done = run(None, HERE / "ddp.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "DDP agrees\n"

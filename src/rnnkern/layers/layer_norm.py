"""What the layers with layer norm share."""

from __future__ import annotations

from typing import Any

__all__ = ["alone"]


def alone(layer_norm: str, **others: Any) -> None:
    """Refuse options that layer norm does not combine with: those that are not None or False."""
    for name, value in others.items():
        if value is not None and value is not False:
            raise ValueError(f"layer_norm: expected None with {name}={value!r}, got {layer_norm!r}")

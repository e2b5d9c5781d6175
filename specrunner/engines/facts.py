"""What several adapters state of a loaded model, in the same words."""

from __future__ import annotations

import json
from typing import Any


def describe_device(device: Any) -> str:
    """Return `cpu`, or `cuda` with the device's name; `device` is a torch device, or its name."""
    import torch

    device = torch.device(device)
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device.type)


def list_ids(stated: Any) -> set[int]:
    """Return token ids that a model's configuration states as one, as several, or not at all."""
    return set(stated) if isinstance(stated, list | tuple) else set() if stated is None else {stated}


def make_plain(value: Any) -> Any:
    """Return `value` if JSON can hold it, else its text."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value

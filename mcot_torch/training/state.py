"""Checkpoint files: tensors and JSON in one safetensors file, written under a temporary name and renamed into place.

Nothing is ever unpickled, and a file that exists is complete. What a file claims is checked before it is used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mcot_torch.errors import InputError
from mcot_torch.system.files import READ_ERRORS, read_tensors, save_tensors

__all__ = ["check_history", "check_tensors", "load_state", "save_state", "unreadable", "with_prefix"]


def save_state(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and JSON as one safetensors file that appears whole or not at all."""
    save_tensors(path, tensors, {"json": json.dumps(meta)})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and JSON that `save_state` wrote, or None where there is no file.

    Raises:
        InputError: the file cannot be read; the message names the file and what is wrong.
    """
    if not path.exists():
        return None
    try:
        tensors, metadata = read_tensors(path)
        meta = json.loads(metadata["json"])
        if not isinstance(meta, dict):
            raise ValueError("its JSON is no object")
        check_history(meta.get("history", []))
        return tensors, meta
    except READ_ERRORS as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: object) -> InputError:
    """The error message for a checkpoint that cannot be restored."""
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{path}: the saved state cannot be read ({reason}); delete it to begin the stage again")


def check_history(history: object) -> None:
    """Raise `ValueError` unless `history` is a list of lines of numbers, each with the whole number of its step."""
    if not isinstance(history, list):
        raise ValueError("its history is no list")
    for line in history:
        if not (isinstance(line, dict) and isinstance(line.get("step"), int)):
            raise ValueError("its history holds a line without a step")
        if not all(isinstance(x, float) or (isinstance(x, int) and 0 <= x < 2**63) for x in line.values()):
            raise ValueError("its history holds what is no number")


def check_tensors(tensors: dict[str, Tensor], model: nn.Module | None) -> None:
    """Raise `ValueError` unless every number is finite and the optimiser's slots have the shapes of the weights."""
    shapes = [] if model is None else [p.shape for p in model.parameters()]
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{key} holds a number that is not finite")
        if key.startswith("optimizer."):
            index = int(key.split(".")[1])
            if not 0 <= index < len(shapes) or value.shape not in ((), shapes[index]):
                raise ValueError(f"{key} does not fit the weights")


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under the rest of their names."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

"""Files of a reasoner: a folder with model.safetensors (weights and buffers) and model.json (kind and settings)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mcot_torch.errors import InputError
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.system.files import READ_ERRORS, read_json, read_tensors, save_tensors, tensor_shapes, write_text

__all__ = ["load_reasoner", "save_reasoner"]

_LARGEST_SIZE, _LARGEST_WINDOW = 2_000_000, 65_536  # of a model that is read from a file
# dtypes as safetensors names them
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}


def save_reasoner(reasoner: Reasoner, folder: str | Path) -> None:
    """Write a reasoner to a folder, which is made if needed; each file appears whole or not at all.

    Raises:
        InputError: the reasoner does not keep a constructor argument, so that no file can hold it; nothing is written.
    """
    settings = json.dumps({"kind": reasoner.kind, **reasoner.settings()}, indent=2)
    save_tensors(Path(folder) / "model.safetensors", reasoner.state_dict())
    write_text(Path(folder) / "model.json", settings)


def load_reasoner(folder: str | Path, device: torch.device | str = "cpu") -> Reasoner:
    """Read a reasoner that `save_reasoner` wrote.

    Nothing is unpickled, and nothing is allocated before the shapes and dtypes in the header of model.safetensors are known
    to be those of the model that model.json describes. A class outside the package must have been imported.

    Args:
        folder: holds model.safetensors and model.json.
        device: where the reasoner is put.

    Raises:
        InputError: one line that names the file and what is wrong.
    """
    folder = Path(folder)
    settings = read_json(folder / "model.json")
    try:
        found = tensor_shapes(folder / "model.safetensors")
        _check_settings(settings, len(found))
        with torch.device("meta"):
            expected = {key: (tuple(x.shape), _DTYPES[x.dtype]) for key, x in _build(settings).state_dict().items()}
        if expected != found:
            key = next(iter(k for k in {**expected, **found} if expected.get(k) != found.get(k)))
            raise InputError(f"{folder}: model.safetensors does not fit model.json at {key}")
        model, (tensors, _) = _build(settings), read_tensors(folder / "model.safetensors")
    except FileNotFoundError:
        raise InputError(f"{folder}: no model here (model.safetensors is missing)") from None
    except InputError as error:
        raise error if str(error).startswith(str(folder)) else InputError(f"{folder}: {error}") from None
    except (*READ_ERRORS, AttributeError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{folder}: the model cannot be read ({type(error).__name__}: {error})") from None
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"{folder}: model.safetensors holds a non-finite number in {key}")
    model.load_state_dict(tensors)
    if wrong := model.check_buffers():
        raise InputError(f"{folder}: model.safetensors {wrong}")
    return model.to(device)


def _build(settings: dict[str, Any]) -> Reasoner:
    """Model that `settings` describe, its weights not yet read."""
    if settings["kind"] not in Reasoner.kinds:
        kind = str(settings["kind"])[:40]
        raise InputError(f"model.json: no class is known for the kind {kind!r}; import the module that defines it")
    return Reasoner.kinds[settings["kind"]](**{key: value for key, value in settings.items() if key != "kind"})


def _check_settings(settings: dict[str, Any], n_tensors: int) -> None:
    """Refuse sizes that no header vouches for: a window makes tables of its own, a layer costs time before any memory."""
    inner = settings.get("model", settings)
    if not isinstance(inner, dict) or inner.get("kind") == "student":
        raise InputError("model.json describes no model")
    for key, value in {**settings, **inner}.items():
        most = n_tensors if key == "n_layers" else _LARGEST_WINDOW if key == "window" else _LARGEST_SIZE
        if not isinstance(value, (str, bool, dict)) and not (isinstance(value, int) and 1 <= value <= most):
            raise InputError(f"model.json: {key} is {str(value)[:40]}; it must be a whole number from 1 to {most:,}")

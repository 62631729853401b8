"""manifest.json of a run: which code, machine, configuration and graph made it, by which commands, and in how much time."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mcot_torch.errors import InputError
from mcot_torch.runs.config import Config, config_hash
from mcot_torch.system.files import read_json, write_text
from mcot_torch.version import __version__

__all__ = ["FIELDS", "FORMAT", "check_format", "new_manifest", "read_manifest", "write_manifest"]

FORMAT = 2
"""Format of the run folders that this version writes. A manifest of version 0.1 names no format, which means 1."""
FIELDS = {
    "mcot_torch": str,
    "python": str,
    "packages": dict,
    "seed": int,
    "config_hash": str,
    "graph": str,
    "device": str,
    "threads": int,
    "created": str,
    "calls": list,
    "seconds": dict,
    "pieces": dict,
}
"""Field of a manifest -> its type."""


def new_manifest(old: dict[str, Any], config: Config, command: list[str], graph: str, device: str) -> dict[str, Any]:
    """The manifest of a run that a command starts or continues.

    Args:
        old: the manifest that the run has; empty for a new run.
        config: its configuration.
        command: the command line.
        graph: fingerprint of its graph.
        device: what it runs on, in words.
    """
    packages = ("torch", "numpy", "scipy", "lightning", "safetensors", "jsonargparse")
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    machine = {
        "mcot_torch": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "device": device,
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }
    manifest = {
        "format": FORMAT,
        **machine,
        "seed": config.seed,
        "config_hash": config_hash(config),
        "graph": graph,
        "created": old.get("created", now),
        "calls": [*old.get("calls", []), {"command": command, "time": now}],
        "seconds": old.get("seconds", {}),
        "pieces": old.get("pieces", {}),
    }
    for key, value in machine.items():  # a run that went on elsewhere says so
        if old and old.get(key) != value:
            manifest["calls"][-1].setdefault("before", {})[key] = old.get(key)
    return manifest


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest.json, whole or not at all."""
    write_text(path, json.dumps(manifest, indent=2))


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest.json and check that every field is of its type.

    Raises:
        InputError: a file that cannot be read, a format that this version does not know, or a field that is missing or of another type.
    """
    manifest = read_json(path)
    _refuse_unknown_format(path, manifest)
    for key, kind in FIELDS.items():
        if not isinstance(manifest.get(key), kind):
            raise InputError(
                f"{path}: {key} is {str(manifest.get(key))[:40]!r}, not a {kind.__name__}; the run is damaged or of an "
                "older version: train it again under another --name"
            )
    if not all(isinstance(x, (int, float)) for x in manifest["seconds"].values()):
        raise InputError(f"{path}: seconds holds what is no number")
    if not all(isinstance(x, dict) for x in manifest["pieces"].values()):
        raise InputError(f"{path}: pieces holds what is no list of files")
    return manifest


def check_format(path: Path) -> None:
    """Raise `InputError` if a manifest.json is of a format that this version does not know.

    The check comes before anything else of a run folder is read, because a newer version may write all of it otherwise. A
    manifest that is missing or damaged in another way is left to `read_manifest`.
    """
    try:
        manifest = read_json(path)
    except InputError:
        return
    _refuse_unknown_format(path, manifest)


def _refuse_unknown_format(path: Path, manifest: dict[str, Any]) -> None:
    found = manifest.get("format", 1)
    if type(found) is not int or not 1 <= found <= FORMAT:  # JSON's true is an int for Python
        raise InputError(
            f"{path}: format is {json.dumps(found)[:40]}, and this version of mcot_torch ({__version__}) reads whole numbers "
            f"from 1 to {FORMAT}; use a newer mcot_torch, or another run folder"
        )


def _git_commit() -> str | None:
    """The commit of the checkout that the package runs from, if it runs from one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    result = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or None

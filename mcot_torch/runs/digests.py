"""Digests of the files of a finished stage: the manifest notes them, so that a file of another run is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mcot_torch.errors import InputError
from mcot_torch.system.files import digest

__all__ = ["FILES", "check_digests", "stage_digests"]

FILES = ("model.json", "model.safetensors", "edges.csv", "graph.npz", "metrics.json")
"""Files that a finished stage may consist of."""


def stage_digests(stage: Path, metrics: str) -> dict[str, str]:
    """File name -> SHA-256 digest of each file in the folder of a stage, with metrics.json about to hold `metrics`."""
    found = {file: digest(stage / file) for file in FILES if (stage / file).exists()}
    return {**found, "metrics.json": hashlib.sha256(metrics.encode()).hexdigest()}


def check_digests(stage: Path, noted: Mapping[str, str]) -> None:
    """Check that each file of a finished stage is the file that this run wrote.

    Args:
        stage: folder of the stage.
        noted: file name -> digest, as the manifest notes it.

    Raises:
        InputError: a file that is missing, added, or of another run.
    """
    for file in FILES:
        path = stage / file
        if digest(path) != noted.get(file, ""):
            raise InputError(
                f"{path} is not the file that this run wrote there: its digest is not the manifest's; put that one "
                f"back, or delete {stage} and let the train.py command of manifest.json make it again"
            )

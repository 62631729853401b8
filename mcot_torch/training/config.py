"""Options of devices, precision, threads and checkpoints, free of torch so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["TrainerConfig"]


@dataclass
class TrainerConfig:
    """Device, precision, threads, and how often states are saved."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """ "auto" means CUDA where there is one, else the CPU."""
    devices: int = 1
    """Processes that train together, each with a GPU or CPU thread of its own. Results depend on the number of processes,
    because each draws from its own random stream."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How several devices share the training; "auto" is "ddp" for more than one."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Of the network; bf16-mixed (its speed is untested on a GPU) costs about a tenth on the hard steps. Exact values are float64."""
    threads: int = 1
    """CPU threads of torch; more than one is often slower for models this small."""
    deterministic: bool = False
    """Bitwise the same numbers on a GPU too, at some cost."""
    save_every: float = 20.0
    """Seconds between two saved states of a stage."""
    progress: bool = True
    """Show how far a stage is: a bar on a terminal, a line a minute elsewhere."""

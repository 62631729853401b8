"""How the machine is used: devices, precision, threads. Apart from training.py, so that parsing needs no Lightning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["TrainerConfig"]


@dataclass
class TrainerConfig:
    """Devices, precision, threads, and how often states are saved.

    Attributes:
        accelerator: "auto" means CUDA where there is one, else the CPU.
        devices: number of devices.
        strategy: Lightning strategy, such as "ddp"; "auto" for one device.
        precision: of the network; the chain mathematics is float64 always.
        threads: CPU threads of torch; more than one is often slower for models this small.
        deterministic: bitwise the same numbers on a GPU too, at some cost.
        save_every: seconds between two saved states of a stage.
        progress: show progress bars on a terminal.
    """

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    threads: int = 1
    deterministic: bool = False
    save_every: float = 20.0
    progress: bool = True

"""The device of a process: the CPU, or of several CUDA devices the one of this rank."""

from __future__ import annotations

from pathlib import Path

import torch

from mcot_torch.errors import InputError
from mcot_torch.system.progress import console
from mcot_torch.system.ranks import local_rank, local_world_size

__all__ = ["pick_device"]


def pick_device(accelerator: str, devices: int = 1) -> torch.device:
    """The device that a process computes on.

    Args:
        accelerator: "cpu", "cuda", or "auto" for CUDA where there is a CUDA device, else the CPU.
        devices: number of devices of the run; with more than one, each rank gets a device of its own.

    Raises:
        InputError: CUDA is asked for and not there, or there are fewer CUDA devices than ranks on this machine.
    """
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise InputError("trainer.accelerator is cuda, and torch sees no CUDA device; use auto or cpu")
    use_cuda = accelerator != "cpu" and torch.cuda.is_available()
    if accelerator == "auto" and not use_cuda and Path("/proc/driver/nvidia/version").exists():
        console.print(
            "[yellow]This machine has an NVIDIA driver, but torch is a build without CUDA: the GPU stays idle. "
            "Install torch from the CUDA index named on pytorch.org.[/yellow]"
        )
    if not use_cuda:
        return torch.device("cpu")
    here = 1 if devices == 1 else local_world_size()
    there = torch.cuda.device_count()
    if here > there:
        raise InputError(
            f"trainer.devices is {devices}, and torch sees {there} CUDA device{'s' * (there > 1)}; use at most as many, or "
            "trainer.accelerator: cpu"
        )
    return torch.device("cuda", 0 if here == 1 else local_rank())

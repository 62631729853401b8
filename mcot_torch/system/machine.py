"""How this process uses the machine: CPU threads and memory, settled in one place before any work."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

__all__ = ["compiled", "keep_memory", "settle", "torch_settings"]

F = TypeVar("F", bound=Callable[..., object])

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_KEPT = 2**25  # bytes; glibc takes no larger M_MMAP_THRESHOLD
_MOST_KEPT = 2**30


def settle(threads: int) -> None:
    """Use so many CPU threads of torch, and keep freed memory for the next tensor."""
    torch.set_num_threads(threads)
    keep_memory()


@contextmanager
def torch_settings(threads: int, deterministic: bool) -> Iterator[None]:
    """Use so many CPU threads of torch, and deterministic kernels if asked; both are restored at the end.

    cuBLAS is deterministic only with a workspace that `CUBLAS_WORKSPACE_CONFIG` names before CUDA is first used.
    """
    n_threads, was_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    torch.set_num_threads(threads)
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace or ":4096:8"
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
        if deterministic:
            torch.use_deterministic_algorithms(was_deterministic, warn_only=warned_only)
            if workspace is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def keep_memory() -> bool:
    """Let the C library keep freed blocks of up to 32 MiB, 1 GiB in all, instead of giving each back to the system.

    A step of training frees and allocates the same tensors as the last one. By default every one above some hundred KiB
    comes fresh from the system, and touching its pages for the first time costs more than computing what is written there.

    Returns:
        Whether the C library is one that can be told so (glibc).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        (mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT), mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT))
    )


def compiled(function: F, device: torch.device) -> F:
    """`function` compiled by torch for tensors of fixed shapes; as it is, with a warning, where a first trial of the compiler fails."""
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a compiler that is missing or broken makes of it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        warnings.warn(f"nothing is compiled, and the numbers are those of a run without ({reason})", stacklevel=2)
        return function
    return torch.compile(function, dynamic=False)  # type: ignore[return-value]

"""Several processes (ranks) that train one model: who this one is, its share of the work, what all must agree on.

Every rank runs the same program. Walkers are shared out and their counts summed; each rank takes the gradient on its own
rows of the counts, or on its own paths, and `average_gradients` averages them. Only the first rank writes and prints. With
one process every function here gives back what it was given, so that no stage asks how many there are.

The processes come from `launch.py`, from torchrun or from srun; `joined` makes a group of them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mcot_torch.errors import InputError
from mcot_torch.system.progress import console
from mcot_torch.system.randomness import generator

__all__ = [
    "any_of",
    "average_gradients",
    "barrier",
    "broadcast",
    "from_first",
    "is_first",
    "joined",
    "largest",
    "local_rank",
    "local_world_size",
    "mean",
    "on_first_rank",
    "own_rows",
    "rank",
    "rank_generator",
    "read_slurm",
    "share",
    "stream",
    "total",
    "whole",
    "world_size",
]

T = TypeVar("T")
P = ParamSpec("P")

_PATIENCE = timedelta(days=7)  # ranks wait for the first one's evaluation or search; a dead one is noticed otherwise


# ---- who and how many -------------------------------------------------------------------------------------------


def world_size() -> int:
    """Number of ranks; 1 outside a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process in the group, 0 outside one."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def local_rank() -> int:
    """Number of this process among those of its machine: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """Number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


@contextmanager
def joined(device: torch.device, devices: int) -> Iterator[None]:
    """Inside, the `devices` processes are one group; nothing happens where there is one.

    `read_slurm` comes before. Small CPU tensors are exchanged over gloo, also between GPUs: what ranks agree on costs no device synchronisation.

    Raises:
        InputError: torchrun or srun started another number of processes.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != devices:
        raise InputError(
            f"trainer.devices is {devices}, but {started} processes were started; use --trainer.devices {started}"
        )
    if devices == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    console.quiet = not is_first()
    try:
        yield
    finally:
        dist.destroy_process_group()


def read_slurm(devices: int) -> None:
    """Put srun's variables under torchrun's names, where srun and not torchrun started the ranks.

    Raises:
        InputError: srun without --ntasks-per-node.
    """
    if "WORLD_SIZE" in os.environ or devices == 1 or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return
    from lightning.fabric.plugins.environments import SLURMEnvironment

    try:
        slurm = SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:  # --ntasks without --ntasks-per-node
        raise InputError(f"srun: {error}") from None
    os.environ |= {
        "WORLD_SIZE": str(slurm.world_size()),
        "RANK": str(slurm.global_rank()),
        "LOCAL_RANK": str(slurm.local_rank()),
        "GROUP_RANK": str(slurm.node_rank()),
        "LOCAL_WORLD_SIZE": str(slurm.world_size() // int(os.environ.get("SLURM_STEP_NUM_NODES", 1))),
        "MASTER_ADDR": slurm.main_address,
        "MASTER_PORT": str(slurm.main_port),
    }


# ---- shares -----------------------------------------------------------------------------------------------------


def stream() -> tuple[str | int, ...]:
    """What a rank adds to the name of a generator, so that its walks are its own; nothing where there is one process."""
    return ("rank", rank()) if world_size() > 1 else ()


def own_rows(n: int) -> slice:
    """This rank's part of n rows; the parts follow one another and differ in length by at most 1."""
    return slice(n * rank() // world_size(), n * (rank() + 1) // world_size())


def share(n: int) -> int:
    """How many of n walkers are this rank's."""
    return own_rows(n).stop - own_rows(n).start


def rank_generator(seed: int, *name: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """`generator(seed, *name)` with a random stream of this rank's own."""
    return generator(seed, *name, *stream(), device=device)


# ---- agreement --------------------------------------------------------------------------------------------------


def total(x: Tensor) -> Tensor:
    """Sum over the ranks; every rank gets the same bits."""
    return _reduced(x, dist.ReduceOp.SUM)


def mean(x: Tensor) -> Tensor:
    """Mean over the ranks."""
    return total(x) / world_size() if world_size() > 1 else x


def largest(x: Tensor) -> Tensor:
    """Maximum over the ranks."""
    return _reduced(x, dist.ReduceOp.MAX)


def _reduced(x: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, operation)
    return x


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks, in one all-reduce for each dtype.

    A parameter without a gradient counts as gradient 0 on this rank; it stays without one if no rank has any.
    """
    if world_size() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    for dtype in dict.fromkeys(p.dtype for p in trained):
        same = [p for p in trained if p.dtype == dtype]
        known = torch.tensor([float(p.grad is not None) for p in same], dtype=dtype, device=same[0].device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in same]
        averaged = mean(torch.cat([known, *(g.reshape(-1) for g in gradients)]))
        known, *parts = averaged.split([len(same), *(p.numel() for p in same)])
        for p, part, any_known in zip(same, parts, known.tolist(), strict=True):
            p.grad = part.view_as(p).clone() if any_known else None


def any_of(*flags: bool) -> list[bool]:
    """For each flag, whether any rank raised it."""
    if world_size() == 1:
        return list(flags)
    return largest(torch.tensor(flags, dtype=torch.uint8)).bool().tolist()


def whole(part: Tensor, n: int) -> Tensor:
    """(n, ...) tensor of which each rank gives its `own_rows(n)`."""
    if world_size() == 1:
        return part
    full = part.new_zeros(n, *part.shape[1:])
    full[own_rows(n)] = part
    return total(full)


def from_first(make: Callable[[], T], device: torch.device | str = "cpu") -> T:
    """What `make()` returns on the first rank, on all ranks, its tensors on each one's `device`."""
    if world_size() == 1:
        return make()
    packed: list[bytes | None] = [None]
    if is_first():
        result, buffer = make(), io.BytesIO()
        torch.save(result, buffer)
        packed = [buffer.getvalue()]
    dist.broadcast_object_list(packed, 0, device=torch.device("cpu"))
    assert packed[0] is not None
    # made a moment ago by a process of this run, no file: this is no door for foreign pickles
    return result if is_first() else torch.load(io.BytesIO(packed[0]), map_location=device, weights_only=False)


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors, in place, by those of the first rank."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def on_first_rank(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function whose work the first rank does for all of them.

    Tensors of the result lie on the device of the generator among the arguments.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        given = (*args, *kwargs.values())
        device = next((x.device for x in given if isinstance(x, torch.Generator)), torch.device("cpu"))
        return from_first(lambda: function(*args, **kwargs), device)

    return wrapper


def barrier() -> None:
    """Wait until every rank is here."""
    any_of(False)

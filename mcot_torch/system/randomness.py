"""Where randomness comes from: a generator for each piece of work, a function of the run's seed and the piece's name.

A run that is killed and continued needs no saved generator states: round 57 of PPO draws from
`generator(seed, "ppo", 57)` whether or not the process that ran round 56 is still alive.
"""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator"]


def generator(seed: int, *name: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is hashed from (seed, *name).

    Different names give other streams, never shifted copies of one another (docs/specification.md#random-numbers).
    """
    digest = hashlib.sha256(repr((int(seed), *name)).encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)

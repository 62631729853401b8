"""Does a configuration fit into memory? Told before any work, from the largest tables that each stage must hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from mcot_torch.algorithms.search import STEPS_BETWEEN_LOOKS, resolve_search
from mcot_torch.errors import InputError
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners.support import lists_pay
from mcot_torch.runs.config import Config

__all__ = ["check_memory", "memory", "tables"]

_GIB = 2**30


def check_memory(config: Config, n_states: int, degree: int, scales: Scales, device: torch.device) -> None:
    """Refuse what cannot fit; `degree` is the largest number of possible steps of a state.

    Raises:
        InputError: one line with the key, its value, what it takes and what there is.
    """
    there = memory(device)
    for key, value, size in tables(config, n_states, degree, scales):
        if size > there:
            raise InputError(
                f"{key} is {value}; with {n_states:,} states that takes at least {size / _GIB:,.1f} GiB of memory, and the "
                f"{device.type} has {there / _GIB:,.1f} GiB: use a smaller one"
            )


def tables(config: Config, n_states: int, degree: int, scales: Scales) -> Iterator[tuple[str, str, int]]:
    """(key that sets it, its value, bytes) of tables that a stage holds at once: a lower bound, never the whole."""
    reasoner, pretrain, ppo, distill = config.reasoner, config.pretrain, config.ppo, config.distill
    n, window = n_states, reasoner.window
    listed = degree if lists_pay(degree, n) else n  # steps of a context after the cut
    if reasoner.kind == "transformer":
        parameters = (1 if reasoner.tied else 2) * n * reasoner.width + 12 * reasoner.n_layers * reasoner.width**2
        # in float32: a weight, its gradient, the two moments of Adam
        yield "reasoner.width", f"{reasoner.width:,} in {reasoner.n_layers:,} layers", 16 * parameters
    walks = resolve_search(config.search, scales).walks or 1
    rounds = 1 if config.search.mode == "rl" else scales.n_clusters
    yield (
        "search.walks",
        f"{walks:,}",
        rounds * walks * (n + 8 * STEPS_BETWEEN_LOOKS),
    )  # states visited; the steps that search walks at once
    yield "distill.label_walks", f"{distill.label_walks:,}", 8 * n * distill.label_walks
    yield "evaluation.walks", f"{config.evaluation.walks:,}", 8 * config.evaluation.walks
    recorded = distill.transitions or 0
    if window == 1:
        # of each pair of states, PPO: two supports, the known hard steps, a float64 reward; pretraining: a support, and at the cut
        # a float64 prediction and whether it stays
        yield "graph.family", config.graph.family, (11 if "ppo" in config.stages else 10) * n**2
        if "ppo" in config.stages:  # counts, gains, losses and log-probabilities in float32
            yield "graph.family", config.graph.family, 16 * n * listed
        for key, transitions, length in (
            ("pretrain.transitions", pretrain.transitions, pretrain.path_length),
            ("ppo.transitions", ppo.transitions, ppo.path_length),
            ("distill.transitions", recorded, distill.path_length),
        ):
            yield key, f"{transitions:,} in paths of {length:,}", 8 * transitions // length  # where each path starts
    else:
        contexts = pretrain.batch_size * window  # float32 logits and log-probabilities of each
        yield "pretrain.batch_size", f"{pretrain.batch_size:,} of {window:,} states", 8 * contexts * n
        # float64 log-probabilities of the policy and the reference, rewards; counts, gains and losses
        yield "ppo.transitions", f"{ppo.transitions:,}", 36 * ppo.transitions * listed
        yield "distill.transitions", f"{recorded:,}", 8 * recorded
        yield "evaluation.contexts", f"{config.evaluation.contexts:,}", 8 * config.evaluation.contexts * window


def memory(device: torch.device) -> int:
    """Bytes of the device: of the GPU, or of this machine as far as its control group allows."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(physical, int(text)) if text.isdecimal() else physical

"""The process reward model M_s: a score for each step of reasoning, 1 for a known hard step and 0 for any other.

`search` returns the PRM of the hard steps that it found. `PRM.simulated` is for experiments on what an imperfect reward
does; it is the one place outside pretraining and evaluation that reads a graph.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcot_torch.errors import InputError
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.support import Policy, entries_at
from mcot_torch.system.files import write_text
from mcot_torch.system.randomness import generator

__all__ = ["PRM", "avoid", "guidance", "tilt", "tilt_strength"]

_FULL_ROW = 0.98  # share of a row that its hard steps may take at ε_max before they are no rare steps


class PRM:
    """Scores of steps over N states.

    Attributes:
        n_states: N.
        edges: (n, 2) int64 on the CPU, the steps taken to be hard.
        noise: standard deviation of the error added to every score at every call.
        votes: (n,) int64, rounds of search that voted for each edge; None where the edges are not from search.
    """

    def __init__(
        self, n_states: int, edges: Tensor, noise: float = 0.0, seed: int = 0, votes: Tensor | None = None
    ) -> None:
        self.n_states = n_states
        self.edges = edges.to("cpu", torch.int64).reshape(-1, 2)
        self.noise = noise
        self.votes = votes
        self._generator = generator(seed, "prm", "noise")

    @classmethod
    def simulated(
        cls,
        graph: MetastableGraph,
        false_positive: float = 0.0,
        false_negative: float = 0.0,
        noise: float = 0.0,
        seed: int = 0,
    ) -> PRM:
        """The true hard steps with errors, drawn once for each edge.

        Args:
            graph: gives the truth.
            false_positive: probability that an easy step is taken for a hard one.
            false_negative: probability that a hard step is missed.
            noise: standard deviation of the error that every score carries at every call.
            seed: of the errors.
        """
        draw = np.random.default_rng([seed, 0xE0])
        flip = draw.random(graph.n_edges) < np.where(graph.hard, false_negative, false_positive)
        taken = graph.hard != flip
        edges = np.stack([graph.sources[taken], graph.indices[taken]], axis=1)
        return cls(graph.n_states, torch.from_numpy(edges), noise, seed)

    def scores(self, device: torch.device | str = "cpu", draw: torch.Generator | None = None) -> Tensor:
        """(N, N) float64: 1 on the known hard steps, 0 elsewhere, plus this call's noise, drawn from `draw` if given."""
        if (
            self.noise == 0
        ):  # made where it is used: PPO asks once a round, and copying N² numbers takes longer than the round
            return self.mask(device).double()
        matrix = self.mask().double()
        source = draw or self._generator
        noise = torch.randn(matrix.shape, dtype=torch.float64, generator=source, device=source.device)
        matrix += self.noise * noise.cpu()
        return matrix.to(device)

    def mask(self, device: torch.device | str = "cpu") -> Tensor:
        """(N, N) bool: the known hard steps."""
        matrix = torch.zeros(self.n_states, self.n_states, dtype=torch.bool, device=device)
        edges = self.edges.to(device)
        matrix[edges[:, 0], edges[:, 1]] = True
        return matrix

    def save(self, path: str | Path) -> None:
        """Write the edges as text, a step a line."""
        lines = "".join(f"{x},{y}\n" for x, y in self.edges.tolist())
        write_text(Path(path), f"# hard steps over {self.n_states} states\nsource,target\n{lines}")

    @classmethod
    def load(cls, path: str | Path, n_states: int) -> PRM:
        """Read what `save` wrote; `InputError` names file and line."""
        path = Path(path)
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: the hard steps found by search cannot be read ({error})") from None
        if lines[:2] != [f"# hard steps over {n_states} states", "source,target"]:
            raise InputError(f"{path}: does not begin as the hard steps found by search over {n_states} states do")
        edges = []
        for number, line in enumerate(lines[2:], start=3):
            parts = line.split(",")
            if len(parts) != 2 or not all(p.isdecimal() and len(p) < 12 and int(p) < n_states for p in parts):
                raise InputError(f"{path} line {number}: {line[:40]!r} is not a pair of states below {n_states}")
            edges.append([int(p) for p in parts])
        return cls(n_states, torch.tensor(edges, dtype=torch.int64).reshape(-1, 2))


def tilt_strength(hard_mass: Tensor, scales: Scales) -> Tensor:
    """Λ_x = 1/λ_x, the gain in log-odds that takes a row's hard steps from ε to ε_max.

    Specification, "Regularised form" (docs/specification.md#regularised-form).

    With W_x = q/ε and q the hard mass of the row, Λ_x = log[ε_max (1 − W_x ε) / (ε (1 − W_x ε_max))]. A row whose steps
    would fill it at ε_max (above `_FULL_ROW`; a true one has W_x ε_max < 1) does not hold rare steps only but a false
    positive of the PRM: it gets log(ε_max/ε).

    Args:
        hard_mass: (...,) reference probability of the known hard steps of each row.
        scales: gives ε and ε_max.

    Returns:
        (...,) float64, in nats.
    """
    raised = hard_mass * (scales.epsilon_max / scales.epsilon)
    plain = math.log(scales.epsilon_max / scales.epsilon)
    exact = plain + torch.log1p(-hard_mass.clamp_max(_FULL_ROW)) - torch.log1p(-raised.clamp_max(_FULL_ROW))
    return torch.where(raised < _FULL_ROW, exact, plain)


def tilt(log_p: Tensor, scores: Tensor, known: Tensor, scales: Scales) -> Tensor:
    """The maximiser of E_p[r] − λ_x KL(p ‖ p_ref): log p ∝ log p_ref + Λ_x r, the optimum that PPO climbs to.

    With p_ref = p^ε and every hard step of the row known, it is p^{ε_max} exactly.

    Args:
        log_p: (..., S) log p_ref.
        scores: (..., S) rewards r.
        known: (..., S) bool, the known hard steps.
        scales: gives ε and ε_max.
    """
    mass = torch.where(known, log_p.exp(), 0.0).sum(-1)
    return (log_p + tilt_strength(mass, scales)[..., None] * scores).log_softmax(-1)


def guidance(prm: PRM, scales: Scales, device: torch.device | str = "cpu") -> Policy:
    """PRM-guided generation: a policy that raises the known hard steps to ε_max while the reasoner walks."""
    known = prm.mask(device)

    def policy(states: Tensor, log_p: Tensor, listed: Tensor | None) -> Tensor:
        hard = entries_at(known, states, listed)
        scores = entries_at(prm.scores(device), states, listed) if prm.noise else hard.double()
        return tilt(log_p, scores, hard, scales)

    return policy


def avoid(edges: Tensor, reasoner: Reasoner) -> Policy:
    """A policy that never takes the given steps: walks that stay among the easy ones."""
    known = torch.zeros(reasoner.n_states, reasoner.n_states, dtype=torch.bool, device=reasoner.device)
    known[edges[:, 0], edges[:, 1]] = True

    def policy(states: Tensor, log_p: Tensor, listed: Tensor | None) -> Tensor:
        return log_p.masked_fill(entries_at(known, states, listed), -torch.inf).log_softmax(-1)

    return policy

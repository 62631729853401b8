"""The parity task of Figures 2 and 3: paths through `LiftedUnits`, what they compute, what can be seen from them.

The graphs are those of `mcot_torch.graphs.families.lifts`. A path is drawn from bits x in {0, 1}^K: unit k makes the detour over e_k if and
only if x_k = 1. α(e_k) = −1 where e_k is a hard step, that is where p_k = 1, and all other steps act as the identity: so the
value of the path is Π (−1)^{p_k x_k}. The path is valid, and looks the same, for every p.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mcot_torch.errors import InputError
from mcot_torch.graphs.families.lifts import ENTRY, SIDE, UP, LiftedUnits
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.logic.actions import LogicalActions
from mcot_torch.logic.groups import Group, cyclic

__all__ = ["all_bits", "ball", "concept_actions", "local_view", "parity_values", "task_paths"]

_DIRECT = ((0, ENTRY), (0, SIDE))  # (lane, vertex)
_DETOUR = ((0, ENTRY), (0, UP), (1, ENTRY), (1, UP), *_DIRECT)
_MOST_BITS = 20


def all_bits(n_units: int) -> Tensor:
    """(2^K, K) int64, every x in {0, 1}^K (and every p), in the order of the binary numbers; K at most 20."""
    if not 1 <= n_units <= _MOST_BITS:
        raise InputError(f"n_units is {n_units}; all 2^K bit strings are listed for K = 1 .. {_MOST_BITS}")
    places = torch.arange(n_units - 1, -1, -1)
    return (torch.arange(2**n_units)[:, None] >> places) & 1


def task_paths(units: LiftedUnits, bits: Tensor) -> Tensor:
    """(B, 6K + 1) int64 paths from the start to the goal, one a row of (B, K) bits, filled up with -1.

    Unit k takes 6 steps if x_k = 1, a u a' u' a s, and 2 if x_k = 0, a s.
    """
    if bits.ndim != 2 or bits.shape[1] != units.n_units or ((bits != 0) & (bits != 1)).any():
        raise InputError(f"bits have shape {tuple(bits.shape)}; they are 0 or 1, (B, {units.n_units})")
    pieces = torch.full((2, len(_DETOUR)), -1)
    for x, stations in enumerate((_DIRECT, _DETOUR)):
        pieces[x, : len(stations)] = torch.tensor([int(units.state(0, lane, v)) for lane, v in stations])
    shift = 2 * units.cluster_size * torch.arange(units.n_units)[:, None]
    states = pieces[bits.cpu()]  # (B, K, 6)
    states = torch.where(states >= 0, states + shift, -1).flatten(1)
    states = torch.cat([states, torch.full((len(bits), 1), units.goal)], dim=1)  # (B, 6K + 1)
    order = torch.argsort((states < 0).int(), dim=1, stable=True)  # padding to the end
    return states.gather(1, order).to(bits.device)


def concept_actions(
    units: LiftedUnits, graph: MetastableGraph, group: Group | None = None, element: int | Tensor = 1
) -> LogicalActions:
    """The actions of the graph of a concept: `element` on each e_k that is a hard step of it, the identity elsewhere.

    Args:
        units: the construction.
        graph: `units.graph(p)`.
        group: None for Z_2, where element 1 is −1. Concepts stay uncorrelated in any group with elements that a homomorphism
            to {1, −1} sends to −1, as transpositions of S_n.
        element: of all units, or (K,) one each; never the identity, by which p_k could not matter.
    """
    group = cyclic(2) if group is None else group
    chosen = torch.as_tensor(element).expand(units.n_units).tolist()
    if group.identity in chosen:
        raise InputError(
            f"element is {group.names[group.identity]}, the identity, so that a hidden bit would not matter"
        )
    hard = set(map(tuple, graph.sparse_edges.tolist()))
    detours = [(int(x), int(y)) for x, y in units.detours]
    return LogicalActions.from_map(
        graph, group, {edge: g for edge, g in zip(detours, chosen, strict=True) if edge in hard}
    )


def parity_values(concepts: ArrayLike, bits: ArrayLike) -> NDArray[np.int8]:
    """(P, B) int8, Π (−1)^{p_k x_k} of (P, K) concepts p and (B, K) bits x: what the paths compute, in closed form."""
    odd = np.asarray(concepts, dtype=np.float32) @ np.asarray(bits, dtype=np.float32).T % 2  # exact below 2^24
    return np.where(odd == 0, 1, -1).astype(np.int8)


def ball(graph: MetastableGraph, states: ArrayLike, radius: float) -> NDArray[np.int64]:
    """The states within `radius` steps of `states`, ascending; an edge counts in both directions, a rare one as well.

    Args:
        graph: any graph.
        states: int64, of any shape; -1 is skipped, so that padded paths will do.
        radius: a whole number of steps, or math.inf for the whole graph.
    """
    inside = np.zeros(graph.n_states, dtype=bool)
    if math.isinf(radius):
        return np.arange(graph.n_states)
    given = np.unique(np.asarray(states))
    inside[given[given >= 0]] = True
    for _ in range(int(radius)):
        grown = inside.copy()
        grown[graph.indices[inside[graph.sources]]] = True
        grown[graph.sources[inside[graph.indices]]] = True
        inside = grown
    return np.flatnonzero(inside)


def local_view(graph: MetastableGraph, states: ArrayLike, radius: float) -> str:
    """What a learner with local access sees: a digest of the rows p^ε(·|x), x in the ball of `radius` around `states`.

    Equal texts mean equal balls and rows that agree to the last bit: the information I_p of the paper for the accesses path
    (radius 0), neighbourhood (radius r) and global (math.inf). It holds no cluster labels: these follow from all rows, not from
    a few.
    """
    seen = ball(graph, states, radius)
    mark = np.zeros(graph.n_states, dtype=bool)
    mark[seen] = True
    of_them = mark[graph.sources]
    digest = hashlib.sha256(seen.tobytes())
    for array in (graph.sources, graph.indices, graph.probabilities):
        digest.update(array[of_them].tobytes())
    return digest.hexdigest()

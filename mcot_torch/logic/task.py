"""The logical task of a run: which group acts on the hard steps of its graph.

Specification, "Logical task" (docs/specification.md#logical-task).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mcot_torch.errors import InputError
from mcot_torch.graphs.build import DEFAULT_EPSILON, GraphConfig
from mcot_torch.graphs.families.lifts import LiftedUnits
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.logic.actions import LogicalActions
from mcot_torch.logic.constructions import concept_actions
from mcot_torch.logic.groups import Group, cyclic, symmetric
from mcot_torch.system.randomness import generator

__all__ = ["LogicConfig", "build_actions", "named_group"]


@dataclass
class LogicConfig:
    """What hard steps compute along a path (Section 5); the models then return its value too."""

    group: str | None = None
    """The group that acts: Z2, Z5, ... (cyclic) or S3, S4, ... (permutations); null for none."""
    actions: Literal["random", "concept"] = "random"
    """ "random" draws an element for each hard step; "concept" (family lift) lets those of the hidden bits act, as element 1."""
    seed: int = 0
    """Of the random elements."""
    paths: int = 2000
    """Labelled paths, each with its value, from which the actions are learned."""


def named_group(name: str) -> Group:
    """Z5 or S3 as a group.

    Raises:
        InputError: `name` is neither Z nor S with a number, or the number is too large.
    """
    match = re.fullmatch(r"([ZS])(\d{1,6})", name)
    if match is None:
        raise InputError(f"logic.group is {name!r}; write Z2, Z5, ... (cyclic) or S3, S4, ... (permutations), or null")
    try:
        return (cyclic if match[1] == "Z" else symmetric)(int(match[2]))
    except InputError as error:
        raise InputError(f"logic.group is {name!r}: {error}") from None


def build_actions(config: LogicConfig, graph_config: GraphConfig, graph: MetastableGraph) -> LogicalActions | None:
    """The actions that `config` puts on `graph`, which `graph_config` built; None where it names no group.

    Raises:
        InputError: a group that does not exist or is trivial, or `concept` without a group or on a graph without hidden bits.
    """
    if config.group is None:
        if config.actions == "concept":
            raise InputError(
                "logic.actions is concept, but logic.group is null, so that nothing acts; set logic.group: Z2"
            )
        return None
    group = named_group(config.group)
    if group.order == 1:
        raise InputError(f"logic.group is {config.group!r}, of one element, so that every path has the same value")
    if config.actions == "random":
        return LogicalActions.random(graph, group, generator(config.seed, "actions"))
    if graph_config.family != "lift":
        raise InputError(
            f"logic.actions is concept, but graph.family is {graph_config.family}, whose hard steps have no hidden bits; use "
            "logic.actions: random, or graph.family: lift"
        )
    c = graph_config
    epsilon = DEFAULT_EPSILON if c.epsilon is None else c.epsilon
    return concept_actions(LiftedUnits(c.n_clusters, c.cluster_size, epsilon, c.radius, c.seed), graph, group)

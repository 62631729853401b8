"""From a configuration to a graph: `GraphConfig`, `build_graph` and the resolution of ε_max."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from mcot_torch.errors import InputError
from mcot_torch.graphs.families.clustered import Cluster, Entries, Shape, clustered_graph
from mcot_torch.graphs.families.lifts import LiftedUnits
from mcot_torch.graphs.formats.edge_list import read_edge_list
from mcot_torch.graphs.formats.interchange import load_graph
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.puzzles import (
    propositional_rewriting,
    river_crossing,
    rooms_with_doors,
    sliding_puzzle,
    tower_of_hanoi,
)

__all__ = ["DEFAULT_EPSILON", "GraphConfig", "build_graph", "resolve_epsilon_max"]

DEFAULT_EPSILON = 0.002
_MOST_STATES = 2_000_000
# c of ε_max = c/M, at most 1 (docs/specification.md#largest-scale-of-hard-steps): ε_max is exactly 0.03 at M = 32
_EPSILON_MAX_TIMES_M = 0.96
_LARGEST_HARD_MASS = 0.5  # the default ε_max leaves every state at least half of its easy steps

_PUZZLES = ("hanoi", "rooms", "sliding", "rewriting", "river")

Family = Literal[
    "circulant",
    "ring",
    "bidirectional_ring",
    "complete",
    "path",
    "random_regular",
    "hanoi",
    "rooms",
    "sliding",
    "rewriting",
    "river",
    "lift",
    "edge_list",
    "saved",
]


@dataclass
class GraphConfig:
    """Which state graph to reason on."""

    family: Family = "circulant"
    """How clusters are joined (circulant, ring, bidirectional_ring, complete, path, random_regular), or a puzzle (hanoi,
    rooms, sliding, rewriting, river), or lift (n_clusters units of 2 cluster_size states with a hidden bit each, Section 5),
    or a file: edge_list (CSV or TSV) or saved (the graph.npz of a run, GraphML, Matrix Market)."""
    n_clusters: int = 10
    """K, number of clusters of a synthetic family."""
    cluster_size: int = 32
    """M, states a cluster of a synthetic family."""
    epsilon: float | None = None
    """Probability a step of a hard edge of weight 1; null for 0.002, or for a file's own value."""
    epsilon_max: float | None = None
    """Probability a step to which tuning raises hard edges; null for 0.96 / M, at most half of the graph's limit."""
    jumps: list[int] = field(default_factory=lambda: [1, 2, -1])
    """circulant: cluster k is joined to k + jump mod K; distinct and non-zero mod K (the default needs K >= 4)."""
    cluster: Cluster = "random_regular"
    """What a cluster is inside: random_regular, complete, or cycle (mixes slowly: A1 fails)."""
    degree: int = 4
    """Neighbours a state in a random_regular cluster."""
    n_out: int | None = None
    """States of a cluster at which hard steps leave it (A2); null for as few as d_out allows."""
    d_out: int = 1
    """Most hard steps out of one state (A2)."""
    out_degree: int = 3
    """random_regular family: clusters that each cluster leads to."""
    weights: list[float] | None = None
    """Weight of each hard step out of a cluster, in the order of the jumps; null for 1 each."""
    entries: Entries = "single"
    """single: all hard steps into a cluster end at one state (A5); free: each at a random one."""
    seed: int = 0
    """Seed of the synthetic families' random choices."""
    n_discs: int = 5
    """hanoi: number of discs, 2 to 10."""
    n_hard_discs: int = 2
    """hanoi: how many of the largest discs are hard to move."""
    n_rows: int = 3
    """rooms: rows of rooms."""
    n_columns: int = 3
    """rooms: columns of rooms."""
    room_size: int = 5
    """rooms: cells along the side of a room."""
    formula: str = "~(p & (q | r))"
    """rewriting: the formula that is rewritten, of variables, ~, &, | and brackets."""
    max_leaves: int = 4
    """rewriting: most occurrences of variables in a formula, 2 to 8."""
    concept: list[int] | None = None
    """lift: the hidden bits, such as [1, 0, 1], one a unit; null to draw them from the seed."""
    radius: int = 0
    """lift: how many steps from the ports of a unit its hidden bit does not show."""
    path: str | None = None
    """edge_list or saved: the file; relative to the working directory."""
    clusters_path: str | None = None
    """edge_list: file of state, cluster; null to find clusters by the threshold."""
    threshold: float | None = None
    """edge_list without clusters_path: steps less probable than this are hard; null for the largest gap in log-probability."""


def build_graph(config: GraphConfig) -> MetastableGraph:
    """The graph that `config` names, at its ε, validated.

    Raises:
        InputError: one line that names the key as `graph.key`, its value, the rule and the way out; for a file, the file.
    """
    _check(config)
    if config.family == "edge_list" or config.family == "saved":  # not `in`: mypy narrows only this
        graph = _from_file(config)
    else:
        epsilon = DEFAULT_EPSILON if config.epsilon is None else config.epsilon
        try:
            if config.family not in _PUZZLES and config.n_clusters * config.cluster_size > _MOST_STATES:
                raise InputError(
                    f"n_clusters times cluster_size is {config.n_clusters * config.cluster_size:,}; "
                    f"the families are built for at most {_MOST_STATES:,} states"
                )
            if config.family == "hanoi":
                graph = tower_of_hanoi(config.n_discs, config.n_hard_discs, epsilon)
            elif config.family == "rooms":
                graph = rooms_with_doors(config.n_rows, config.n_columns, config.room_size, epsilon)
            elif config.family == "sliding":
                graph = sliding_puzzle(epsilon)
            elif config.family == "rewriting":
                graph = propositional_rewriting(config.formula, config.max_leaves, epsilon)
            elif config.family == "river":
                graph = river_crossing(epsilon)
            elif config.family == "lift":
                units = LiftedUnits(config.n_clusters, config.cluster_size, epsilon, config.radius, config.seed)
                graph = units.graph(units.random_concept() if config.concept is None else config.concept)
            else:
                graph = clustered_graph(
                    config.n_clusters,
                    config.cluster_size,
                    epsilon,
                    config.jumps,
                    shape=config.family,
                    cluster=config.cluster,
                    degree=config.degree,
                    n_out=config.n_out,
                    d_out=config.d_out,
                    out_degree=config.out_degree,
                    weights=config.weights,
                    entries=config.entries,
                    seed=config.seed,
                )
        except InputError as error:  # these messages begin with the argument's name, which is the key's
            raise InputError(f"graph.{error}") from None
    resolve_epsilon_max(config, graph)
    return graph


def resolve_epsilon_max(config: GraphConfig, graph: MetastableGraph) -> float:
    """ε_max of `graph`: the configured one, or 0.96 / M, at most half of the graph's limit 1 / max W.

    Raises:
        InputError: ε_max outside (0, 1), ε_max·max W >= 1, or ε not below ε_max.
    """
    limit = graph.epsilon_limit
    if config.epsilon_max is None:
        value = min(_EPSILON_MAX_TIMES_M / graph.cluster_size, _LARGEST_HARD_MASS * limit)
    else:
        value = float(config.epsilon_max)
        if not 0.0 < value < 1.0:
            raise InputError(f"graph.epsilon_max is {value}; it is a probability a step and must lie in (0, 1)")
        if not value < limit:
            raise InputError(
                f"graph.epsilon_max is {value:g}, and times the largest hard-step weight W = {1 / limit:g} of a state that is "
                f"{value / limit:g}; it must be below 1: use epsilon_max < {limit:g}"
            )
    if not graph.epsilon < value:
        where = (
            "" if config.epsilon_max is not None else f" = 0.96 / {graph.cluster_size} states, capped at half the limit"
        )
        raise InputError(
            f"graph.epsilon is {graph.epsilon:g}, not below epsilon_max {value:g}{where}; lower graph.epsilon or raise "
            f"graph.epsilon_max (below {min(limit, 1.0):g})"
        )
    return value


def _check(config: GraphConfig) -> None:
    """Keys that are wrong whatever the graph turns out to be."""
    if config.family not in get_args(Family):
        raise InputError(f"graph.family is {config.family!r}; it is one of {', '.join(get_args(Family))}")
    if config.epsilon is not None and not 0.0 < config.epsilon < 1.0:
        raise InputError(f"graph.epsilon is {config.epsilon}; it is a probability a step and must lie in (0, 1)")
    if config.family in ("edge_list", "saved"):
        if config.path is None:
            raise InputError(f"graph.path is missing; the family {config.family} reads a file: set graph.path to it")
    elif config.path is not None:
        raise InputError(
            f"graph.path is {config.path!r}, but the family {config.family} reads no file; set graph.family to edge_list "
            "or saved, or drop graph.path"
        )
    if config.family == "lift" and config.n_clusters < 1:
        raise InputError(f"graph.n_clusters is {config.n_clusters}; the family lift needs at least 1 unit")
    if config.concept is not None and config.family != "lift":
        raise InputError(f"graph.concept is {config.concept}, but only the family lift uses it; drop it")
    for key in ("clusters_path", "threshold"):
        value = getattr(config, key)
        if value is not None and config.family != "edge_list":
            raise InputError(f"graph.{key} is {value!r}, but only the family edge_list uses it; drop it")


def _from_file(config: GraphConfig) -> MetastableGraph:
    """The graph of an edge list or of `MetastableGraph.save`, at the configured ε if there is one."""
    assert config.path is not None
    if config.family == "saved":
        graph = load_graph(config.path)
    else:
        clusters = None if config.clusters_path is None else Path(config.clusters_path)
        try:
            graph = read_edge_list(Path(config.path), clusters, config.threshold)
        except InputError as error:
            # its messages begin with the file, except those about the argument threshold
            raise InputError(f"graph.{error}" if str(error).startswith("threshold ") else str(error)) from None
    if config.epsilon is None:
        return graph
    try:
        return graph.with_epsilon(config.epsilon)
    except InputError as error:
        raise InputError(f"graph.{error}") from None


assert set(get_args(Shape)) < set(get_args(Family))

"""The construction of Figures 2 and 3, sentence by sentence, against dictionaries and a breadth-first search."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mcot_torch.chains import hitting_time
from mcot_torch.errors import InputError
from mcot_torch.graphs import GraphConfig, TaskConfig, build_graph, build_task
from mcot_torch.graphs.families.lifts import LiftedUnits
from mcot_torch.logic import all_bits, ball, concept_actions, cyclic, local_view, parity_values, symmetric, task_paths
from mcot_torch.sampling.walks import StepTable, walk_paths

CASES = [(1, 8, 0, 0), (3, 16, 0, 1), (2, 24, 1, 0), (3, 32, 1, 5), (2, 64, 2, 0)]  # K, M, ρ, seed


def rows(graph):
    """state -> {head: probability}."""
    table = {x: {} for x in range(graph.n_states)}
    for x, y, p in zip(graph.sources.tolist(), graph.indices.tolist(), graph.probabilities.tolist(), strict=True):
        table[x][y] = p
    return table


def slow_ball(table, states, radius):
    """Breadth first over edges in both directions."""
    beside = {x: set(row) for x, row in table.items()}
    for x, row in table.items():
        for y in row:
            beside[y].add(x)
    inside = set(states)
    for _ in range(radius):
        inside |= {y for x in inside for y in beside[x]}
    return sorted(inside)


def build(k, m, rho, seed, epsilon=0.02):
    return LiftedUnits(k, m, epsilon, rho, seed)


@pytest.mark.parametrize("case", CASES)
def test_the_base_graph(case):
    units = build(*case)
    pairs = {frozenset(edge) for edge in units.base.tolist()}
    assert len(pairs) == 2 * units.cluster_size  # simple
    assert (np.bincount(units.base.ravel()) == 4).all()
    assert {frozenset((0, 1)), frozenset((0, 2))} <= pairs  # u and s are next to a


@pytest.mark.parametrize("case", CASES)
def test_rare_edges_have_probability_epsilon_and_are_hard_where_p_is_1(case):
    k = case[0]
    units = build(*case)
    for p in itertools.product((0, 1), repeat=k):
        graph = units.graph(p)
        names, hard = graph.names, {(graph.names[x], graph.names[y]) for x, y in graph.sparse_edges.tolist()}
        rare = {
            (names[x], names[y])
            for x, row in rows(graph).items()
            for y, q in row.items()
            if q < 0.2  # the others have 1/4 or (1 - ε)/4
        }
        units_edges = {(f"{i}u", f"{i}a'") for i in range(k)} | {(f"{i}u'", f"{i}a") for i in range(k)}
        onward = {(f"{i}s", f"{i + 1}a") for i in range(k - 1)} | {(f"{k - 1}s", "goal.a"), ("goal.s", "0a")}
        assert rare == units_edges | onward
        assert hard == onward | {(x, y) for x, y in units_edges if p[int(x[:-1].rstrip("u"))] == 1}
        table = rows(graph)
        assert all(table[graph.state(x)][graph.state(y)] == 0.02 for x, y in rare)
        assert all(abs(sum(row.values()) - 1) < 1e-15 for row in table.values())
        assert graph.n_clusters == k + sum(p) + 1
        assert [(names[x], names[y]) for x, y in units.detours] == [(f"{i}u", f"{i}a'") for i in range(k)]
        # A5: the entry states are the a's
        assert {names[x] for x in graph.entries} == {"goal.a"} | {f"{i}a" for i in range(k)} | {
            f"{i}a'" for i in range(k) if p[i]
        }


@pytest.mark.parametrize("case", CASES)
def test_lanes_are_parallel_or_cross_out_of_sight(case):
    k, m, rho, _ = case
    units = build(*case)
    base = {frozenset(edge) for edge in units.base.tolist()}
    reach = {v: {v} for v in range(m)}
    for _ in range(rho):
        reach = {v: s | {w for e in base for w in e if e & s} for v, s in reach.items()}
    seen = reach[0] | reach[1] | reach[2]  # within ρ of the ports
    for p in itertools.product((0, 1), repeat=k):
        graph = units.graph(p)
        for i, bit in enumerate(p):
            first = 2 * i * m
            crossings = 0
            for x, row in rows(graph).items():
                if not first <= x < first + 2 * m:
                    continue
                lane, v = divmod(x - first, m)
                easy = [divmod(y - first, m) for y, q in row.items() if q > 0.2]
                assert {frozenset((v, w)) for _, w in easy} == {e for e in base if v in e}  # a lift of H
                for other, w in easy:
                    if other != lane:
                        crossings += 1
                        assert bit == 0
                        assert not {v, w} & seen
            assert (crossings > 0) == (bit == 0)


@pytest.mark.parametrize("case", CASES)
def test_one_class_where_p_is_0_and_never_bipartite(case):
    """A cluster with an odd closed walk and one component has a power of its kernel that is positive everywhere."""
    units = build(*case)
    graph = units.graph([0] * case[0])
    kernel = graph.kernel()
    for cluster in range(graph.n_clusters):
        members = graph.members(cluster)
        block = (kernel[np.ix_(members, members)] > 0.1).astype(float)
        power = np.linalg.matrix_power(block, 1) > 0
        for _ in range(8):  # 2^8 steps
            power = power.astype(float) @ power > 0
        assert power.all()


@pytest.mark.parametrize("case", CASES)
def test_local_views_are_equal_within_rho_and_differ_beyond(case):
    """Rows compared to the last bit, ball by ball, for every p and every path."""
    k, rho = case[0], case[2]
    units = build(*case)
    concepts = list(itertools.product((0, 1), repeat=k))
    tables = {p: rows(units.graph(p)) for p in concepts}
    for path in task_paths(units, all_bits(k)).tolist():
        states = {x for x in path if x >= 0}
        near = {p: {x: tables[p][x] for x in slow_ball(tables[p], states, rho)} for p in concepts}
        assert all(view == near[concepts[0]] for view in near.values())
        far = {p: {x: tables[p][x] for x in slow_ball(tables[p], states, rho + 1)} for p in concepts}
        for p, q in itertools.combinations(concepts, 2):
            assert far[p] != far[q]


@pytest.mark.parametrize("case", CASES)
def test_ball_and_local_view_against_the_slow_version(case):
    k = case[0]
    units = build(*case)
    path = task_paths(units, all_bits(k)[-1:])
    views = {}
    for p in itertools.product((0, 1), repeat=k):
        graph = units.graph(p)
        table = rows(graph)
        for radius in (0, 1, 2, 3, math.inf):
            inside = slow_ball(table, {x for x in path[0].tolist() if x >= 0}, radius if radius < 9 else 200)
            assert ball(graph, path, radius).tolist() == inside
            view = local_view(graph, path, radius)
            content = tuple((x, tuple(table[x].items())) for x in inside)
            assert views.setdefault(view, content) == content  # equal digest, equal content
    assert len(set(views.values())) == len(views)  # equal content, equal digest
    assert sum(len(content) == units.n_states for content in views.values()) >= 2**k  # everything tells all p apart


def test_the_path_makes_the_detour_where_x_is_1():
    units = build(3, 16, 0, 0)
    paths = task_paths(units, torch.tensor([[0, 1, 0], [0, 0, 0], [1, 1, 1]]))
    assert paths.shape == (3, 19)
    told = [" ".join(units.names[x] for x in path if x >= 0) for path in paths.tolist()]
    assert told[0] == "0a 0s 1a 1u 1a' 1u' 1a 1s 2a 2s goal.a"
    assert told[1] == "0a 0s 1a 1s 2a 2s goal.a"
    assert told[2] == " ".join(f"{k}a {k}u {k}a' {k}u' {k}a {k}s" for k in range(3)) + " goal.a"
    for path in paths.tolist():
        assert path == [x for x in path if x >= 0] + [-1] * path.count(-1)
    assert (units.start, units.goal) == (paths[0, 0], paths[2, -1])


@pytest.mark.parametrize("case", CASES)
def test_paths_are_valid_for_every_concept_and_compute_the_parity(case):
    k = case[0]
    units = build(*case)
    bits = all_bits(k)
    paths = task_paths(units, bits)
    computed = []
    for p in itertools.product((0, 1), repeat=k):
        actions = concept_actions(units, units.graph(p))
        assert actions.valid(paths).all()
        signs = 1 - 2 * actions.values(paths)
        assert signs.tolist() == [(-1) ** sum(a * b for a, b in zip(p, x, strict=True)) for x in bits.tolist()]
        computed.append(signs.tolist())
    assert parity_values(bits, bits).tolist() == computed


def test_values_in_a_group_that_does_not_commute():
    """S_3 with another transposition in each unit: products from the left, and their signs are the parity."""
    units = build(3, 16, 0, 0)
    group = symmetric(3)
    swaps = ["213", "132", "321"]
    bits = all_bits(3)
    paths = task_paths(units, bits)
    for p in bits.tolist():
        actions = concept_actions(units, units.graph(p), group, torch.tensor([group.element(g) for g in swaps]))
        for x, value in zip(bits.tolist(), actions.values(paths).tolist(), strict=True):
            images = "123"
            for swap, a, b in zip(swaps, p, x, strict=True):
                images = "".join(swap[int(i) - 1] for i in images) if a * b else images
            assert group.names[value] == images
            inversions = sum(i > j for i, j in itertools.combinations(images, 2))
            assert (-1) ** inversions == (-1) ** sum(a * b for a, b in zip(p, x, strict=True))


def test_the_task_can_be_walked():
    """A walk of the chain at a large ε reaches the goal, and its mean time is the exact one."""
    units = LiftedUnits(2, 8, 0.3, 0, 0)
    graph = units.graph("10")
    exact = hitting_time(graph.to_scipy(), units.start, [units.goal], graph.clusters)
    start = torch.full((4000,), units.start)
    paths = walk_paths(StepTable.from_graph(graph), start, 4000, torch.Generator().manual_seed(0))
    hit = paths == units.goal
    assert hit.any(dim=1).all()
    times = hit.int().argmax(dim=1).double()
    assert abs(times.mean() - exact) < 4 * times.std() / 4000**0.5


def test_the_seed_decides():
    one, again, other = build(2, 16, 0, 3), build(2, 16, 0, 3), build(2, 16, 0, 4)
    assert one.graph("01").fingerprint() == again.graph([0, 1]).fingerprint()
    assert one.graph("01").fingerprint() != other.graph("01").fingerprint()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LiftedUnits(0), "n_units is 0"),
        (lambda: LiftedUnits(2, 7), "cluster_size is 7"),
        (lambda: LiftedUnits(2, 16, 0.0), "epsilon is 0.0"),
        (lambda: LiftedUnits(2, 16, 0.1, -1), "radius is -1"),
        (lambda: LiftedUnits(2, 16, 0.1, 4), "cluster_size is 16, too small for radius 4"),
        (lambda: LiftedUnits(2, 16, 0.1, 0, -2), "seed is -2"),
        (lambda: LiftedUnits(2, 16).graph("1"), "concept is '1'; it has one bit, 0 or 1, for each of 2 units"),
        (lambda: LiftedUnits(2, 16).graph([1, 2]), "concept is '12'"),
        (lambda: task_paths(LiftedUnits(2, 16), torch.tensor([[0, 2]])), "bits have shape (1, 2)"),
        (lambda: task_paths(LiftedUnits(2, 16), torch.tensor([[0]])), "bits have shape (1, 1)"),
        (lambda: concept_actions(LiftedUnits(2, 16), LiftedUnits(2, 16).graph("11"), cyclic(3), 0), "the identity"),
        (lambda: all_bits(40), "n_units is 40"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_family_of_the_configuration():
    """`graph.family: lift` builds the same graph; the concept is drawn from the seed where none is given."""
    config = GraphConfig(
        family="lift", n_clusters=3, cluster_size=16, epsilon=0.02, concept=[1, 0, 1], radius=0, seed=1
    )
    units = LiftedUnits(3, 16, 0.02, 0, 1)
    assert build_graph(config).fingerprint() == units.graph("101").fingerprint()
    drawn = {build_graph(replace(config, concept=None, seed=seed)).n_clusters - 4 for seed in range(20)}
    assert drawn == {0, 1, 2, 3}  # Σ p; each value has probability at least 1/8
    task = build_task(TaskConfig("state:0a", "state:goal.a"), build_graph(config))
    assert (task.start.argmax(), task.target.tolist()) == (units.start, [units.goal])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concept": [1, 0]}, "graph.concept is '10'; it has one bit, 0 or 1, for each of 3 units"),
        ({"n_clusters": 0}, "graph.n_clusters is 0; the family lift needs at least 1 unit"),
        ({"radius": -1}, "graph.radius is -1"),
        ({"cluster_size": 4}, "graph.cluster_size is 4"),
        ({"family": "ring"}, "graph.concept is [1, 0, 1], but only the family lift uses it"),
    ],
)
def test_bad_configurations(changes, words):
    config = GraphConfig(family="lift", n_clusters=3, cluster_size=16, epsilon=0.02, concept=[1, 0, 1])
    with pytest.raises(InputError) as error:
        build_graph(replace(config, **changes))
    assert words in str(error.value)

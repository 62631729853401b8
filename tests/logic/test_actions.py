"""Values of paths against a slow walk over dictionaries; order, padding and validity by hand."""

import itertools

import pytest
import torch

from mcot_torch.errors import InputError
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.puzzles import tower_of_hanoi
from mcot_torch.logic import LogicalActions, cyclic, symmetric
from mcot_torch.sampling.walks import StepTable, walk_paths


def slow_value(graph, group, alpha, psi, path):
    """(r_T or the identity of an empty path, whether the path is valid): sets, dictionaries, and group elements by name."""
    edges = set(zip(graph.sources.tolist(), graph.indices.tolist(), strict=True))
    states = list(itertools.takewhile(lambda x: x >= 0, path))
    valid = bool(states) and all(x == -1 for x in path[len(states) :])
    r = psi[states[0]] if states else group.identity
    for step in itertools.pairwise(states):
        valid = valid and step in edges
        if step in alpha:
            r = int(group.table[alpha[step], r])
    return r, valid


def actions_of(graph, group, seed=0):
    generator = torch.Generator().manual_seed(seed)
    psi = torch.randint(group.order, (graph.n_states,), generator=generator)
    actions = LogicalActions.random(graph, group, generator, psi)
    hard = actions.alpha[torch.from_numpy(graph.hard)].tolist()
    return actions, dict(zip(map(tuple, graph.sparse_edges.tolist()), hard, strict=True)), psi.tolist()


@pytest.mark.parametrize("group", [cyclic(2), cyclic(5), symmetric(3), symmetric(4)])
@pytest.mark.parametrize("graph", [clustered_graph(4, 6, 0.3, seed=1), tower_of_hanoi(4, 2, 0.3)])
def test_values_against_the_slow_version(graph, group):
    actions, alpha, psi = actions_of(graph, group)
    generator = torch.Generator().manual_seed(5)
    start = torch.randint(graph.n_states, (40,), generator=generator)
    paths = walk_paths(StepTable.from_graph(graph), start, 30, generator)
    lengths = torch.randint(1, 32, (40, 1), generator=generator)
    paths = torch.where(torch.arange(31) < lengths, paths, -1)
    assert len({v for p in paths.tolist() for v in itertools.pairwise(p) if v in alpha}) > 5  # hard steps are walked
    expected = [slow_value(graph, group, alpha, psi, path) for path in paths.tolist()]
    assert actions.values(paths).tolist() == [value for value, _ in expected]
    assert actions.valid(paths).all()
    assert all(valid for _, valid in expected)
    running = actions.running_values(paths)
    for t in (0, 7, 30):
        assert torch.equal(running[:, t], actions.values(paths[:, : t + 1]))
    assert torch.equal(actions.values(paths.view(5, 8, 31)).flatten(), actions.values(paths))


def test_steps_that_are_no_edges():
    """Random states: mostly invalid paths, and their values count the edges that are there."""
    graph = clustered_graph(3, 5, 0.1, jumps=(1,), seed=2)
    actions, alpha, psi = actions_of(graph, symmetric(3))
    paths = torch.randint(-1, graph.n_states, (3000, 4), generator=torch.Generator().manual_seed(1))
    expected = [slow_value(graph, actions.group, alpha, psi, path) for path in paths.tolist()]
    assert actions.valid(paths).tolist() == [valid for _, valid in expected]
    proper = (paths.diff(dim=1).abs() * ((paths[:, :-1] < 0) & (paths[:, 1:] >= 0))).sum(1) == 0  # -1 at the end only
    values = actions.values(paths)
    assert values[proper].tolist() == [v for (v, _), ok in zip(expected, proper.tolist(), strict=True) if ok]
    assert 20 < sum(valid for _, valid in expected) < 2900


def test_later_steps_act_from_the_left():
    graph = clustered_graph(3, 5, 0.1, jumps=(1,), seed=2)
    (a, b), (c, d), _ = graph.sparse_edges.tolist()
    group = symmetric(3)
    swap, turn = group.element("213"), group.element("231")
    actions = LogicalActions.from_map(graph, group, {(a, b): swap, (c, d): turn})
    # 1 -> 2 under the swap, then 2 -> 3 under the turn; in the other order 1 would go to 1
    value = actions.values(torch.tensor([a, b, c, d]))
    assert group.names[int(value)] == "321"
    assert group.names[int(group.table[swap, turn])] == "132"


def test_edges_of_states_that_do_not_exist_are_invalid():
    graph = clustered_graph(3, 5, 0.1, jumps=(1,), seed=2)
    actions = LogicalActions.random(graph, cyclic(2), torch.Generator().manual_seed(0))
    x, y = graph.sparse_edges[0].tolist()
    n = graph.n_states
    assert actions.valid(torch.tensor([x, y]))
    for path in ([x - 1, y + n], [x + 1, y - n], [x, n], [n], [-1], [-1, -1], [x, -1, y], [-2, x]):
        assert not actions.valid(torch.tensor(path)), path


def test_random_actions_are_uniform_and_on_hard_steps_only():
    graph = clustered_graph(400, 6, 0.01)
    actions = LogicalActions.random(graph, cyclic(3), torch.Generator().manual_seed(0))
    hard = torch.from_numpy(graph.hard)
    assert (actions.alpha[~hard] == 0).all()
    counts = torch.bincount(actions.alpha[hard], minlength=3)
    # 1,200 draws: standard deviation 16.3
    assert counts.sum() == 1200
    assert (counts - 400).abs().max() < 66


def test_between_gives_the_hops_of_the_meta_chain():
    graph = clustered_graph(5, 6, 0.05, seed=4)
    actions, alpha, _ = actions_of(graph, symmetric(3))
    labels = torch.from_numpy(graph.clusters)
    hops = actions.between(labels)
    expected = {(int(labels[x]), int(labels[y])): g for (x, y), g in alpha.items()}
    assert {(k, m): int(hops[k, m]) for k, m in (hops >= 0).nonzero().tolist()} == expected
    # all clusters but the first put together: then two hard steps lead out of it that need not agree
    with pytest.raises(InputError, match="from cluster 0 to cluster 1 act as"):
        actions.between((labels > 0).long())


@pytest.mark.parametrize(
    ("elements", "psi", "words"),
    [
        ({(0, 0): 1}, None, "action of 0 -> 0 is given, and that is no hard step"),
        ("hard", None, "an action is 9; the elements of the group are 0 .. 1"),
        ({}, torch.zeros(3, dtype=torch.int64), "psi has shape (3,)"),
        ({}, torch.full((15,), -1), "psi is -1"),
    ],
)
def test_bad_actions(elements, psi, words):
    graph = clustered_graph(3, 5, 0.1, jumps=(1,), seed=2)
    if elements == "hard":
        elements = {tuple(graph.sparse_edges[0].tolist()): 9}
    with pytest.raises(InputError) as error:
        LogicalActions.from_map(graph, cyclic(2), elements, psi)
    assert words in str(error.value)

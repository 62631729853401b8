"""The Tower of Hanoi: facts of the Hanoi graph, known since Lucas."""

from itertools import product

import numpy as np
import pytest
from scipy.sparse.csgraph import shortest_path

from mcot_torch.errors import InputError
from mcot_torch.graphs.puzzles import tower_of_hanoi

SIZES = [(2, 1), (3, 1), (3, 2), (4, 2), (5, 2), (5, 4)]


def legal(before, after):
    """Whether one legal move leads from position to position, straight from the rules; smallest disc first."""
    moved = [d for d in range(len(before)) if before[d] != after[d]]
    if len(moved) != 1:
        return False
    (disc,) = moved
    return all(before[d] not in (before[disc], after[disc]) for d in range(disc))


@pytest.mark.parametrize(("n", "j"), SIZES)
def test_counts(n, j):
    graph = tower_of_hanoi(n, j)
    assert graph.n_states == 3**n
    assert graph.n_clusters == 3**j
    assert (graph.cluster_sizes == 3 ** (n - j)).all()
    # the Hanoi graph has 3(3^n - 1)/2 edges; the large discs move as in the graph of j discs, one way for each of its edges
    assert graph.n_edges == 3 * (3**n - 1)
    assert graph.hard.sum() == 3 * (3**j - 1)
    degree = np.diff(graph.indptr)
    assert (degree == 2).sum() == 3  # all discs on one peg
    assert (degree == 3).sum() == 3**n - 3
    assert (graph.hard_weight <= 1).all()


@pytest.mark.parametrize(("n", "j"), [(2, 1), (3, 2), (4, 2)])
def test_edges_follow_the_rules(n, j):
    graph = tower_of_hanoi(n, j)
    edges = {(graph.name(x), graph.name(y)) for x, y in zip(graph.sources, graph.indices, strict=True)}
    names = ["".join(pegs) for pegs in product("ABC", repeat=n)]
    assert edges == {(a, b) for a in names for b in names if legal(a, b)}
    for (x, y), hard in zip(edges_of(graph), graph.hard, strict=True):
        disc = next(d for d in range(n) if x[d] != y[d])
        assert hard == (disc >= n - j)


def edges_of(graph):
    return [(graph.name(x), graph.name(y)) for x, y in zip(graph.sources, graph.indices, strict=True)]


def test_hard_edges_of_two_discs_by_hand():
    # the large disc (second letter) moves between two pegs when the small one stands on the third
    graph = tower_of_hanoi(2, 1)
    found = {(graph.name(x), graph.name(y)) for x, y in graph.sparse_edges}
    assert found == {("CA", "CB"), ("CB", "CA"), ("BA", "BC"), ("BC", "BA"), ("AB", "AC"), ("AC", "AB")}
    assert (graph.entries == -1).all()


@pytest.mark.parametrize(("n", "j"), SIZES)
def test_shortest_solution(n, j):
    graph = tower_of_hanoi(n, j)
    distance = shortest_path(graph.to_scipy(), unweighted=True, indices=graph.state("A" * n))
    assert distance[graph.state("C" * n)] == 2**n - 1
    assert distance.max() == 2**n - 1


def test_names_and_clusters():
    graph = tower_of_hanoi(5, 2)
    state = graph.state("AAABC")
    same = [graph.name(x) for x in graph.members(graph.clusters[state])]
    assert sorted(same) == ["".join(pegs) + "BC" for pegs in product("ABC", repeat=3)]
    assert graph.state("AAAAA") == 0
    assert graph.state("CCCCC") == 242
    assert graph.state("BAAAA") == 1


def test_easy_moves_are_uniform():
    graph = tower_of_hanoi(4, 2, epsilon=0.01)
    kernel = graph.kernel()
    x = graph.state("CABA")  # smallest on C, second on A, third on B, largest on A: the second disc may move to B
    expected = {"AABA": 1 / 3, "BABA": 1 / 3, "CBBA": 1 / 3}
    assert {graph.name(y): kernel[x, y] for y in np.flatnonzero(kernel[x])} == pytest.approx(expected)
    x = graph.state("BBAC")  # both small discs on B: disc 0 to A or C; the third goes to C, the largest cannot
    expected = {"ABAC": 0.99 / 2, "CBAC": 0.99 / 2, "BBCC": 0.01}
    assert {graph.name(y): kernel[x, y] for y in np.flatnonzero(kernel[x])} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n", "j", "message"),
    [
        (1, 1, "n_discs is 1; it must lie in 2 .. 10"),
        (11, 2, "n_discs is 11; it must lie in 2 .. 10"),
        (5, 0, "n_hard_discs is 0; with n_discs 5 it must lie in 1 .. 4"),
        (5, 5, "n_hard_discs is 5; with n_discs 5 it must lie in 1 .. 4"),
    ],
)
def test_errors(n, j, message):
    with pytest.raises(InputError) as error:
        tower_of_hanoi(n, j)
    assert str(error.value).startswith(message)


def test_the_largest_puzzle_is_built():
    assert tower_of_hanoi(10, 9).n_states == 59_049

"""Rooms, sliding puzzle, rewriting and river crossing: rules checked move by move from the names, and known facts."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse.csgraph import shortest_path

from mcot_torch.chains import cluster_laws
from mcot_torch.errors import InputError
from mcot_torch.graphs import GraphConfig, build_graph
from mcot_torch.graphs.puzzles import propositional_rewriting, river_crossing, rooms_with_doors, sliding_puzzle

ROOT = Path(__file__).resolve().parents[2]


def named_edges(graph):
    """(easy, hard) sets of pairs of names, self-loops left out."""
    found = ([], [])
    for x, y, hard in zip(graph.sources, graph.indices, graph.hard, strict=True):
        if x != y:
            found[int(hard)].append((graph.name(x), graph.name(y)))
    return set(found[0]), set(found[1])


def fewest_hard_steps(graph, start, target):
    weight = graph.to_scipy().copy()
    # easy steps cost next to nothing, and there are fewer than a thousand of them on any shortest path
    weight.data = np.where(graph.hard, 1.0, 1e-6)
    return round(shortest_path(weight, indices=graph.state(start))[graph.state(target)])


# ---- rooms ----------------------------------------------------------------------------------------------------------


def where(name, size):
    """Row and column on the whole floor of 'B3 r1c5'."""
    room, cell = name.split()
    row, column = cell[1:].split("c")
    return (ord(room[0]) - ord("A")) * size + int(row) - 1, (int(room[1:]) - 1) * size + int(column) - 1


@pytest.mark.parametrize(("rows", "columns", "size"), [(1, 2, 2), (2, 3, 3), (3, 3, 5), (2, 2, 4)])
def test_rooms_follow_the_floor_plan(rows, columns, size):
    graph = rooms_with_doors(rows, columns, size, 0.01)
    assert (graph.n_states, graph.n_clusters) == (rows * columns * size**2, rows * columns)
    easy, hard = named_edges(graph)
    names = [graph.name(x) for x in range(graph.n_states)]
    near, doors = set(), set()
    for a, b in permutations(names, 2):
        (i, j), (k, m) = where(a, size), where(b, size)
        if abs(i - k) + abs(j - m) == 1:
            if a.split()[0] == b.split()[0]:
                near.add((a, b))
            elif (j if i != k else i) % size == size // 2:
                doors.add((a, b))
    assert easy == near
    assert hard == doors
    assert len(hard) == 2 * (rows * (columns - 1) + columns * (rows - 1))


def test_walk_in_a_room_by_hand():
    graph = rooms_with_doors(1, 2, 3, epsilon=0.1)
    kernel = graph.kernel()
    corner, door = graph.state("A1 r1c1"), graph.state("A1 r2c3")
    assert {graph.name(y): kernel[corner, y] for y in np.flatnonzero(kernel[corner])} == pytest.approx(
        {"A1 r1c1": 0.5, "A1 r1c2": 0.25, "A1 r2c1": 0.25}
    )
    assert {graph.name(y): kernel[door, y] for y in np.flatnonzero(kernel[door])} == pytest.approx(
        {"A1 r2c3": 0.225, "A1 r1c3": 0.225, "A1 r3c3": 0.225, "A1 r2c2": 0.225, "A2 r2c1": 0.1}
    )
    # p^0 is symmetric, so that every cell of a room is as likely as every other
    np.testing.assert_allclose(cluster_laws(graph), 1 / 9, rtol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 3, 5), "n_rows is 0"),
        ((27, 3, 5), "n_rows is 27"),
        ((1, 1, 5), "n_columns is 1"),
        ((2, 2, 1), "room_size is 1"),
    ],
)
def test_rooms_that_cannot_be(sizes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        rooms_with_doors(*sizes)


# ---- sliding puzzle -------------------------------------------------------------------------------------------------


def test_sliding_moves_follow_the_rules():
    graph = sliding_puzzle()
    easy, hard = named_edges(graph)
    names = [graph.name(x) for x in range(graph.n_states)]
    legal = {False: set(), True: set()}
    for name in names:
        board = name.replace("/", "")
        blank = board.index("_")
        for cell in range(6):
            (i, j), (k, m) = divmod(blank, 3), divmod(cell, 3)
            if abs(i - k) + abs(j - m) == 1:
                tiles = list(board)
                tiles[blank], tiles[cell] = tiles[cell], "_"
                after = "".join(tiles)
                legal[j == m == 1].add((name, f"{after[:3]}/{after[3:]}"))
    assert easy == legal[False]
    assert hard == legal[True]


def test_sliding_facts():
    graph = sliding_puzzle()
    assert graph.n_states == 360  # half of 6!, those of even parity
    assert (graph.n_clusters, set(graph.cluster_sizes.tolist())) == (12, {30})
    distance = shortest_path(graph.to_scipy(), unweighted=True, indices=graph.state("123/45_"))
    assert distance.max() == 21  # the hardest position of the 2 x 3 puzzle needs 21 moves
    assert (distance == 21).sum() == 1
    for cluster in range(12):  # easy moves keep the cyclic order of the tiles round the rim
        orders = set()
        for x in graph.members(cluster):
            board = graph.name(int(x)).replace("/", "")
            ring = "".join(board[c] for c in (0, 1, 2, 5, 4, 3)).replace("_", "")
            at = ring.index("1")
            orders.add(ring[at:] + ring[:at])
        assert len(orders) == 1


# ---- rewriting ------------------------------------------------------------------------------------------------------


def truth_table(text):
    names = sorted({c for c in text if c.isalpha()})
    rows = []
    for values in product((0, 1), repeat=len(names)):
        rows.append(eval(text, {"__builtins__": {}}, dict(zip(names, values, strict=True))) & 1)
    return tuple(rows)


def up_to_order(text):
    """A canonical form under commutativity and associativity, from the text alone."""
    import ast

    def read(node):
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.UnaryOp):
            return "~" + read(node.operand)
        op = type(node.op)

        def parts(n):
            return [*parts(n.left), *parts(n.right)] if isinstance(n, ast.BinOp) and type(n.op) is op else [read(n)]

        return "(" + (" & " if op is ast.BitAnd else " | ").join(sorted(parts(node))) + ")"

    return read(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(("formula", "leaves"), [("~(p & (q | r))", 4), ("p | q & r", 5), ("~(p & q & (r | s))", 4)])
def test_rewriting_keeps_the_meaning(formula, leaves):
    graph = propositional_rewriting(formula, leaves)
    names = [graph.name(x) for x in range(graph.n_states)]
    assert {truth_table(name) for name in names} == {truth_table(formula)}
    assert max(sum(c.isalpha() for c in name) for name in names) <= leaves
    forms = [up_to_order(name) for name in names]
    same = np.array(forms)[:, None] == np.array(forms)
    assert (same == (graph.clusters[:, None] == graph.clusters)).all()


def test_rewriting_by_hand():
    graph = propositional_rewriting("~(p & q)", 2, 0.01)
    easy, hard = named_edges(graph)
    swaps = [("~(p & q)", "~(q & p)"), ("~p | ~q", "~q | ~p")]
    laws = [("~(p & q)", "~p | ~q"), ("~(q & p)", "~q | ~p")]
    assert easy == {*swaps, *((b, a) for a, b in swaps)}
    assert hard == {*laws, *((b, a) for a, b in laws)}
    assert graph.kernel()[0, 0] == pytest.approx(0.99 / 2)


def test_distributing_needs_the_form_of_the_law():
    _, hard = named_edges(propositional_rewriting("p & (q | r)", 4))
    assert ("p & (q | r)", "(p & q) | (p & r)") in hard
    assert not [b for a, b in hard if a == "(q | r) & p"]  # the sum must stand on the right
    assert ("(p & r) | (p & q)", "p & (r | q)") in hard


@pytest.mark.parametrize(
    ("formula", "leaves", "message"),
    [
        ("p &", 4, "formula 'p &' cannot be read"),
        ("p + q", 4, "formula 'p + q': 'p + q' is none of"),
        ("p & q & r", 2, "formula 'p & q & r' has 3 variables"),
        ("p & q", 9, "max_leaves is 9"),
        ("p & q", 4, "the graph has 1 cluster"),
    ],
)
def test_formulas_that_cannot_be(formula, leaves, message):
    with pytest.raises(InputError) as error:
        propositional_rewriting(formula, leaves)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


# ---- river ----------------------------------------------------------------------------------------------------------


def test_river_scenes_follow_the_rules():
    graph = river_crossing()
    for x in range(graph.n_states):
        left, boats, right = graph.name(x).split("|")
        west, _, east = boats.partition("~")
        on_left = "F" in west
        boat = (west if on_left else east).replace("F", "").strip(" .")
        assert sorted(left + boat + right) == ["C", "G", "W"]
        assert len(boat) <= 1
        alone = right if on_left else left
        assert "G" not in alone or alone == "G"
    _, hard = named_edges(graph)
    assert ("CW|F.G ~ |", "CW| ~ F.G|") in hard
    assert not [b for a, b in hard if a in ("CGW|F ~ |", "GW|F.C ~ |", "CG|F.W ~ |")]


def test_river_facts():
    graph = river_crossing()
    assert graph.n_clusters == 10  # the ten safe scenes of the classic puzzle
    assert fewest_hard_steps(graph, "CGW|F ~ |", "| ~ F|CGW") == 7  # Alcuin's solution
    meta = np.zeros((10, 10), dtype=np.int64)
    tails, heads = graph.clusters[graph.sparse_edges].T
    meta[tails, heads] = 1
    start, end = graph.clusters[[graph.state("CGW|F ~ |"), graph.state("| ~ F|CGW")]]
    assert np.linalg.matrix_power(meta, 7)[start, end] == 2  # wolf first or cabbage first


# ---- configurations -------------------------------------------------------------------------------------------------


def test_arguments_reach_the_puzzles():
    rooms = build_graph(GraphConfig(family="rooms", n_rows=2, n_columns=4, room_size=3, epsilon=0.01))
    assert np.array_equal(rooms.kernel(), rooms_with_doors(2, 4, 3, 0.01).kernel())
    rewriting = build_graph(GraphConfig(family="rewriting", formula="~(p & q)", max_leaves=2))
    assert rewriting.names == propositional_rewriting("~(p & q)", 2).names
    with pytest.raises(InputError, match=r"^graph\.room_size is 1"):
        build_graph(GraphConfig(family="rooms", room_size=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rooms", "sliding", "rewriting", "river"])
def test_train_runs_to_the_end(name, tmp_path):
    command = [sys.executable, "train.py", "--config", f"configs/{name}.yaml", "--run_dir", str(tmp_path / "run")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=2400)
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    models = evaluation["models"]
    assert models["tuned"]["hard_step_recall"] == models["tuned"]["hard_step_precision"] == 1.0
    ideal = evaluation["task"]["hitting_time_at_epsilon_max"]
    assert models["tuned"]["hitting_time_exact"] == pytest.approx(ideal, rel=0.1)
    assert models["student"]["lifted_valid"] == 1.0

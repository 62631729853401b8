"""Tasks: the forms of start and target, and their errors."""

import numpy as np
import pytest

from mcot_torch.errors import InputError
from mcot_torch.graphs import TaskConfig, build_task
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.puzzles import tower_of_hanoi

GRAPH = clustered_graph(6, 8)
FREE = clustered_graph(6, 8, entries="free")
HANOI = tower_of_hanoi(3, 1)


def test_default_task():
    task = build_task(TaskConfig(), GRAPH)
    entry = GRAPH.entries[3]
    assert task.target.tolist() == [entry]
    assert task.target.dtype == np.int64
    assert task.start.dtype == np.float64
    assert task.start.tolist() == [1 / 8] * 8 + [0.0] * 40
    assert task.description == f"C_0 -> entry of C_3 (state {entry})"


def test_auto_without_an_entry_is_the_cluster():
    task = build_task(TaskConfig(), FREE)
    assert task.target.tolist() == list(range(24, 32))
    assert task.description == "C_0 -> C_3"


@pytest.mark.parametrize(
    ("start", "states", "text"),
    [
        ("cluster:2", range(16, 24), "C_2"),
        ("entry:1", [GRAPH.entries[1]], f"entry of C_1 (state {GRAPH.entries[1]})"),
        ("state:9", [9], "state 9"),
        ("states:9,3, 9 ,", [3, 9], "states 3, 9"),
        ("states:0,1,2,3,4", [0, 1, 2, 3, 4], "5 states"),
        ("uniform", range(48), "all states"),
    ],
)
def test_start_forms(start, states, text):
    task = build_task(TaskConfig(start, "state:47"), GRAPH)
    expected = np.zeros(48)
    expected[list(states)] = 1 / len(states)
    np.testing.assert_allclose(task.start, expected, rtol=1e-15)
    assert task.description == f"{text} -> state 47"


def test_named_states():
    task = build_task(TaskConfig("state:AAA", "states:CCC,BBB"), HANOI)
    assert [HANOI.name(x) for x in task.target] == ["BBB", "CCC"]
    assert HANOI.name(int(task.start.argmax())) == "AAA"
    assert task.description == "state AAA -> states BBB, CCC"


def test_start_and_target_may_overlap():
    assert build_task(TaskConfig("cluster:0", "state:0"), GRAPH).start[0] == 1 / 8


@pytest.mark.parametrize(
    ("start", "target", "message"),
    [
        ("cluster:6", "auto", "task.start is 'cluster:6'; clusters are numbered 0 .. 5"),
        ("cluster:-1", "auto", "task.start is 'cluster:-1'; clusters are numbered 0 .. 5"),
        ("cluster:0", "entry:x", "task.target is 'entry:x'; clusters are numbered 0 .. 5"),
        ("here", "auto", "task.start is 'here'; write cluster:K, entry:K, state:NAME or states:NAME,NAME, or uniform"),
        ("auto", "auto", "task.start is 'auto'; write"),
        (
            "cluster:0",
            "uniform",
            "task.target is 'uniform'; write cluster:K, entry:K, state:NAME or states:NAME,NAME, or auto",
        ),
        ("cluster:0", "state:", "task.target is 'state:'; write"),
        ("cluster:0", "states:,", "task.target is 'states:,'; write"),
        (
            "cluster:0",
            "state:48",
            "task.target is 'state:48': unknown state '48': the states are numbered 0 .. 47",
        ),
        (
            "cluster:3",
            "cluster:3",
            "task.start 'cluster:3' lies wholly inside task.target 'cluster:3', so there is nothing",
        ),
        ("entry:3", "auto", "task.start 'entry:3' lies wholly inside task.target 'auto'"),
    ],
)
def test_errors(start, target, message):
    with pytest.raises(InputError) as error:
        build_task(TaskConfig(start, target), GRAPH)
    assert str(error.value).startswith(message)


def test_nearest_name():
    with pytest.raises(InputError, match=r"task.start is 'state:AAAA': unknown state 'AAAA': .* did you mean 'AAA'"):
        build_task(TaskConfig("state:AAAA"), HANOI)


def test_entry_of_a_cluster_without_one():
    with pytest.raises(InputError) as error:
        build_task(TaskConfig("cluster:0", "entry:3"), FREE)
    assert str(error.value) == (
        "task.target is 'entry:3', but hard steps enter cluster 3 at several states; use cluster:3 or state:NAME"
    )

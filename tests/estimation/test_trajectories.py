"""Sequences of names: read, counted, cut to what is connected."""

import numpy as np
import pytest

from mcot_torch.errors import InputError
from mcot_torch.estimation.trajectories import Trajectories, largest_connected, read_trajectories


def test_counts_by_hand():
    found = Trajectories.of([["a", "b", "a", "a"], ["b", "c"], ["c"]])
    assert found.names == ("a", "b", "c")
    assert found.n_steps == 4
    np.testing.assert_array_equal(found.counts.toarray(), [[1, 1, 0], [1, 0, 1], [0, 0, 0]])


def test_counts_against_a_loop():
    rng = np.random.default_rng(0)
    paths = tuple(rng.integers(0, 7, size=n) for n in (1, 50, 3, 200))
    slow = np.zeros((7, 7))
    for path in paths:
        for x, y in zip(path, path[1:]):  # noqa: B905, RUF007
            slow[x, y] += 1
    np.testing.assert_array_equal(Trajectories(paths, tuple("abcdefg")).counts.toarray(), slow)


def test_restrict_cuts_where_a_path_is_outside():
    found = Trajectories.of([list("abxab"), list("xx"), list("bax"), list("b")])
    kept = found.restrict(np.array([0, 1]))
    assert kept.names == ("a", "b")
    assert [path.tolist() for path in kept.paths] == [[0, 1], [0, 1], [1, 0], [1]]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("t.txt", "# note\na b a\n\nb  a\n", [["a", "b", "a"], ["b", "a"]]),
        ("t.csv", "read it, do it\nread it,read it\n", [["read it", "do it"], ["read it", "read it"]]),
        ("t.txt", "read it\tdo, it\n", [["read it", "do, it"]]),
        ("t.txt", "\ufeffread it,do it\nalone\n", [["read it", "do it"], ["alone"]]),
    ],
)
def test_reading(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_trajectories(tmp_path / name)
    assert [[found.names[x] for x in path] for path in found.paths] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, ": no such file"),
        (b"", ": no step from one state to another"),
        (b"a\nb\n", ": no step from one state to another"),
        (b"a,b\na,,b\n", " line 2: state 2 has no name"),
        (b"\xff\xfe\x00", ": not a text file in UTF-8"),
    ],
)
def test_what_cannot_be_read(content, message, tmp_path):
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_trajectories(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_largest_connected():
    def counts(text):
        return Trajectories.of([list(word) for word in text.split()]).counts

    # d is never left; a, b, c go round
    np.testing.assert_array_equal(largest_connected(counts("abcabcabcd"), 1), [0, 1, 2])
    # two parts that nothing joins: the one with more steps stays
    np.testing.assert_array_equal(largest_connected(counts("abab cdcdcd"), 1), [2, 3])
    # c is left once only; without it a and b are still joined
    np.testing.assert_array_equal(largest_connected(counts("ababab abcab"), 2), [0, 1])
    # without c nothing leads back
    assert len(largest_connected(counts("abca"), 2)) == 0
    # in its own cluster b has no easy step, nor has a: nothing is left of them
    assert len(largest_connected(counts("abababab"), 1, np.array([0, 1]))) == 0
    # x is tied to a's cluster by hard steps only
    clusters = np.array([0, 0, 1, 1, 0])
    np.testing.assert_array_equal(largest_connected(counts("abababcdcdcdabxcdcabab"), 1, clusters), [0, 1, 2, 3])

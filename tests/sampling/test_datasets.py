"""Datasets: a function of seed and step, sums, the two feeders; and the streams that they are drawn from."""

import itertools

import numpy as np
import pytest
import torch

from mcot_torch.sampling.datasets import CountData, PairData, PathData, count_batch, path_batch, uniform_starts
from mcot_torch.sampling.walks import StepTable
from mcot_torch.system.randomness import generator


@pytest.fixture
def table(small_graph):
    return StepTable.from_graph(small_graph)


@pytest.fixture
def supported(small_graph):
    return torch.from_numpy(small_graph.kernel() > 0)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- randomness -----------------------------------------------------------------------------------------------------


def test_a_name_gives_its_stream():
    first = torch.rand(100, generator=generator(7, "ppo", 57))
    assert torch.equal(first, torch.rand(100, generator=generator(7, "ppo", 57)))
    for other in [(8, "ppo", 57), (7, "ppo", 58), (7, "search", 57), (7, "ppo", "57"), (7, "ppo"), (7, "ppo", 5, 7)]:
        assert not torch.equal(first, torch.rand(100, generator=generator(*other)))


def test_streams_of_neighbouring_names_are_uncorrelated():
    """Every pair at every lag up to 3: 5,850 correlations of 20,000 numbers at 6.5 sigma, 5e-7 in all."""
    n = 20_000
    streams = np.stack(
        [torch.rand(n, dtype=torch.float64, generator=generator(0, "walk", i)).numpy() for i in range(40)]
    )
    streams = (streams - 0.5) * np.sqrt(12)
    off = ~np.eye(40, dtype=bool)
    for lag in range(4):
        m = n - lag
        z = streams[:, :m] @ streams[:, lag:].T / np.sqrt(m)
        assert np.abs(z[off]).max() < 6.5


def test_first_draws_over_names_are_uniform():
    """Seeds that are shifted copies of each other would show here: the first draw of 4,000 streams."""
    first = np.array(
        [
            float(torch.rand(1, dtype=torch.float64, generator=generator(s, "a", i)))
            for s, i in itertools.product(range(2), range(2000))
        ]
    )
    distance = np.abs(np.sort(first) - (np.arange(4000) + 0.5) / 4000).max()
    assert distance < np.sqrt(np.log(2 / 1e-6) / 8000) + 1 / 4000
    assert len(np.unique(first)) == 4000


# ---- datasets -------------------------------------------------------------------------------------------------------


def test_count_batch():
    counts = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)
    states, after, targets = count_batch(counts)
    assert states.tolist() == [[0], [1]]
    assert after.tolist() == [[[0, 1]], [[0, 1]]]
    assert targets.tolist() == [[[1.0, 2.0]], [[0.0, 3.0]]]
    assert targets.dtype == torch.float32


def test_count_batch_of_some_successors():
    states, after, counts = count_batch(torch.tensor([[5.0], [7.0]]), torch.tensor([[1], [0]]), torch.float64)
    assert states.tolist() == [[0], [1]]
    assert after.tolist() == [[[1]], [[0]]]
    assert counts.tolist() == [[[5.0]], [[7.0]]]
    assert counts.dtype == torch.float64


def test_path_batch_is_each_next_state_once():
    paths = torch.tensor([[2, 0, 1], [1, 1, 0]])
    states, after, counts = path_batch(paths)
    assert states.tolist() == [[2, 0], [1, 1]]
    assert after.tolist() == [[[0], [1]], [[1], [0]]]
    assert counts.tolist() == [[[1], [1]], [[1], [1]]]
    assert counts.is_floating_point()


def test_uniform_starts():
    starts = uniform_starts(64_000, 32, torch.Generator().manual_seed(1))
    assert starts.shape == (32,)
    assert starts.dtype == torch.float64
    assert float(starts.sum()) == 64_000
    assert float((starts - 2000).abs().max()) < 6 * np.sqrt(2000)  # 32 cells, 2e-9 each


def test_count_data(table, supported):
    data = CountData(table, 100_000, 50, 7, seed=1, dtype=torch.float64)
    assert len(data) == 7
    states, after, counts = data[0]
    assert states[:, 0].tolist() == list(range(32))
    assert float(counts.sum()) == 100_000
    assert supported[states, after[:, 0]][counts[:, 0] > 0].all()
    assert same(data[0], data[6])
    again = CountData(table, 100_000, 50, 7, seed=1, dtype=torch.float64)
    assert same(data[3], again[3])
    assert not torch.equal(counts, CountData(table, 100_000, 50, 7, seed=2, dtype=torch.float64)[0][2])


def test_pair_data(table, supported):
    make = lambda seed, steps=9: PairData(table, 5000, steps, seed, torch.float32)  # noqa: E731
    data = make(1)
    assert len(data) == 9
    states, after, counts = data[4]
    assert states[:, 0].tolist() == list(range(32))
    assert torch.equal(after[:, 0], table.successors)
    assert float(counts.sum()) == 5000
    assert supported[states, after[:, 0]][counts[:, 0] > 0].all()
    assert same(make(1, steps=5)[4], data[4])  # a function of seed and step, not of what was read before
    assert not torch.equal(data[5][2], counts)
    assert not torch.equal(make(2)[4][2], counts)


def test_path_data(table, supported):
    make = lambda seed, steps=9: PathData(table, 6, 12, steps, seed)  # noqa: E731
    data = make(1)
    paths = data.paths(4)
    assert paths.shape == (6, 13)
    assert supported[paths[:, :-1], paths[:, 1:]].all()
    states, after, counts = data[4]
    assert torch.equal(states, paths[:, :-1])
    assert torch.equal(after[..., 0], paths[:, 1:])
    assert (counts == 1).all()
    assert same(make(1, steps=5)[4], data[4])
    assert not torch.equal(data.paths(5), paths)
    assert not torch.equal(make(2).paths(4), paths)

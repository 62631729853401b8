"""Samplers against the law of the chain. Every statistical test has fixed seeds and a false-alarm rate ≤ 1e-6."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from mcot_torch import chains
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.sampling import walks
from mcot_torch.sampling.walks import StepTable, TableWalker, first_hitting_times, pair_counts, walk_counts, walk_paths
from mcot_torch.system import blocks

RARE = 1e-5
RARE_KERNEL = torch.tensor(
    [[RARE, 0.6, 0.4 - RARE], [0.3, RARE, 0.7 - RARE], [0.5, 0.5 - RARE, RARE]], dtype=torch.float64
)  # first, middle and last in its row
CHAIN = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.0, 0.9], [0.25, 0.7, 0.05]], dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def count_steps(paths, n):
    return np.bincount((paths[:, :-1] * n + paths[:, 1:]).numpy().ravel(), minlength=n * n).reshape(n, n)


def assert_rows_follow(counts, kernel):
    """Pooled chi-square of all rows given their totals; cells expect at least 5."""
    assert (counts[kernel == 0] == 0).all()
    expected = counts.sum(1, keepdims=True) * kernel
    cell = kernel > 0
    assert expected[cell].min() >= 5
    statistic = ((counts - expected)[cell] ** 2 / expected[cell]).sum()
    freedom = int((cell.sum(1) - 1).sum())
    low, high = stats.chi2.ppf([2.5e-7, 1 - 2.5e-7], freedom)
    assert low < statistic < high


@pytest.fixture(params=["numba", "numpy"])
def loops(request, monkeypatch):
    """The two ways to step on a CPU."""
    if request.param == "numpy":
        monkeypatch.setattr(walks, "_compiled", lambda: None)
    else:
        pytest.importorskip("numba")
        assert walks._compiled() is not None


@pytest.fixture(params=["walked", "multinomial"])
def counting(request, monkeypatch):
    """The two ways to count steps, whatever the number of walkers."""
    monkeypatch.setattr(walks, "_FEW", math.inf if request.param == "walked" else 0)


def cycle_table(n):
    return StepTable.from_kernel(torch.roll(torch.eye(n, dtype=torch.float64), 1, dims=1))


# ---- tables ---------------------------------------------------------------------------------------------------------


def reconstruct(table):
    """The kernel that accept and outcome encode, by a loop over cells."""
    accept, outcome = table.alias
    n, width = table.successors.shape
    kernel = np.zeros((n, table.n_states))
    for x in range(n):
        for j in range(width):
            cell = x * width + j
            other, own = int(outcome[2 * cell]), int(outcome[2 * cell + 1])
            kernel[x, own] += float(accept[cell]) / width
            kernel[x, other] += (1.0 - float(accept[cell])) / width
    return kernel


@pytest.mark.parametrize("orders", [0, 3, 12, 40])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 16])
def test_alias_table_encodes_the_probabilities(orders, width, loops):
    rng = np.random.default_rng(10 * orders + width)
    kernel = np.zeros((20, 20))
    for x in range(20):
        degree = rng.integers(1, width + 1)  # ragged rows: the others are padded
        kernel[x, rng.permutation(20)[:degree]] = 10.0 ** rng.uniform(-orders, 0, degree)
    kernel /= kernel.sum(1, keepdims=True)
    table = StepTable.from_kernel(torch.from_numpy(kernel))
    accept, _ = table.alias
    assert ((accept >= 0) & (accept <= 1)).all()
    np.testing.assert_allclose(reconstruct(table), kernel, rtol=1e-13, atol=0)


@pytest.mark.parametrize("width", [1, 2, 7, 64])
def test_alias_tables_are_the_same_with_and_without_numba(width):
    compiled = pytest.importorskip("mcot_torch.sampling.compiled")
    rng = np.random.default_rng(width)
    weights = 10.0 ** rng.uniform(-9, 0, (50, width)) * (rng.random((50, width)) < 0.8)
    weights[:, 0] += 1e-3
    tables = []
    for make in (walks._alias, compiled.alias):
        accept, other = weights / weights.sum(1, keepdims=True) * width, np.tile(np.arange(width), (50, 1))
        make(accept, other)
        tables.append((accept, other))
    assert np.array_equal(tables[0][0], tables[1][0])
    assert np.array_equal(tables[0][1], tables[1][1])


def test_table_of_a_graph_is_its_kernel(small_graph):
    table = StepTable.from_graph(small_graph)
    assert table.successors.dtype == torch.int64
    assert table.probabilities.dtype == torch.float64
    np.testing.assert_allclose(table.to_edges(table.probabilities).numpy(), small_graph.kernel(), rtol=1e-14, atol=0)
    np.testing.assert_allclose(reconstruct(table), small_graph.kernel(), rtol=1e-13, atol=0)
    reachable = small_graph.kernel() > 0  # padding repeats real successors, it never invents a step
    assert reachable[np.arange(table.n_states)[:, None], table.successors.numpy()].all()


def test_state_without_successor_is_refused():
    kernel = torch.eye(3, dtype=torch.float64)
    kernel[1, 1] = 0
    with pytest.raises(ValueError, match="state 1 has no successor"):
        StepTable.from_kernel(kernel)


# ---- walkers --------------------------------------------------------------------------------------------------------


def by_hand(table, start, uniform):
    """Alias draws one by one: states (T, W), and the index into `outcome` of each."""
    accept, outcome = (x.tolist() for x in table.alias)
    width, state, paths, taken = table.successors.shape[1], start.tolist(), [], []
    for row in uniform.tolist():
        column = [int(u * width) for u in row]
        cell = [x * width + c for x, c in zip(state, column, strict=True)]
        own = [u * width - c < accept[i] for u, c, i in zip(row, column, cell, strict=True)]
        taken.append([2 * i + o for i, o in zip(cell, own, strict=True)])
        state = [outcome[i] for i in taken[-1]]
        paths.append(state)
    return torch.tensor(paths), torch.tensor(taken)


@pytest.mark.parametrize("draws", [1, 64, 100, 2**15])
def test_walkers_read_one_stream_of_uniforms(draws, loops, small_graph, monkeypatch):
    """Same numbers with and without numba, in blocks of any size, in calls of any length, of paths or of counts."""
    monkeypatch.setattr(blocks, "_CPU_DRAWS", draws)
    table, start = StepTable.from_graph(small_graph), torch.arange(32)[:20]
    stream = np.random.Generator(np.random.SFC64(int(torch.randint(2**63 - 1, (), generator=seeded(16)))))
    states, taken = by_hand(table, start, torch.from_numpy(stream.random((157, 20))))
    walker = TableWalker(table, start, seeded(16))
    assert torch.equal(torch.cat([walker.advance(n) for n in (100, 0, 1, 56)], dim=1), states.T)
    assert torch.equal(walker.states, states[-1])
    assert torch.equal(start, torch.arange(20))

    walker = TableWalker(table, start, seeded(16))
    hits = walker.tally(100) + walker.tally(57)
    assert torch.equal(hits, torch.bincount(taken.ravel(), minlength=len(hits)))
    assert torch.equal(walker.states, states[-1])
    counts = count_steps(torch.cat([start[:, None], states.T], dim=1), 32)
    assert np.array_equal(table.to_edges(table.taken(hits)).numpy(), counts)

    monkeypatch.setattr(walks, "_FEW", math.inf)
    starts = torch.zeros(32).index_add_(0, start, torch.ones(20))
    assert np.array_equal(table.to_edges(walk_counts(table, starts, 157, seeded(16))).numpy(), counts)


def test_walkers_of_one_generator_are_independent(small_graph):
    """Each walker that is made takes its own stream from the generator, and the same one from the same state of it."""
    table, start, draw = StepTable.from_graph(small_graph), torch.zeros(500, dtype=torch.int64), seeded(17)
    first, second = (TableWalker(table, start, draw).advance(50) for _ in range(2))
    assert torch.equal(first, TableWalker(table, start, seeded(17)).advance(50))
    assert (first[:, -1] == second[:, -1]).float().mean() < 0.6


def test_numpy_steps_where_numba_cannot_be_used(monkeypatch):
    def broken(name):
        raise ImportError("Numba needs NumPy 2.3 or less")

    monkeypatch.setattr(walks, "find_spec", lambda name: "installed")
    monkeypatch.setattr(walks, "import_module", broken)
    with pytest.warns(UserWarning, match="walks step in NumPy"):
        assert walks._compiled.__wrapped__() is None
    monkeypatch.setattr(walks, "find_spec", lambda name: None)
    assert walks._compiled.__wrapped__() is None


def test_rows_of_walked_paths(small_graph, loops):
    table = StepTable.from_graph(small_graph)
    start = torch.arange(32).repeat(128)
    paths = walk_paths(table, start, 300, seeded(1))
    assert paths.shape == (4096, 301)
    assert torch.equal(paths[:, 0], start)
    assert_rows_follow(count_steps(paths, 32), small_graph.kernel())


def test_power_of_the_rows(loops):
    """10^7 steps on 32 states follow p^ε; that all hard steps are 8 % off is seen all but once in a million times.

    Of the 32 rows' 10^7 / 32 visits each, a hard step expects ε times as many, so a share s off adds n ε s² to the mean of
    chi-square; its law is then noncentral.
    """
    epsilon, off = 0.02, 0.08
    graph = clustered_graph(4, 8, epsilon, seed=3)
    walker = TableWalker(StepTable.from_graph(graph), torch.arange(32).repeat(128), seeded(18))
    counts = np.zeros((32, 32))
    for _ in range(10):
        last = walker.states[:, None]
        counts += count_steps(torch.cat([last, walker.advance(250)], dim=1), 32)
    assert counts.sum() > 1e7
    assert_rows_follow(counts, graph.kernel())
    wrong = graph.with_epsilon(epsilon * (1 + off)).kernel()
    freedom = int(((graph.kernel() > 0).sum(1) - 1).sum())
    shift = (counts.sum(1, keepdims=True) * (graph.kernel() - wrong) ** 2)[wrong > 0] / wrong[wrong > 0]
    assert stats.ncx2.cdf(stats.chi2.ppf(1 - 2.5e-7, freedom), freedom, shift.sum()) < 1e-6
    with pytest.raises(AssertionError):
        assert_rows_follow(counts, wrong)


def test_blocks_of_uniforms_join_seamlessly(small_graph, loops, monkeypatch):
    """The step over the border of two blocks of uniforms, of one call and of two calls, starts where the last one ended."""
    monkeypatch.setattr(blocks, "_CPU_DRAWS", 256 * 2000)
    table = StepTable.from_graph(small_graph)
    walker = TableWalker(table, torch.zeros(2000, dtype=torch.int64), seeded(2))
    parts = [walker.advance(n) for n in (300, 1, 0, 7)]
    paths = torch.cat(parts, dim=1)
    assert paths.shape == (2000, 308)
    assert torch.equal(walker.states, paths[:, -1])
    assert_rows_follow(count_steps(paths[:, 254:], 32), small_graph.kernel())


def assert_rare(counts, rate=RARE):
    counts = np.asarray(counts)
    for crossed, visits in zip(counts.diagonal(), counts.sum(1), strict=True):
        low, high = stats.poisson.ppf([1e-7, 1 - 1e-7], visits * rate)
        assert low <= crossed <= high


def test_power_of_the_rare_edges():
    """A rate twice or a third of the right one passes `assert_rare` less than 1 time in 500, at 100 expected crossings."""
    low, high = stats.poisson.ppf([1e-7, 1 - 1e-7], 1e7 * RARE)
    missed = {
        factor: stats.poisson.cdf(high, 100 * factor) - stats.poisson.cdf(low - 1, 100 * factor)
        for factor in (1 / 3, 2)
    }
    assert max(missed.values()) < 2e-3


def test_rare_edges_of_walkers(loops):
    """3e7 steps, so about 100 crossings of each edge."""
    walker = TableWalker(StepTable.from_kernel(RARE_KERNEL), torch.arange(3).repeat(4000), seeded(3))
    counts = np.zeros((3, 3))
    for _ in range(10):
        last = walker.states[:, None]
        counts += count_steps(torch.cat([last, walker.advance(250)], dim=1), 3)
    assert counts.sum() == 3e7
    assert_rare(counts)


def test_rare_edges_of_walk_counts(loops, counting):
    table = StepTable.from_kernel(RARE_KERNEL)
    counts = table.to_edges(walk_counts(table, torch.full((3,), 1e5), 100, seeded(4)))
    assert counts.sum() == 3e7
    assert_rare(counts)


def test_rare_edges_of_pair_counts():
    table = StepTable.from_kernel(RARE_KERNEL)
    counts = table.to_edges(pair_counts(table, 300_000_000, seeded(5)))
    assert_rare(counts)


def test_walkers_draw_53_bits(monkeypatch):
    """On the grid of float32, 2^-24, an edge of probability 1e-8 fires far too often or never."""
    seen = []
    uniforms = TableWalker._uniforms

    def record(self, n_steps):
        for block in uniforms(self, n_steps):
            seen.append(block.numpy().copy())
            yield block

    monkeypatch.setattr(TableWalker, "_uniforms", record)
    TableWalker(StepTable.from_kernel(CHAIN), torch.zeros(100, dtype=torch.int64), seeded(15)).advance(300)
    uniform = np.concatenate(seen)
    assert uniform.shape == (300, 100)
    assert uniform.dtype == np.float64
    assert ((uniform * 2.0**24) % 1 != 0).mean() > 0.999


@pytest.mark.parametrize("column", [0, 1, 2])
def test_edge_of_1e_8_fires_at_its_rate(column):
    """float32 uniforms get this one wrong: about 500 expected of 5e10 walkers."""
    kernel = torch.eye(3, dtype=torch.float64)
    others = [y for y in range(3) if y != column]
    kernel[0] = 0
    kernel[0, column], kernel[0, others] = 1e-8, torch.tensor([0.3, 0.7 - 1e-8], dtype=torch.float64)
    table = StepTable.from_kernel(kernel)
    counts = table.to_edges(walk_counts(table, torch.tensor([5e10, 0, 0]), 1, seeded(6)))
    low, high = stats.poisson.ppf([1e-7, 1 - 1e-7], 500)
    assert low <= float(counts[0, column]) <= high


def test_torch_steps_as_numpy(small_graph):
    """The loop of a GPU, on a CPU."""
    table, start = StepTable.from_graph(small_graph), torch.arange(32).repeat(2)
    uniform = torch.rand(50, len(start), dtype=torch.float64, generator=seeded(7))
    states, taken = by_hand(table, start, uniform)
    (accept, outcome), width, state, found = (
        table.alias,
        table.successors.shape[1],
        start.clone(),
        torch.empty_like(taken),
    )
    scaled = uniform * width
    walks._take_torch(accept, outcome, width, scaled - scaled.long(), scaled.long(), state, found)
    assert torch.equal(found, taken)
    assert torch.equal(state, states[-1])
    assert len(states.unique()) == 32


def test_keep_and_replace():
    walker = TableWalker(cycle_table(5), torch.tensor([0, 1, 2, 3]), seeded(0))
    assert walker.advance(2).tolist() == [[1, 2], [2, 3], [3, 4], [4, 0]]
    walker.keep(torch.tensor([True, False, True, False]))
    assert walker.states.tolist() == [2, 4]
    replacement = torch.tensor([0, 3])
    walker.replace(replacement)
    assert walker.advance(1).tolist() == [[1], [4]]
    assert replacement.tolist() == [0, 3]
    walker.keep(torch.tensor([False, False]))
    assert walker.advance(3).shape == (0, 3)


# ---- counts ---------------------------------------------------------------------------------------------------------

WALKERS, STEPS, REPEATS = 5, 4, 4000


def exact_moments():
    """Mean (9,) and covariance (9, 9) of n(x, y) of `WALKERS` walks from state 0, by enumerating all 3^STEPS paths."""
    p = CHAIN.numpy()
    mean, second = np.zeros(9), np.zeros((9, 9))
    for tail in itertools.product(range(3), repeat=STEPS):
        path = (0, *tail)
        steps = list(itertools.pairwise(path))
        probability = math.prod(p[x, y] for x, y in steps)
        n = np.bincount([3 * x + y for x, y in steps], minlength=9).astype(float)
        mean += probability * n
        second += probability * np.outer(n, n)
    return WALKERS * mean, WALKERS * (second - np.outer(mean, mean))


def sampled_counts(sampler):
    table = StepTable.from_kernel(CHAIN)
    draw = seeded(8)
    if sampler == "counts":
        start = torch.tensor([WALKERS, 0, 0])
        return np.stack(
            [table.to_edges(walk_counts(table, start, STEPS, draw)).numpy().ravel() for _ in range(REPEATS)]
        )
    paths = walk_paths(table, torch.zeros(REPEATS * WALKERS, dtype=torch.int64), STEPS, draw)
    cells = (3 * paths[:, :-1] + paths[:, 1:]).view(REPEATS, -1)
    return torch.stack([torch.bincount(row, minlength=9) for row in cells]).double().numpy()


@pytest.mark.parametrize("sampler", ["counts", "paths"])
def test_joint_law_of_counts(sampler, counting):
    mean, covariance = exact_moments()
    by_steps = np.zeros((3, 3))  # WALKERS · Σ_t P(X_t = x) P(x, y), an independent way to the mean
    law = np.array([1.0, 0, 0])
    for _ in range(STEPS):
        by_steps += WALKERS * law[:, None] * CHAIN.numpy()
        law = law @ CHAIN.numpy()
    np.testing.assert_allclose(mean, by_steps.ravel(), rtol=1e-12)

    n = sampled_counts(sampler)
    assert (n.sum(1) == WALKERS * STEPS).all()
    assert (n[:, 4] == 0).all()  # P(1, 1) = 0
    moving = mean > 0
    z = (n.mean(0) - mean)[moving] / np.sqrt(covariance.diagonal()[moving] / REPEATS)
    assert np.abs(z).max() < 6  # 8 cells, 2e-9 each
    products = (n - mean)[:, :, None] * (n - mean)[:, None, :]
    error = products.std(0) / np.sqrt(REPEATS)
    pair = moving[:, None] & moving[None, :]
    z = (products.mean(0) - covariance)[pair] / error[pair]
    assert np.abs(z).max() < 6  # 36 pairs, 2e-9 each


def test_walk_counts_conserve_walkers(small_graph, counting):
    start = torch.randint(0, 50, (32,), generator=seeded(9)).double()
    table = StepTable.from_graph(small_graph)
    counts = table.to_edges(walk_counts(table, start, 37, seeded(10)))
    assert counts.dtype == torch.float64
    assert float(counts.sum()) == float(start.sum()) * 37
    assert torch.equal(counts, counts.round())
    end = start + counts.sum(0) - counts.sum(1)  # who starts or enters and does not leave
    assert (end >= 0).all()
    assert float(end.sum()) == float(start.sum())
    assert (counts[torch.from_numpy(small_graph.kernel() == 0)] == 0).all()


def test_pair_counts(small_graph):
    table = StepTable.from_graph(small_graph)
    counts = table.to_edges(pair_counts(table, 1_000_000, seeded(11))).numpy()
    assert counts.sum() == 1_000_000
    assert_rows_follow(counts, small_graph.kernel())
    statistic = ((counts.sum(1) - 31250) ** 2 / 31250).sum()
    assert stats.chi2.sf(statistic, 31) > 1e-7


# ---- hitting times --------------------------------------------------------------------------------------------------


def test_first_hitting_times_against_the_exact_chain():
    graph = clustered_graph(4, 8, 0.05, seed=1)
    target = graph.members(2)
    reached = torch.zeros(32, dtype=torch.bool)
    reached[torch.from_numpy(target)] = True
    n, horizon = 20_000, 400
    walker = TableWalker(StepTable.from_graph(graph), torch.zeros(n, dtype=torch.int64), seeded(12))
    times, censored = first_hitting_times(walker, reached, horizon)
    grid = np.arange(horizon)
    exact = chains.survival(graph.to_scipy(), 0, target, grid)
    seen = (times.numpy()[:, None] > grid).mean(0)
    bound = math.sqrt(math.log(2 / 1e-6) / (2 * n))  # Dvoretzky, Kiefer, Wolfowitz
    assert np.abs(seen - exact).max() < bound
    survived = float(chains.survival(graph.to_scipy(), 0, target, np.array([horizon]))[0])
    assert 1 - 5e-7 > stats.binom.cdf(int(censored.sum()), n, survived) > 5e-7
    assert (times[censored] == horizon).all()
    restricted = chains.restricted_mean(graph.to_scipy(), 0, target, horizon)
    z = (times.double().mean() - restricted) / (times.double().std() / math.sqrt(n))
    assert abs(float(z)) < 5.5

    walker = TableWalker(StepTable.from_graph(graph), torch.zeros(n, dtype=torch.int64), seeded(13))
    times, censored = first_hitting_times(walker, reached, 1_000_000)
    assert not censored.any()
    mean = chains.hitting_times(graph.to_scipy(), target)[0]
    z = (times.double().mean() - mean) / (times.double().std() / math.sqrt(n))
    assert abs(float(z)) < 5.5


@pytest.mark.parametrize("horizon", [0, 1, 255, 256, 257, 512, 599, 600])
def test_censoring_on_a_cycle(horizon):
    """On the cycle 0 -> 1 -> ... -> 599 -> 0 the walk from s reaches 0 at (600 - s) mod 600, exactly."""
    start = torch.randperm(600, generator=seeded(14))
    target = torch.zeros(600, dtype=torch.bool)
    target[0] = True
    times, censored = first_hitting_times(TableWalker(cycle_table(600), start, seeded(0)), target, horizon)
    exact = (600 - start) % 600
    assert torch.equal(times, exact.clamp_max(horizon))
    assert torch.equal(censored, exact > horizon)
    assert times.dtype == torch.int64

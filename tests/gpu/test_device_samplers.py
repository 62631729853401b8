"""Samplers on the device follow their laws: chi-square and z-tests within 5 standard deviations, seeds fixed."""

import math

import pytest
import torch

import mcot_torch as mt
from mcot_torch.algorithms.rollouts import sample_paths, transition_counts
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.reasoners import generate
from mcot_torch.reasoners.walks import ContextWalker
from mcot_torch.sampling.datasets import sample_counts, uniform_starts
from mcot_torch.sampling.walks import (
    StepTable,
    TableWalker,
    _multinomial,
    first_hitting_times,
    pair_counts,
    walk_counts,
    walk_paths,
)

pytestmark = pytest.mark.gpu


@pytest.fixture
def table(graph, device):
    return StepTable.from_graph(graph, device)


@pytest.fixture
def draw(device):
    return torch.Generator(device).manual_seed(11)


def expected(table, counts):
    """What (N, D) counts of steps should be, given how often each state was left."""
    return counts.sum(1, keepdim=True) * table.probabilities


def counted(table, paths):
    """(N, D) counts of the steps in (W, T + 1) paths, by successor."""
    n = table.n_states
    cells = torch.bincount((paths[:, :-1] * n + paths[:, 1:]).reshape(-1), minlength=n * n).view(n, n)
    return torch.where(table.probabilities > 0, cells.gather(1, table.successors), 0).double()


def test_tables_are_those_of_the_cpu(graph, table, close):
    here = StepTable.from_graph(graph)
    assert torch.equal(table.successors.cpu(), here.successors)
    assert torch.equal(table.probabilities.cpu(), here.probabilities)
    for found, known in zip(table.alias, here.alias, strict=True):
        assert torch.equal(found.cpu(), known)
    close(table.to_scipy().toarray(), graph.kernel(), 1e-12)


def test_table_walker(table, draw, follows, device):
    start = torch.arange(table.n_states, device=device).repeat(200)
    walker = TableWalker(table, start, draw)
    paths = torch.cat([walker.states[:, None], walker.advance(150)], dim=1)
    counts = counted(table, paths)
    assert int(counts.sum()) == 200 * 150 * table.n_states
    follows(counts, expected(table, counts))
    assert torch.equal(walker.states, paths[:, -1])
    walker.keep(walker.states < 5)
    assert bool((walker.states < 5).all())
    walker.replace(walker.states * 0)
    assert not walker.states.any()


def test_walk_paths(table, draw, follows, device):
    paths = walk_paths(table, torch.arange(table.n_states, device=device).repeat(100), 100, draw)
    follows(counted(table, paths), expected(table, counted(table, paths)))


@pytest.mark.parametrize("walkers", [40, 4000], ids=["few walkers, moved", "many walkers, drawn"])
def test_walk_counts(walkers, table, draw, follows, device):
    start = torch.full((table.n_states,), float(walkers), device=device)
    counts = walk_counts(table, start, 100, draw)
    assert int(counts.sum()) == walkers * 100 * table.n_states
    assert torch.equal(counts, counts.round())
    follows(counts, expected(table, counts))


def test_pair_counts(table, draw, follows):
    counts = pair_counts(table, 1_000_000, draw)
    assert int(counts.sum()) == 1_000_000
    follows(counts.sum(1)[None], torch.full((1, table.n_states), 1e6 / table.n_states))
    follows(counts, expected(table, counts))


@pytest.mark.parametrize("per_draw", [0.06, 1e-3])
def test_rare_steps_come_as_often_as_they_should(per_draw, draw, device):
    """A draw that expects `per_draw` hard steps; configs/gpu.yaml expects 0.06. Each size must reach some hundred sightings."""
    graph = clustered_graph(4, 8, per_draw / 600, seed=3)
    table = StepTable.from_graph(graph, device)
    hard = table.to_edges(table.probabilities).lt(3 * graph.epsilon) & (table.to_edges(table.probabilities) > 0)
    # Many states at once, as rows of one table, so that few launches draw often.
    copies = {0.06: 50, 1e-3: 3000}[per_draw]
    n, width = table.successors.shape
    tall = StepTable(table.successors.repeat(copies, 1), table.probabilities.repeat(copies, 1))
    counts = torch.zeros(n, width, dtype=torch.float64, device=device)
    rounds = 10
    for _ in range(rounds):
        drawn = _multinomial(
            torch.full((len(tall.successors),), 600.0, dtype=torch.float64, device=device), tall.probabilities, draw
        )
        counts += drawn.view(copies, n, width).sum(0)
    seen = float(table.to_edges(counts)[hard].sum())
    mean = float(table.to_edges(table.probabilities)[hard].sum()) * 600 * copies * rounds
    assert abs(seen - mean) <= 5 * math.sqrt(mean) + 1, f"{seen:.0f} hard steps seen, {mean:.1f} expected"


def test_starts_and_counts_of_walks(table, draw, follows):
    starts = uniform_starts(100_000, table.n_states, draw)
    follows(starts[None], torch.full((1, table.n_states), 1e5 / table.n_states))
    counts = sample_counts(table, 4096, 64, draw)
    assert int(counts.sum()) == 4096 * 64
    follows(counts, expected(table, counts))


def test_hitting_times(graph, table, draw, device):
    target = torch.zeros(graph.n_states, dtype=torch.bool, device=device)
    target[graph.n_states // 2] = True
    exact = mt.hitting_time(graph.to_scipy(), 0, [graph.n_states // 2])
    walker = TableWalker(table, torch.zeros(4000, dtype=torch.int64, device=device), draw)
    times, censored = first_hitting_times(walker, target, int(20 * exact))
    assert not bool(censored.any())
    error = float(times.double().mean()) - exact
    assert abs(error) <= 5 * float(times.double().std()) / 4000**0.5


# ---- a reasoner that reads history ----------------------------------------------------------------------------------


@pytest.fixture
def reader(graph, device):
    """A transformer of window 4 with random weights."""
    model = mt.TransformerReasoner(graph.n_states, window=4, width=32, n_layers=2, n_heads=2)
    source = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2, generator=source)
    model.support.set(torch.from_numpy(graph.kernel() > 0))
    return model.to(device)


def test_context_walker(reader, draw, follows, device):
    walker = ContextWalker(reader, torch.full((20_000,), 3, device=device), draw)
    start = walker.states[:, None]
    paths = torch.cat([start, walker.advance(reader.window)], dim=1)
    with torch.no_grad():
        first = reader.log_probs(start[:1])[0, 0].double().exp()
        log_p = reader.log_probs(paths[:, :-1]).double()
    follows(torch.bincount(paths[:, 1], minlength=reader.n_states)[None], (20_000 * first)[None])
    # log p of what was taken less its mean is a martingale difference: its sum over its standard deviation is normal.
    p, finite = log_p.exp(), torch.where(log_p > -torch.inf, log_p, 0.0)
    mean = (p * finite).sum(-1)
    variance = (p * finite**2).sum(-1) - mean**2
    taken = finite.gather(-1, paths[:, 1:, None])[..., 0]
    assert abs(float((taken - mean).sum() / variance.sum().sqrt())) <= 5
    assert bool(reader.support.mask[paths[:, :-1], paths[:, 1:]].all())
    walker.advance(5)  # past the window: the older half is forgotten
    walker.keep(walker.states % 2 == 0)
    assert bool((walker.states % 2 == 0).all())


def test_walks_and_counts_of_reasoners(graph, reader, draw, follows, device):
    exact = mt.LinearReasoner.from_kernel(torch.from_numpy(graph.kernel())).to(device)
    counts = transition_counts(exact, 4096, 50, draw)
    table = StepTable(counts.successors, exact.kernel().gather(1, counts.successors))
    follows(
        counts.counts, counts.counts.sum(1, keepdim=True) * torch.where(counts.counts.gt(0), table.probabilities, 0.0)
    )
    paths = sample_paths(reader, 500, 6, draw)
    assert paths.shape == (500, 7)
    assert int(transition_counts(reader, 500, 6, draw).counts.sum()) == 3000
    scales, prm = mt.Scales.of(graph, 0.1), mt.PRM.simulated(graph)
    guided = generate(
        exact, torch.zeros(2000, dtype=torch.int64, device=device), 100, draw, mt.guidance(prm, scales, device)
    )
    raised = graph.with_epsilon(0.1)
    table = StepTable.from_graph(raised, device)
    follows(counted(table, guided), expected(table, counted(table, guided)))

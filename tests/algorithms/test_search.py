"""Algorithm 2: Ĉ by hand, M_s = E_s on the exact kernel at the stated price, interruption, RL mode."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch

import mcot_torch.algorithms.search as search_module
from mcot_torch import Context
from mcot_torch.algorithms.ppo import sign_ascent
from mcot_torch.algorithms.prm import PRM, avoid
from mcot_torch.algorithms.search import SearchConfig, Votes, estimate_cluster, resolve_search, search, search_rounds
from mcot_torch.errors import InputError
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import LinearReasoner, step_table
from mcot_torch.training.config import TrainerConfig
from mcot_torch.training.result import Cost
from mcot_torch.training.state import load_state, save_state


def as_set(edges):
    return {tuple(edge) for edge in np.asarray(edges).tolist()}


def context(seed=0, folder=None, report=None):
    return Context(seed, folder, TrainerConfig(accelerator="cpu", save_every=0, progress=False), report=report)


# ---- pieces ---------------------------------------------------------------------------------------------------------


def test_estimate_cluster_by_hand():
    """Three walks over five states: visited by 3, 2, 1, 0 and 2 of them; most means more than half."""
    visited = torch.tensor([[1, 1, 0, 0, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 1]], dtype=torch.bool)
    assert estimate_cluster(visited).tolist() == [True, True, False, False, True]
    assert estimate_cluster(visited[:2]).tolist() == [True, True, False, False, False]  # half is not most
    both = torch.stack([visited, ~visited])
    assert estimate_cluster(both).tolist() == [[True, True, False, False, True], [False, False, True, True, False]]


def test_defaults_of_the_theory():
    config = resolve_search(SearchConfig(), Scales(10, 32, 0.002, 0.03))
    assert config.rounds == math.ceil(30 * math.log(10))
    assert config.walks == 7
    assert config.cover_steps == math.ceil(80 * math.log(32))
    assert config.max_steps == 16_000
    kept = resolve_search(SearchConfig(3, 4, 5, 6, 1), Scales(10, 32, 0.002, 0.03))
    assert (kept.rounds, kept.walks, kept.cover_steps, kept.max_steps, kept.min_votes) == (3, 4, 5, 6, 1)


@pytest.mark.parametrize("n_clusters", [2, 9, 10, 11, 100])
def test_rounds_and_walks_grow_with_the_logarithm_of_ten_clusters_or_more(n_clusters):
    config = resolve_search(SearchConfig(), Scales(n_clusters, 1, 0.002, 0.03))
    log_k = math.log(10 if n_clusters < 10 else n_clusters)
    assert config.rounds == math.ceil(3 * n_clusters * log_k)
    assert config.walks == math.ceil(3 * log_k)
    assert (config.cover_steps, config.max_steps) == (math.ceil(5 * math.log(2)), 1000)  # clusters of one count as two


def table_of(kernel):
    return LinearReasoner.from_kernel(torch.as_tensor(kernel, dtype=torch.float64))


def test_the_first_step_out_of_the_cluster_is_recorded():
    """0 <-> 1 with a door 1 -> 2 of probability 1/1000; 2 and 3 swap for ever. Every walk leaves by the door."""
    kernel = [[0, 1, 0, 0], [0.999, 0, 0.001, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    found, clusters, transitions = search_rounds(
        table_of(kernel), torch.tensor([0, 2, 1]), 5, 4, 100_000, torch.Generator().manual_seed(0)
    )
    assert found == [{(1, 2)}, set(), {(1, 2)}]
    assert clusters.tolist() == [[True, True, False, False], [False, False, True, True], [True, True, False, False]]
    # the walks from 2 never leave and cost all their steps; the others cost at least what collects Ĉ
    assert 5 * 100_000 + 2 * 5 * 5 <= transitions < 5 * 100_000 + 2 * 5 * 40_000


@pytest.mark.parametrize("first_exit", [4, 5, 256, 257, 259, 260, 261, 500])
def test_cost_and_step_at_the_borders_of_blocks(first_exit):
    """A path 0 -> 1 -> ... that stays in Ĉ = everything but one state: exits at a known time, counted exactly."""
    n, cover = 600, 3
    kernel = np.roll(np.eye(n), 1, axis=1)
    walks, starts = 3, torch.tensor([0])
    model = table_of(kernel)
    original = search_module.estimate_cluster

    def everything_but_one(visited):
        cluster = torch.ones_like(original(visited))
        cluster[:, first_exit] = False
        return cluster

    search_module.estimate_cluster = everything_but_one
    try:
        found, clusters, transitions = search_rounds(model, starts, walks, cover, 550, torch.Generator().manual_seed(0))
    finally:
        search_module.estimate_cluster = original
    assert found == [{(first_exit - 1, first_exit)}]
    assert (~clusters).nonzero().tolist() == [[0, first_exit]]
    assert transitions == walks * first_exit


def test_walks_are_given_up_after_max_steps():
    model = table_of([[0, 1], [1, 0]])
    found, clusters, transitions = search_rounds(
        model, torch.tensor([0, 1]), 3, 10, 700, torch.Generator().manual_seed(0)
    )
    assert found == [set(), set()]
    assert clusters.all()
    assert transitions == 2 * 3 * 700


# ---- the whole ------------------------------------------------------------------------------------------------------


def test_search_sees_no_graph():
    types = [str(p.annotation) for p in inspect.signature(search).parameters.values()]
    assert list(inspect.signature(search).parameters) == ["reasoner", "scales", "config", "context", "on_round"]
    assert not any("Graph" in t or "PRM" in t for t in types)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_finds_every_hard_step_and_no_other(seed, exact_reasoner):
    """The default budget, at about 15 KM/ε; 60 of 60 further seeds were perfect too."""
    graph = clustered_graph(10, 32, 0.002, seed=seed)
    model = exact_reasoner(graph)
    before = model.logits.detach().clone()
    result = search(model, Scales.of(graph, 0.03), context=context(seed))
    assert as_set(result.model.edges) == as_set(graph.sparse_edges)
    assert len(result.model.edges) == len(result.model.votes) == 30
    assert int(result.model.votes.min()) >= 2
    assert 8 < result.cost.transitions * 0.002 / (10 * 32) < 25
    assert torch.equal(model.logits, before)
    assert result.history[-1]["transitions"] == result.cost.transitions
    assert result.history[-1]["edges"] == 30
    again = search(model, Scales.of(graph, 0.03), context=context(seed))
    assert torch.equal(result.model.edges, again.model.edges)
    assert torch.equal(result.model.votes, again.model.votes)
    assert again.cost.transitions == result.cost.transitions


@pytest.mark.parametrize("n_clusters", [2, 3, 4, 6])
def test_defaults_suffice_for_few_clusters(n_clusters, exact_reasoner):
    jumps = [1] if n_clusters < 4 else [1, 2, -1]
    graph = clustered_graph(n_clusters, 16, 0.005, jumps, seed=5)
    result = search(exact_reasoner(graph), Scales.of(graph, 0.03), context=context(4))
    assert as_set(result.model.edges) == as_set(graph.sparse_edges)


def test_starts_are_drawn_where_the_fewest_clusters_were(monkeypatch):
    seen = []

    def all_but_four(reasoner, starts, n_walks, cover_steps, max_steps, draw, policy):
        seen.append(starts.tolist())
        return [set() for _ in starts], torch.arange(6).expand(len(starts), -1) != 4, 1

    monkeypatch.setattr(search_module, "search_rounds", all_but_four)
    search(LinearReasoner(6), Scales(3, 2, 0.1, 0.2), SearchConfig(rounds=8, walks=2), context())
    assert [len(starts) for starts in seen] == [3, 3, 2]
    assert seen[1:] == [[4, 4, 4], [4, 4]]


def test_rl_mode_keeps_the_rounds_before_an_interruption(tmp_path):
    """Algorithm 3 inside a round can take minutes and handles the signal itself: every round before it is saved."""
    kernel = [[0, 1, 0, 0], [0.9, 0, 0.1, 0], [0, 0, 0, 1], [0.1, 0, 0.9, 0]]
    config = SearchConfig(mode="rl", rounds=12, walks=5, cover_steps=6, max_steps=200, min_votes=1)
    trainer = TrainerConfig(progress=False, save_every=3600.0)
    scales, interrupted = Scales(2, 2, 0.1, 0.2), []

    def on_round(edges):
        if len(edges) == 2 and not interrupted:
            interrupted.append(len(edges))
            raise KeyboardInterrupt
        return Cost()

    with pytest.raises(KeyboardInterrupt):
        search(table_of(kernel), scales, config, Context(3, tmp_path, trainer), on_round)
    saved = load_state(tmp_path / "state.safetensors")[1]["step"]
    assert saved > 0
    whole = search(table_of(kernel), scales, config, Context(3, None, trainer), lambda edges: Cost())
    lines = []
    resumed = search(table_of(kernel), scales, config, Context(3, tmp_path, trainer, report=lines.append), on_round)
    assert lines[0]["step"] == saved + 1
    assert resumed.history == whole.history
    assert torch.equal(resumed.model.votes, whole.model.votes)


def test_nothing_found_is_an_empty_result():
    result = search(table_of([[0, 1], [1, 0]]), Scales(2, 2, 0.1, 0.2), context=context())
    assert result.model.edges.shape == (0, 2)
    assert result.model.votes.shape == (0,)
    assert result.model.edges.dtype == result.model.votes.dtype == torch.int64


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 3])
def test_interrupted_search_goes_on_where_it_was(stop_after, small_graph, exact_reasoner, tmp_path, monkeypatch):
    model, scales = exact_reasoner(small_graph), Scales.of(small_graph, 0.06)
    config = SearchConfig(rounds=18, walks=5)
    whole = search(model, scales, config, context(5))
    chunks = len(whole.history)
    assert chunks > 3
    assert [line["step"] for line in whole.history][-1] == 18
    lines = []

    def report(line):
        lines.append(line)
        if len(lines) == stop_after + 1:
            raise Stop

    with pytest.raises(Stop):
        search(model, scales, config, context(5, tmp_path, report))
    monkeypatch.setattr(search_module, "search_rounds", counted := Counted(search_module.search_rounds))
    resumed = search(model, scales, config, context(5, tmp_path))
    assert counted.calls == chunks - stop_after  # what was done is not done again
    assert torch.equal(resumed.model.edges, whole.model.edges)
    assert torch.equal(resumed.model.votes, whole.model.votes)
    assert resumed.cost.transitions == whole.cost.transitions
    assert resumed.history == whole.history
    finished = search(model, scales, config, context(5, tmp_path))
    assert counted.calls == chunks - stop_after
    assert torch.equal(finished.model.votes, whole.model.votes)


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"votes": [[0, 3, 2**63 - 1]]}, None),
        ({"cost": [0, 0, 0]}, None),
        ({"votes": torch.tensor([[0, 3, 2]], dtype=torch.int32)}, "no table of steps and counts"),  # no int64
        ({"votes": [[0, 3, -1]]}, "a count that is none"),
        ({"votes": [[0.0, 3.0, 0.5]]}, "no table of steps and counts"),
        ({"votes": [[0, 3]]}, "no table of steps and counts"),
        ({"cost": torch.tensor([7, 8, 2], dtype=torch.int32)}, "a count that is none"),
        ({"cost": [0.5, 0.0, 0.0]}, "a count that is none"),
        ({"cost": [7, -1, 2]}, "a count that is none"),
        ({"cost": [7, 8]}, "no table of steps and counts"),
        ({"step": -1}, "it stands at step -1 of 2"),
        ({"step": 3}, "it stands at step 3 of 2"),
        ({"votes": [[0, 4, 1]]}, r"outside the states 0 \.\. 3"),
        ({"votes": [[-1, 0, 1]]}, r"outside the states 0 \.\. 3"),
        ({"coverage": [0] * 5}, "covers 5 states, and there are 4"),
        ({"coverage": [0.0] * 4}, "covers 4 states"),
        ({"logits": torch.full((4, 4), math.nan, dtype=torch.float64)}, "not finite"),
    ],
)
def test_a_saved_state_is_checked(change, message, tmp_path):
    """As a search in RL mode finds it that has finished."""
    extra = {"coverage": [3, 1, 4, 1], "votes": [[0, 3, 2], [3, 0, 1]], "cost": [7, 8, 2]}
    extra = {key: torch.as_tensor(change.get(key, x)) for key, x in extra.items()}
    model = {"support": torch.ones(4, 4, dtype=torch.bool), "logits": torch.zeros(4, 4, dtype=torch.float64)}
    model = {key: change.get(key, x) for key, x in model.items()}
    tensors = {**{f"extra.{key}": x for key, x in extra.items()}, **{f"model.{key}": x for key, x in model.items()}}
    meta = {"step": change.get("step", 2), "total": 2, "history": [{"step": 2, "transitions": 7, "edges": 2}]}
    save_state(tmp_path / "state.safetensors", tensors, meta)

    def run():
        config = SearchConfig(rounds=2, mode="rl", min_votes=1)
        return search(LinearReasoner(4), Scales(2, 2, 0.1, 0.2), config, context(folder=tmp_path))

    if message:
        with pytest.raises(InputError, match=rf"state\.safetensors: the saved state cannot be read .*{message}"):
            run()
        return
    result = run()
    assert result.model.edges.tolist() == [[x, y] for x, y, _ in extra["votes"].tolist()]
    assert result.model.votes.tolist() == [n for _, _, n in extra["votes"].tolist()]
    assert result.cost == Cost(*extra["cost"].tolist())
    assert result.history == meta["history"]
    votes = Votes(4, 1, torch.device("cpu"))
    votes.load_state_dict(extra)
    assert votes.coverage.tolist() == [3, 1, 4, 1]
    assert all(torch.equal(x, extra[key]) for key, x in votes.state_dict().items())


def test_avoid_never_takes_the_given_steps(small_graph, exact_reasoner):
    model = exact_reasoner(small_graph)
    table = step_table(model, avoid(torch.from_numpy(small_graph.sparse_edges), model))
    easy = table.to_edges(table.probabilities).numpy()
    at_zero = small_graph.with_epsilon(1e-300).kernel()
    at_zero[at_zero < 1e-200] = 0
    np.testing.assert_allclose(easy, at_zero, rtol=1e-12, atol=0)


def test_rl_mode_raises_the_steps_as_it_finds_them(exact_reasoner):
    """On the table with the sign ascent of Algorithm 3 after each round, always from the pretrained table."""
    graph = clustered_graph(6, 16, 0.005, seed=2)
    model, scales = exact_reasoner(graph), Scales.of(graph, 0.04)
    pretrained = model.logits.detach().clone()
    sizes = []

    def raise_them(edges):
        with torch.no_grad():
            model.logits.copy_(pretrained)
        updates = sign_ascent(model, PRM(model.n_states, edges), scales)
        sizes.append(len(edges))
        return Cost(1_000_000_000, 0, updates)

    result = search(model, scales, SearchConfig(mode="rl", rounds=60), context(1), raise_them)
    assert as_set(result.model.edges) == as_set(graph.sparse_edges)
    assert all(after > before for before, after in itertools.pairwise([0, *sizes]))  # only where a step was found
    assert result.cost.transitions // 1_000_000_000 == len(sizes)  # what Algorithm 3 samples is part of the cost
    np.testing.assert_allclose(model.kernel(), graph.with_epsilon(0.04).kernel(), rtol=1e-9, atol=0)


def test_weights_and_free_entries(exact_reasoner):
    graph = clustered_graph(6, 16, 0.005, weights=(1.0, 2.0, 0.5), entries="free", seed=4)
    assert isinstance(graph, MetastableGraph)
    config = SearchConfig(rounds=120)
    result = search(exact_reasoner(graph), Scales.of(graph, 0.03), config, context(3))
    assert as_set(result.model.edges) == as_set(graph.sparse_edges)

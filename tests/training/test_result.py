"""What an algorithm costs: costs add up, and each algorithm's is what it sampled, worked out by hand on small graphs."""

import math

import numpy as np
import pytest
import torch

import mcot_torch.sampling.datasets as datasets
from mcot_torch import Context
from mcot_torch.algorithms.distill import DistillConfig, distill
from mcot_torch.algorithms.ppo import PPOConfig, ppo
from mcot_torch.algorithms.pretrain import PretrainConfig, pretrain
from mcot_torch.algorithms.prm import PRM
from mcot_torch.algorithms.search import SearchConfig, search
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import LinearReasoner, TransformerReasoner
from mcot_torch.training.config import TrainerConfig
from mcot_torch.training.result import Cost, Result

DOORS = np.zeros((5, 5))  # 0 -> 1 -> 2 -> 0 and 3 -> 4 -> 3 with doors 2 -> 3 and 4 -> 0
DOORS[[0, 1, 2, 3, 4], [1, 2, 0, 4, 3]] = [1, 1, 0.9, 1, 0.9]
DOORS[[2, 4], [3, 0]] = 0.1
KNOWN = torch.tensor([[2, 3], [4, 0]])


def context(folder=None, report=None):
    return Context(0, folder, TrainerConfig(accelerator="cpu", progress=False, save_every=0.0), report=report)


def model_of(kernel, window):
    """A reasoner on the support of a kernel; with window 1 its kernel."""
    kernel = torch.as_tensor(kernel, dtype=torch.float64)
    if window == 1:
        return LinearReasoner.from_kernel(kernel)
    model = TransformerReasoner(len(kernel), window, 16, 1, 2)
    model.reset_parameters(torch.Generator().manual_seed(0))
    model.support.set(kernel > 0)
    return model


# ---- adding up ------------------------------------------------------------------------------------------------------


def test_costs_add_up():
    assert Cost() == Cost(0, 0, 0)
    assert Cost(1, 20, 300) + Cost(4, 50, 600) == Cost(5, 70, 900)
    assert Cost(1, 2, 3) + Cost() == Cost() + Cost(1, 2, 3) == Cost(1, 2, 3)
    parts = [Cost(k, k * k, 1) for k in range(5)]
    assert sum(parts, Cost()) == Cost(10, 30, 5)
    total = Cost(10**17, 3, 1)
    total += Cost(1, 0, 0)
    assert total.transitions == 10**17 + 1  # whole numbers, not rounded


def test_a_result_is_what_it_was_made_of():
    result = Result("model", [{"step": 1}], Cost(1, 2, 3))
    assert (result.model, result.history, result.cost) == ("model", [{"step": 1}], Cost(1, 2, 3))
    with pytest.raises(AttributeError):
        result.cost = Cost()


# ---- pretraining ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sampled(monkeypatch):
    """Steps that the datasets sample: (what is called, steps)."""
    calls = []

    def watch(name, steps):
        function = getattr(datasets, name)

        def call(*arguments):
            calls.append((name, int(steps(*arguments))))
            return function(*arguments)

        monkeypatch.setattr(datasets, name, call)

    watch("walk_counts", lambda table, starts, length, draw: starts.sum() * length)
    watch("pair_counts", lambda table, pairs, draw: pairs)
    watch("walk_paths", lambda table, starts, length, draw: len(starts) * length)
    return calls


def test_cost_of_pretraining_on_counts(small_graph, sampled):
    """10,000 transitions in walks of 30 are 333 walks; each of 12 steps and 2 cuts passes 32 states."""
    config = PretrainConfig(8, 4, transitions=10_000, path_length=30)
    result = pretrain(LinearReasoner(32), small_graph, config, context())
    assert sampled == [("walk_counts", 333 * 30)]
    assert result.cost == Cost(9990, 14 * 32, 12)


def test_cost_of_pretraining_on_pairs(small_graph, sampled):
    config = PretrainConfig(8, 4, data="pairs", transitions=700)
    result = pretrain(LinearReasoner(32), small_graph, config, context())
    assert sampled == [("pair_counts", 700)] * 12
    assert result.cost == Cost(12 * 700, 14 * 32, 12)


@pytest.mark.parametrize(("steps", "after", "cuts"), [(6, 3, 2), (6, 0, 1)])
def test_cost_of_pretraining_with_history(steps, after, cuts, small_graph, sampled):
    """Each step reads 5 paths of 4 steps, and each cut is decided on 64 such batches; with no steps after it there is one."""
    model = TransformerReasoner(32, 4, 8, 1, 2)
    result = pretrain(model, small_graph, PretrainConfig(steps, after, batch_size=5), context())
    contexts = 5 * 4 * (steps + after + cuts * 64)
    assert sum(n for _, n in sampled) == contexts
    assert result.cost == Cost(contexts, contexts, steps + after)


# ---- search ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3])
def test_cost_of_search(window):
    """0 <-> 1, which no walk leaves: each of 5 rounds takes 3 walks of 700 steps, in chunks of 2, 2 and 1 rounds."""
    config = SearchConfig(rounds=5, walks=3, cover_steps=10, max_steps=700)
    result = search(model_of([[0, 1], [1, 0]], window), Scales(2, 2, 0.1, 0.2), config, context())
    transitions = 5 * 3 * 700
    assert result.cost == Cost(transitions, 3 * 2 if window == 1 else transitions, 5)


def test_cost_of_search_that_finds_a_step():
    """A path 0 -> 1 -> 2 -> 3 with 3 -> 3: from 0 one step collects {0, 1}, the second one leaves; and so on."""
    kernel = np.roll(np.eye(4), 1, axis=1)
    kernel[3] = [0, 0, 0, 1]
    config = SearchConfig(rounds=1, walks=3, cover_steps=1, max_steps=9, min_votes=1)
    costs = set()
    for seed in range(20):
        where = context()
        where.seed = seed
        result = search(model_of(kernel, 1), Scales(1, 4, 0.1, 0.2), config, where)
        edges = result.model.edges.tolist()
        costs.add((str(edges), result.cost.transitions))
    # from 0 and 1 out after two steps; from 2 Ĉ = {2, 3} is never left, nor {3} from 3: nine steps
    assert costs == {("[[1, 2]]", 3 * 2), ("[[2, 3]]", 3 * 2), ("[]", 3 * 9)}


def test_cost_of_search_holds_what_each_round_of_rl_cost():
    """Rounds of Algorithm 3 are no rounds of search; its transitions and passes count."""
    kernel = [[0, 1, 0, 0], [0.9, 0, 0.1, 0], [0, 0, 0, 1], [0.1, 0, 0.9, 0]]
    calls = []

    def on_round(edges):
        calls.append(len(edges))
        return Cost(10**9, 10**6, 7)

    config = SearchConfig(mode="rl", rounds=20, walks=5, cover_steps=6, max_steps=200, min_votes=1)
    result = search(model_of(kernel, 1), Scales(2, 2, 0.1, 0.2), config, context(), on_round)
    assert calls
    assert result.cost.rounds == 20
    assert result.cost.forward_passes == 20 * 4 + len(calls) * 10**6
    assert result.cost.transitions // 10**9 == len(calls)
    assert result.history[-1]["transitions"] == result.cost.transitions


# ---- PPO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize(("window", "walkers", "length"), [(1, 20, 25), (3, 169, 3)])
def test_cost_of_ppo(window, walkers, length, gamma, rollouts):
    """510 transitions are 20 walks of 25 steps; with window 3 a walk has 3 steps, whatever `path_length` says.

    Contexts are passed by sampling, twice by the old policy (to weigh and to compare), by the reference, and in each of 2 epochs.
    """
    transitions = 510 if window == 1 else 509
    config = PPOConfig(rounds=4, epochs=2, transitions=transitions, path_length=25, gamma=gamma)
    result = ppo(model_of(DOORS, window), PRM(5, KNOWN), Scales(2, 3, 0.1, 0.2), config, context())
    assert [int(rollout.counts.sum()) for rollout in rollouts] == [walkers * length] * 4
    contexts = 5 if window == 1 else walkers * length
    assert result.cost == Cost(4 * walkers * length, 4 * 6 * contexts, 4)


def test_cost_of_outcomes_ends_where_an_attempt_ends():
    """A ring of five from 0 to 4: walks of 3 steps take 3, then 1, then 3 again; 3 walkers."""
    start, target = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64), torch.arange(5) == 4
    config = PPOConfig(reward="outcome", gamma=0.9, rounds=3, epochs=1, transitions=9, path_length=3)
    model = model_of(np.roll(np.eye(5), 1, axis=1), 1)
    result = ppo(model, PRM(5, torch.empty(0, 2)), Scales(1, 5, 0.1, 0.2), config, context(), start, target)
    assert result.cost == Cost(3 * (3 + 1 + 3), 3 * 5 * 5, 3)


def test_cost_of_the_sign_form():
    """⌈Λ/2η⌉ updates, each a pass over the states; nothing is sampled."""
    config = PPOConfig(form="sign", sign_step=0.1)
    result = ppo(model_of(DOORS, 1), PRM(5, KNOWN), Scales(2, 3, 0.1, 0.2), config, context())
    updates = math.ceil(math.log(0.2 * 0.9 / (0.1 * 0.8)) / 0.2)
    assert result.cost == Cost(0, updates * 5, updates)


# ---- distillation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("transitions", "recorded"), [(1020, 1000), (3, 50)])
@pytest.mark.parametrize("window", [1, 4])
def test_cost_of_distillation(window, transitions, recorded):
    """With the doors shut the heads 0 and 3 are 2, 1 and 1 steps from 1, 2 and 4; 6 walks each. Then each head walks
    4 ⌈2.5 M log M⌉ = 36 steps, rounded up to a block of 64, with 33 walkers. Recorded are whole paths of 50, at least one.
    With window 1 each of these three walks is on a table, made of one pass over 5 states.
    """
    config = DistillConfig(transitions=transitions, path_length=50, label_walks=6, steps=10, beta=1.0)
    result = distill(model_of(DOORS, window), PRM(5, KNOWN), Scales(2, 3, 0.1, 0.2), config, context())
    labelling = 6 * (2 + 1 + 1) + 2 * 33 * 64
    passes = 3 * 5 if window == 1 else labelling + recorded
    assert result.cost == Cost(labelling + recorded, passes + 10 * 2, 10)


# ---- after an interruption ------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


STAGES = {
    "pretrain": lambda graph, around: pretrain(
        LinearReasoner(32), graph, PretrainConfig(6, 4, transitions=9000, path_length=30, log_every=1), around
    ),
    "search": lambda graph, around: search(
        model_of(graph.kernel(), 1), Scales.of(graph, 0.06), SearchConfig(rounds=16), around
    ),
    "ppo": lambda graph, around: ppo(
        model_of(graph.kernel(), 1), PRM.simulated(graph), Scales.of(graph, 0.06),
        PPOConfig(rounds=6, transitions=900, path_length=30, log_every=1), around,
    ),
    "distill": lambda graph, around: distill(
        model_of(graph.kernel(), 1), PRM.simulated(graph), Scales.of(graph, 0.06),
        DistillConfig(transitions=9000, path_length=30, steps=8, log_every=1), around,
    ),
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupted_run_costs_what_a_whole_one_does(stage, small_graph, tmp_path):
    whole, lines = STAGES[stage](small_graph, context()), []

    def stop(line):
        lines.append(line)
        if len(lines) == 3:
            raise Stop

    with pytest.raises(Stop):
        STAGES[stage](small_graph, context(tmp_path, stop))
    assert STAGES[stage](small_graph, context(tmp_path)).cost == whole.cost
    assert min(whole.cost.transitions, whole.cost.forward_passes, whole.cost.rounds) > 0
    assert STAGES[stage](small_graph, context(tmp_path)).cost == whole.cost  # of a stage that has finished

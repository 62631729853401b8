"""Stages that go on to the same bits after an interruption, and errors that say where."""

import math

import pytest
import torch

from mcot_torch import Context
from mcot_torch.algorithms.ppo import PPOConfig, ppo
from mcot_torch.algorithms.pretrain import PretrainConfig, pretrain
from mcot_torch.algorithms.prm import PRM
from mcot_torch.errors import NonFiniteError
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import LinearReasoner, TransformerReasoner
from mcot_torch.training.config import TrainerConfig
from mcot_torch.training.state import load_state


class Stop(Exception):
    pass


def context(folder=None, report=None, save_every=0.0, seed=0):
    return Context(seed, folder, TrainerConfig(accelerator="cpu", progress=False, save_every=save_every), report=report)


def stop_at(step):
    def report(line):
        if line["step"] == step:
            raise Stop

    return report


# ---- resume ---------------------------------------------------------------------------------------------------------


def table(graph):
    return LinearReasoner(graph.n_states)


def transformer(window):
    def build(graph):
        model = TransformerReasoner(graph.n_states, window, 16, 1, 2)
        model.reset_parameters(torch.Generator().manual_seed(0))
        return model

    return build


def run_pretrain(**settings):
    def run(model, graph, around):
        config = PretrainConfig(12, 12, log_every=3, transitions=20_000, path_length=20, batch_size=4, **settings)
        return pretrain(model, graph, config, around).history

    return run


def run_ppo(**settings):
    def run(model, graph, around):
        prm = PRM(graph.n_states, torch.from_numpy(graph.sparse_edges))
        start = torch.zeros(graph.n_states, dtype=torch.float64)
        start[torch.from_numpy(graph.members(0))] = 1 / len(graph.members(0))
        target = torch.zeros(graph.n_states, dtype=torch.bool)
        target[int(graph.entries[1])] = True
        config = PPOConfig(
            rounds=24, epochs=2, log_every=3, transitions=800, path_length=20, learning_rate=0.01, **settings
        )
        return ppo(model, prm, Scales.of(graph, 0.06), config, around, start, target).history

    return run


STAGES = {
    "table, adam": (table, run_pretrain()),
    "table, gd": (table, run_pretrain(optimizer="gd")),
    "table, pairs": (table, run_pretrain(data="pairs")),
    "transformer": (transformer(1), run_pretrain()),
    "transformer, window 4": (transformer(4), run_pretrain()),
    "ppo, table": (table, run_ppo()),
    "ppo, transformer": (transformer(1), run_ppo(minibatches=2)),
    "ppo, window 4": (transformer(4), run_ppo(target_kl=0.01)),
    "ppo, outcome": (table, run_ppo(reward="outcome")),
    "ppo, discounted": (transformer(4), run_ppo(gamma=0.9)),
}


WHOLE = {}


def uninterrupted(name, graph):
    """The model and the history of the stage left alone; run once."""
    if name not in WHOLE:
        build, run = STAGES[name]
        model = build(graph)
        WHOLE[name] = (model, run(model, graph, context()))
    return WHOLE[name]


# before, at and after the cut of pretraining
@pytest.mark.parametrize(
    ("name", "stop"), [(n, s) for n in STAGES for s in ((15,) if n.startswith("ppo") else (3, 12, 15))]
)
def test_interrupted_run_ends_with_the_same_bits(name, stop, small_graph, tmp_path):
    build, run = STAGES[name]
    whole, history = uninterrupted(name, small_graph)
    assert len(history) == 8

    killed = build(small_graph)
    with pytest.raises(Stop):
        run(killed, small_graph, context(tmp_path, stop_at(stop)))
    saved = load_state(tmp_path / "state.safetensors")
    assert saved[1]["step"] == stop - 1  # the report comes before the state of its own step

    lines = []
    resumed = build(small_graph)
    again = run(resumed, small_graph, context(tmp_path, lines.append))
    assert again == history
    assert [line["step"] for line in lines] == list(range(stop, 25, 3))
    ours, theirs = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_second_interruption_is_as_good_as_one(small_graph, tmp_path):
    build, run = STAGES["ppo, outcome"]
    whole, history = uninterrupted("ppo, outcome", small_graph)
    for stop in (6, 9, 21):
        with pytest.raises(Stop):
            run(build(small_graph), small_graph, context(tmp_path, stop_at(stop)))
    resumed = build(small_graph)
    assert run(resumed, small_graph, context(tmp_path)) == history
    assert torch.equal(whole.logits, resumed.logits)


def test_finished_stage_is_not_run_again(small_graph, tmp_path):
    build, run = STAGES["table, adam"]
    first = build(small_graph)
    history = run(first, small_graph, context(tmp_path))
    lines = []
    second = build(small_graph)
    assert run(second, small_graph, context(tmp_path, lines.append)) == history
    assert lines == []
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.support.mask, second.support.mask)


def test_without_a_folder_nothing_is_written(small_graph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build, run = STAGES["table, adam"]
    run(build(small_graph), small_graph, context())
    assert list(tmp_path.iterdir()) == []


def test_states_are_saved_only_when_due(small_graph, tmp_path):
    build, run = STAGES["table, adam"]
    with pytest.raises(Stop):
        run(build(small_graph), small_graph, context(tmp_path, stop_at(12), save_every=1e6))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["table, pairs", "ppo, table", "transformer, window 4"])
def test_same_seed_same_bits_and_another_seed_others(name, small_graph):
    build, run = STAGES[name]
    models = [build(small_graph) for _ in range(3)]
    histories = [run(m, small_graph, context(seed=s)) for m, s in zip(models, (1, 1, 2), strict=True)]
    states = [torch.cat([p.detach().double().reshape(-1) for p in m.parameters()]) for m in models]
    assert histories[0] == histories[1] != histories[2]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [False, True])
def test_non_finite_loss_names_stage_and_step(folder, small_graph, tmp_path):
    model = TransformerReasoner(32, 1, 16, 1, 2)
    config = PretrainConfig(50, 0, transitions=1000, path_length=10, log_every=1)

    def poison(line):
        if line["step"] == 7:
            with torch.no_grad():
                model.embedding.weight[0, 0] = math.nan

    where = tmp_path if folder else None
    with pytest.raises(
        NonFiniteError, match=r"^pretrain: loss .* norm nan at step 7; .*pretrain.learning_rate$"
    ) as error:
        pretrain(model, small_graph, config, context(where, poison))
    assert (str(tmp_path / "state.safetensors") in str(error.value)) == folder
    assert "\n" not in str(error.value)


def test_non_finite_gradient_in_ppo(small_graph, rollouts):
    """Poisoned after the rollout of the third round, between two minibatches."""
    model, scales = table(small_graph), Scales.of(small_graph, 0.06)
    prm = PRM(32, torch.from_numpy(small_graph.sparse_edges))

    def poison(number, rollout):
        if number == 2:
            rollout.gain[5, 0, 5] = math.nan
            rollout.counts[5, 0, 5] = 1
        return rollout

    rollouts.change = poison
    config = PPOConfig(rounds=5, transitions=500, log_every=1)
    lines = []
    with pytest.raises(NonFiniteError, match=r"^ppo: loss nan .* at step 2; no state was kept; .*ppo.learning_rate$"):
        ppo(model, prm, scales, config, context(report=lines.append))
    assert [line["step"] for line in lines] == [1, 2]
    assert bool(model.logits.isfinite().all())


def test_weights_are_untouched_by_a_step_that_is_refused(small_graph):
    model = table(small_graph)
    weights = {}

    def poison(line):
        if line["step"] == 3:
            with torch.no_grad():
                model.logits[0, 0] = math.nan
            weights["before"] = model.logits.detach().clone()

    with pytest.raises(NonFiniteError, match="at step 3;"):
        pretrain(model, small_graph, PretrainConfig(9, 0, transitions=1000, log_every=1), context(report=poison))
    assert torch.equal(model.logits.nan_to_num(-9.0), weights["before"].nan_to_num(-9.0))

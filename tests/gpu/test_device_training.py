"""Training on the device: what is learned, checkpoints and resume, deterministic mode, bf16, the compiler, two ranks."""

import warnings

import numpy as np
import pytest
import torch

import mcot_torch as mt
from mcot_torch.sampling.walks import StepTable, walk_counts
from mcot_torch.system.machine import torch_settings
from mcot_torch.training.config import TrainerConfig

pytestmark = pytest.mark.gpu


@pytest.fixture
def context_of(device):
    def make(folder=None, report=None, **trainer):
        return mt.Context(
            seed=1,
            folder=folder,
            report=report,
            trainer=TrainerConfig(accelerator=device.type, progress=False, **trainer),
        )

    return make


def fresh(kind, graph, device):
    if kind == "table":
        return mt.LinearReasoner(graph.n_states).to(device)
    model = mt.TransformerReasoner(
        graph.n_states, window=4 if kind == "window_4" else 1, width=32, n_layers=1, n_heads=2
    )
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model.to(device)


def hard_steps(model, graph):
    source, target = graph.sparse_edges.T
    return model.kernel().cpu().numpy()[source, target]


CONFIG = mt.PretrainConfig(steps=150, steps_after_cut=50, transitions=4_000_000, log_every=50)


@pytest.mark.parametrize("kind", ["table", "window_1"])
def test_pretraining_learns_the_chain(kind, graph, device, context_of):
    model = fresh(kind, graph, device)
    result = mt.pretrain(model, graph, CONFIG, context_of())
    assert model.device.type == device.type
    assert torch.equal(model.support.mask.cpu(), torch.from_numpy(graph.kernel() > 0))
    # 4e6 transitions show a hard step 2,500 times: 2 % of noise, 5 sigma, and as much for the training.
    assert hard_steps(model, graph) == pytest.approx(graph.epsilon, rel=0.15)
    assert all(np.isfinite(line["loss"]) for line in result.history)


def test_pretraining_a_window_and_its_lists(listed_graph, device, context_of):
    config = mt.PretrainConfig(steps=60, steps_after_cut=20, batch_size=64, log_every=20, threshold=1e-3)
    result = mt.pretrain(fresh("window_4", listed_graph, device), listed_graph, config, context_of())
    losses = [line["loss"] for line in result.history]
    assert losses[-1] < losses[0]
    exact = mt.pretrain(fresh("table", listed_graph, device), listed_graph, CONFIG, context_of()).model
    assert exact.support.successors is not None


def test_search_finds_the_hard_steps(graph, device, context_of):
    exact = mt.LinearReasoner.from_kernel(torch.from_numpy(graph.kernel())).to(device)
    found = mt.search(exact, mt.Scales.of(graph, 0.1), mt.SearchConfig(rounds=40), context_of()).model
    assert sorted(map(tuple, found.edges.tolist())) == sorted(map(tuple, graph.sparse_edges.tolist()))


@pytest.mark.parametrize("kind", ["table", "window_1"])
def test_ppo_raises_the_hard_steps(kind, graph, device, context_of):
    model = fresh(kind, graph, device)
    mt.pretrain(model, graph, CONFIG, context_of())
    rate = 0.03 if kind == "table" else 3e-3
    config = mt.PPOConfig(rounds=30, epochs=6, transitions=20_000, path_length=64, learning_rate=rate, log_every=10)
    mt.ppo(model, mt.PRM.simulated(graph), mt.Scales.of(graph, 0.1), config, context_of())
    assert hard_steps(model, graph).mean() == pytest.approx(0.1, rel=0.25)


def test_ppo_with_outcome_reward_and_window_4(graph, device, context_of):
    start, target = torch.ones(graph.n_states, dtype=torch.float64), torch.zeros(graph.n_states, dtype=torch.bool)
    target[-4:] = True
    prm, scales = mt.PRM.simulated(graph), mt.Scales.of(graph, 0.1)
    for kind, reward in (("table", "outcome"), ("window_4", "process"), ("window_4", "outcome")):
        config = mt.PPOConfig(
            rounds=2, epochs=2, minibatches=2, transitions=2000, path_length=32, reward=reward, target_kl=1.0
        )
        result = mt.ppo(fresh(kind, graph, device), prm, scales, config, context_of(), start, target)
        assert all(np.isfinite(list(line.values())).all() for line in result.history)


def test_distillation(graph, device, context_of):
    true = graph.with_epsilon(0.05)
    teacher = mt.LinearReasoner.from_kernel(torch.from_numpy(true.kernel())).to(device)
    config = mt.DistillConfig(transitions=2_000_000, path_length=64, steps=200)
    student = mt.distill(teacher, mt.PRM.simulated(true), mt.Scales.of(true, 0.1), config, context_of()).model
    assert student.device.type == device.type
    labels = student.labels.cpu().numpy()
    assert all(len(set(labels[true.clusters == k])) == 1 for k in range(true.n_clusters))
    assert len(set(labels)) == true.n_clusters
    hops = student.kernel().cpu()
    assert torch.isfinite(hops).all()
    torch.testing.assert_close(hops.sum(1), torch.ones(true.n_clusters, dtype=torch.float64))


# ---- checkpoints and resume -----------------------------------------------------------------------------------------


class Stopped(Exception):
    """Raised in place of a kill."""


def stopping(at):
    def report(line):
        if line["step"] >= at:
            raise Stopped

    return report


def assert_same(one, two):
    for key, value in one.state_dict().items():
        assert torch.equal(value.cpu(), two.state_dict()[key].cpu()), key


def assert_close(one, two):
    """Equal up to the order in which a device may add; the deterministic mode has tests of its own."""
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value.cpu(), two.state_dict()[key].cpu(), rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("kind", ["table", "window_1", "window_4"])
def test_pretraining_resumes(kind, graph, device, context_of, tmp_path):
    config = mt.PretrainConfig(steps=40, steps_after_cut=20, transitions=1_000_000, log_every=10, threshold=1e-3)
    exact = kind == "window_4"  # attention's gradients alone depend on the order of their sums
    whole = mt.pretrain(fresh(kind, graph, device), graph, config, context_of(deterministic=exact))
    for at in (20, 50):  # before the cut, and after it
        with pytest.raises(Stopped):
            mt.pretrain(
                fresh(kind, graph, device),
                graph,
                config,
                context_of(tmp_path, stopping(at), deterministic=exact, save_every=0.0),
            )
        assert (tmp_path / "state.safetensors").exists()
    model = fresh(kind, graph, device)
    again = mt.pretrain(model, graph, config, context_of(tmp_path, deterministic=exact))
    assert_close(model, whole.model)
    assert [line["loss"] for line in again.history] == pytest.approx([line["loss"] for line in whole.history], rel=1e-6)


@pytest.mark.parametrize("reward", ["process", "outcome"])
def test_ppo_resumes(reward, graph, device, context_of, tmp_path):
    prm, scales = mt.PRM.simulated(graph), mt.Scales.of(graph, 0.1)
    start, target = torch.ones(graph.n_states, dtype=torch.float64), torch.zeros(graph.n_states, dtype=torch.bool)
    target[-4:] = True
    config = mt.PPOConfig(rounds=6, epochs=2, transitions=4000, path_length=32, reward=reward, log_every=2)

    def run(context):
        exact = mt.LinearReasoner.from_kernel(torch.from_numpy(graph.kernel())).to(device)
        return mt.ppo(exact, prm, scales, config, context, start, target)

    whole = run(context_of())
    with pytest.raises(Stopped):
        run(context_of(tmp_path, stopping(4), save_every=0.0))
    again = run(context_of(tmp_path))
    assert_close(again.model, whole.model)
    rewards = [[line["mean_reward"] for line in result.history] for result in (again, whole)]
    assert rewards[0] == pytest.approx(rewards[1], rel=1e-9)


def test_a_checkpoint_of_the_device_goes_on_on_the_cpu(graph, device, context_of, tmp_path):
    config = mt.PretrainConfig(steps=40, steps_after_cut=20, transitions=1_000_000, log_every=10)
    with pytest.raises(Stopped):
        mt.pretrain(fresh("table", graph, device), graph, config, context_of(tmp_path, stopping(30), save_every=0.0))
    model = fresh("table", graph, "cpu")
    trainer = TrainerConfig(accelerator="cpu", progress=False)
    result = mt.pretrain(model, graph, config, mt.Context(seed=1, folder=tmp_path, trainer=trainer))
    assert result.history[-1]["step"] == 60


# ---- modes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["table", "window_1", "window_4"])
def test_deterministic_mode_gives_the_same_bits(kind, graph, device, context_of):
    config = mt.PretrainConfig(steps=30, steps_after_cut=10, transitions=1_000_000, log_every=10, threshold=1e-3)
    prm, scales, results = mt.PRM.simulated(graph), mt.Scales.of(graph, 0.1), []
    with torch_settings(1, deterministic=True):  # as train.py has it: also while data are sampled
        for _ in range(2):
            model = mt.pretrain(fresh(kind, graph, device), graph, config, context_of(deterministic=True)).model
            ppo = mt.PPOConfig(rounds=2, epochs=2, transitions=4000, path_length=32)
            mt.ppo(model, prm, scales, ppo, context_of(deterministic=True))
            results.append(model)
    assert_same(*results)


def test_deterministic_mode_samples(graph, device):
    table = StepTable.from_graph(graph, device)
    with torch_settings(1, deterministic=True):
        for walkers in (10.0, 1000.0):
            start = torch.full((graph.n_states,), walkers, device=device)
            one, two = (walk_counts(table, start, 20, torch.Generator(device).manual_seed(3)) for _ in range(2))
            assert torch.equal(one, two)


def test_deterministic_mode_searches_and_distils(graph, device, context_of):
    true = graph.with_epsilon(0.05)
    teacher = mt.LinearReasoner.from_kernel(torch.from_numpy(true.kernel())).to(device)
    scales, prm, config = (
        mt.Scales.of(true, 0.1),
        mt.PRM.simulated(true),
        mt.DistillConfig(transitions=200_000, steps=20),
    )
    with torch_settings(1, deterministic=True):
        found = [
            mt.search(teacher, scales, mt.SearchConfig(rounds=8), context_of(deterministic=True)) for _ in range(2)
        ]
        assert torch.equal(found[0].model.edges, found[1].model.edges)
        students = [mt.distill(teacher, prm, scales, config, context_of(deterministic=True)).model for _ in range(2)]
    assert_same(*students)


def test_bf16_keeps_the_hard_steps_within_a_factor(graph, device, context_of):
    """bf16-mixed costs about a tenth on the hard steps; a factor of 1.5 is allowed."""
    model = fresh("window_1", graph, device)
    mt.pretrain(model, graph, CONFIG, context_of(precision="bf16-mixed"))
    found = hard_steps(model, graph)
    assert 1 / 1.5 < (found / graph.epsilon).min()
    assert (found / graph.epsilon).max() < 1.5
    config = mt.PPOConfig(rounds=2, epochs=2, transitions=4000, path_length=32)
    mt.ppo(model, mt.PRM.simulated(graph), mt.Scales.of(graph, 0.1), config, context_of(precision="bf16-mixed"))
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in model.parameters())


# ---- two ranks ------------------------------------------------------------------------------------------------------


def test_two_ranks_of_gloo_on_one_device(graph, ranks):
    """NCCL refuses two ranks on one GPU and stays untested; gloo exchanges the same tensors."""
    statuses, printed = ranks.finish(60)
    assert statuses == [0, 0], "\n".join(printed)
    models = [mt.load_reasoner(ranks.folder / f"rank{r}") for r in range(2)]
    assert_same(*models)
    assert hard_steps(models[0], graph) == pytest.approx(graph.epsilon, rel=0.2)


# ---- last, because a compiler takes longer than all other tests ------------------------------------------------------


def test_compiled_pretraining_gives_the_numbers_of_eager(graph, device, context_of):
    config = mt.PretrainConfig(steps=4, steps_after_cut=2, batch_size=8, log_every=1, threshold=0.0)
    eager = mt.pretrain(fresh("window_4", graph, device), graph, config, context_of())
    config.compile = True
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="nothing is compiled")
        result = mt.pretrain(fresh("window_4", graph, device), graph, config, context_of())
    for one, two in zip(result.history, eager.history, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)

"""Lists of the supported steps: every stage does with them what it does with whole rows."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from mcot_torch import Context
from mcot_torch.algorithms.ppo import PPOConfig, ppo
from mcot_torch.algorithms.pretrain import PretrainConfig, block_loss, pretrain
from mcot_torch.algorithms.prm import PRM, avoid, guidance, tilt_strength
from mcot_torch.evaluation.measures import make_probe
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import LinearReasoner, Reasoner, TransformerReasoner, sparse_kernel, step_table, walks
from mcot_torch.sampling.datasets import path_batch
from mcot_torch.training.config import TrainerConfig

N = 12
MODELS = [("linear", 1), ("transformer", 1), ("transformer", 4), ("of a user", 1)]
STILL = 1e-30  # a learning rate that moves no weight
CONTEXT = Context(trainer=TrainerConfig(accelerator="cpu", progress=False))


class Plain(Reasoner):
    """What a user writes: `forward` and nothing else."""

    def __init__(self, n_states: int) -> None:
        super().__init__(n_states)
        self.inner = torch.nn.Embedding(n_states, n_states, dtype=torch.float64)

    def forward(self, states):
        return self.inner(states)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def model_of(kind, window):
    """Random weights; rows of 1 to 5 supported steps."""
    if kind == "transformer":
        model = TransformerReasoner(N, window, 8, 2, 2).double()
    else:
        model = LinearReasoner(N) if kind == "linear" else Plain(N)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.7, generator=seeded(1))
    support = torch.zeros(N, N, dtype=torch.bool)
    for x in range(N):
        support[x, torch.randperm(N, generator=seeded(x))[: 1 + x % 5]] = True
    model.support.set(support)
    return model


def both(list_when_shorter, call):
    """What `call` gives with whole rows, and with lists."""
    results = []
    for short in (math.inf, 1):
        list_when_shorter(short)
        results.append(call())
    return results


def spread(model, states, x):
    """(B, T, N) of what stands at the lists of the states, −inf elsewhere."""
    return torch.full((*x.shape[:-1], N), -torch.inf, dtype=x.dtype).scatter(-1, model.support.successors_of(states), x)


def test_what_the_lists_hold(list_when_shorter):
    list_when_shorter(2)
    model = model_of("linear", 1)
    lists = model.support.successors
    assert lists.shape == (N, 5)
    assert model.support.width == 5
    for x in range(N):
        row = lists[x].tolist()
        assert row == sorted(set(row))
        assert set(row) >= set(model.support.mask[x].nonzero()[:, 0].tolist())
    mask = model.support.mask.clone()
    mask[0, :7] = True  # 7 · 2 > 12
    model.support.set(mask)
    assert model.support.successors is None
    assert model.support.width == N
    model.support.cut(torch.eye(N, dtype=torch.float64), 0.5)
    assert model.support.successors.tolist() == [[x] for x in range(N)]


class Cold(TransformerReasoner):
    """A model of the package with another `forward`."""

    def forward(self, states, cache=None):
        return 5 * super().forward(states, cache)


@pytest.mark.parametrize("window", [1, 4])
def test_a_subclass_with_another_forward_is_heard(window, list_when_shorter):
    list_when_shorter(1)
    model = Cold(N, window, 8, 1, 2).double()
    plain = TransformerReasoner(N, window, 8, 1, 2).double()
    for weight, other in zip(model.parameters(), plain.parameters(), strict=True):
        weight.data.normal_(std=0.5, generator=seeded(1))
        other.data.copy_(weight)
    model.support.set(model_of("linear", 1).support.mask)
    states = torch.randint(N, (6, window), generator=seeded(2))
    log_p = (5 * plain(states)).masked_fill(~model.support.mask[states], -torch.inf).log_softmax(-1)
    torch.testing.assert_close(spread(model, states, model.successor_log_probs(states)), log_p, rtol=1e-12, atol=1e-13)
    walker = walks.walker(model, torch.full((20_000,), 4), seeded(3))
    counts = torch.bincount(walker.advance(1)[:, 0], minlength=N).numpy()
    p = model.log_probs(torch.tensor([[4]]))[0, 0].exp().detach().numpy()
    assert stats.chisquare(counts[p > 0], 20_000 * p[p > 0] / p.sum()).pvalue > 1e-7


def test_models_made_in_inference_mode():
    with torch.inference_mode():
        model = LinearReasoner(32)
        assert model.support.successors is None
        model.support.set(torch.eye(32, dtype=torch.bool))
        assert model.support.successors.tolist() == [[x] for x in range(32)]
        np.testing.assert_allclose(model.kernel(), np.eye(32))


def test_a_policy_that_leaves_nothing_is_an_error(list_when_shorter):
    list_when_shorter(1)
    model = model_of("linear", 1)
    with pytest.raises(ValueError, match="state 0 has no successor"):  # its one step
        step_table(model, avoid(torch.tensor([[0, int(model.support.mask[0].int().argmax())]]), model))


def test_a_reference_that_may_do_more(list_when_shorter):
    """Total variation counts what the reference gives to steps that the policy has not."""
    edges = torch.tensor([[4, int(model_of("linear", 1).support.mask[4].int().argmax())]])

    def metrics():
        model, reference = model_of("linear", 1), model_of("linear", 1)
        reference.support.set(torch.ones(N, N))
        config = PPOConfig(rounds=1, epochs=1, learning_rate=STILL)
        (found,) = ppo(model, PRM(N, edges), Scales(3, 4, 0.02, 0.1), config, CONTEXT, reference=reference).history
        return found, reference.kernel(), model.kernel()

    for found, q, p in both(list_when_shorter, metrics):
        assert found["tv_to_pretrained_max"] == pytest.approx(float((p - q).abs().sum(1).max()) / 2, rel=1e-10)


def test_no_lists_before_the_cut():
    model = LinearReasoner(N)
    assert model.support.successors is None
    assert model.support.allowed(torch.arange(N)) is None
    mask = model.support.mask.clone()
    mask[3, 4] = False
    model.support.set(mask)
    assert model.support.allowed(torch.tensor([3])).tolist() == [[y != 4 for y in range(N)]]


@pytest.mark.parametrize(("kind", "window"), MODELS)
def test_predictions(kind, window, list_when_shorter):
    list_when_shorter(1)
    model = model_of(kind, window)
    states = torch.randint(N, (9, window), generator=seeded(2))
    after = torch.randint(N, (9, window, 3), generator=seeded(3))
    logits = model(states).masked_fill(~model.support.mask[states], -torch.inf)
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    assert model.successor_log_probs(states).shape == (9, window, 5)
    torch.testing.assert_close(spread(model, states, model.successor_log_probs(states)), log_p, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.log_probs_of(states, after), log_p.gather(-1, after), rtol=1e-12, atol=1e-14)
    assert (model.log_probs_of(states, after) == -torch.inf).any()
    torch.testing.assert_close(model.log_probs_of(states, None), log_p, rtol=1e-12, atol=1e-14)
    table = torch.rand(N, N, generator=seeded(4))
    assert torch.equal(model.support.pick(table, states), table[states].gather(-1, model.support.successors_of(states)))
    supported = model.support.mask.int().argmax(1)[states]
    assert torch.equal(
        model.support.successors_of(states).gather(-1, model.support.places(states, supported)[..., None])[..., 0],
        supported,
    )
    places = model.support.places(states[..., None], after)  # of steps that no list names too
    assert 0 <= int(places.min()) <= int(places.max()) < 5


@pytest.mark.parametrize(("kind", "window"), MODELS)
def test_tables_and_sparse_kernels(kind, window, list_when_shorter):
    if window > 1:
        for lists in (1, math.inf):
            list_when_shorter(lists)
            with pytest.raises(ValueError, match="window"):
                step_table(model_of(kind, window))
            with pytest.raises(ValueError, match="window"):
                sparse_kernel(model_of(kind, window))
        return
    model = model_of(kind, window)
    dense = model.kernel()
    for sparse in both(list_when_shorter, lambda: sparse_kernel(model_of(kind, window))):
        assert sparse.nnz == int(model.support.mask.sum())
        np.testing.assert_allclose(sparse.toarray(), dense, rtol=1e-12)
    for table in both(list_when_shorter, lambda: step_table(model_of(kind, window))):
        np.testing.assert_allclose(table.to_edges(table.probabilities), dense, rtol=1e-12)
        assert bool(model.support.mask[torch.arange(N)[:, None], table.successors].all())  # padding repeats a real one


def test_policies_on_lists(list_when_shorter):
    """Guidance and avoidance, which may forbid the first step of a list, and the padding of every table is possible."""
    kernel = model_of("linear", 1).kernel()
    edges = torch.stack([torch.arange(N), kernel.argmax(1)], 1)[1:5]  # rows of 2 to 5 steps
    prm, scales = PRM(N, edges), Scales(3, 4, 0.02, 0.03)

    def tables():
        model = model_of("linear", 1)
        return [step_table(model, p) for p in (guidance(prm, scales), avoid(edges, model))]

    avoided = kernel.clone()
    avoided[edges[:, 0], edges[:, 1]] = 0.0
    raised = kernel.clone()
    mass = raised[edges[:, 0], edges[:, 1]]
    raised[edges[:, 0], edges[:, 1]] = mass * tilt_strength(mass, scales).exp()
    for guided, easy in both(list_when_shorter, tables):
        for table, expected in ((guided, raised), (easy, avoided)):
            rows = expected / expected.sum(1, keepdim=True)
            np.testing.assert_allclose(table.to_edges(table.probabilities), rows, rtol=1e-12, atol=1e-300)
            assert bool((rows.gather(1, table.successors) > 0).all())


@pytest.mark.parametrize(("kind", "window"), MODELS)
def test_loss_and_gradient_of_pretraining(kind, window, list_when_shorter):
    """Observations of steps that are cut count neither for the loss nor for its divisor."""
    states, after, counts = path_batch(torch.randint(N, (30, window + 1), generator=seeded(5)))

    def loss_and_gradient():
        model = model_of(kind, window)
        seen = torch.where(model.support.mask[states[..., None], after], counts.double(), 0.0)
        places = model.support.places(states[..., None], after)
        loss = block_loss(
            model, states, model.support.successors_of(states), model.support.allowed(states), places, seen, seen.sum()
        )
        return loss, torch.autograd.grad(loss, list(model.parameters()))

    (loss, gradient), (again, listed) = both(list_when_shorter, loss_and_gradient)
    assert float(loss) == pytest.approx(float(again), rel=1e-12)
    for a, b in zip(gradient, listed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", ["linear", "transformer"])
def test_pretraining_through_the_cut(kind, list_when_shorter):
    graph = clustered_graph(4, 8, 0.02, seed=3)

    def trained():
        model = LinearReasoner(32) if kind == "linear" else TransformerReasoner(32, 1, 16, 1, 2).double()
        if kind == "transformer":
            model.reset_parameters(seeded(0))
        config = PretrainConfig(steps=30, steps_after_cut=30, threshold=0.02, transitions=20_000, path_length=20)
        return model, pretrain(model, graph, config, CONTEXT).history

    (whole, history), (model, again) = both(list_when_shorter, trained)
    assert model.support.successors is not None
    assert torch.equal(model.support.mask, whole.support.mask)
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
    for line, expected in zip(again, history, strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.9])
@pytest.mark.parametrize(("kind", "window"), MODELS)
def test_a_round_of_ppo(kind, window, gamma, list_when_shorter, descents, rollouts):
    """What was sampled with lists, spread over whole rows: same advantages' loss, gradient, metrics and KL limit.

    A round takes its first step at the policy that sampled; all that follows happens at another one, put in its place.
    """
    edges = torch.stack([torch.arange(N), model_of(kind, window).support.mask.int().argmax(1)], 1)[3:8]
    settings = {"rounds": 1, "epochs": 2, "transitions": 600, "path_length": 10, "clip": 0.05, "gamma": gamma}
    settings |= {"entropy_coefficient": 0.1, "learning_rate": 0.5}

    def moved(weights, seed):
        with torch.no_grad():
            for weight in weights:
                weight.add_(0.3 * torch.randn(weight.shape, generator=seeded(seed), dtype=torch.float64))

    def round_of(**more):
        """The model after a round, the steps taken in it, the rollout, and what was logged."""
        descents.clear()
        rollouts.clear()
        model, reference = model_of(kind, window), model_of(kind, window)
        moved(model.parameters(), 6)  # away from the reference
        elsewhere = [weight.detach().clone() for weight in model.parameters()]
        moved(elsewhere, 8)

        def put(number, weights):
            for weight, there in zip(weights, elsewhere, strict=True):
                weight.copy_(there)

        descents.then = put
        config = PPOConfig(**settings, **more)
        (line,) = ppo(model, PRM(N, edges), Scales(3, 4, 0.02, 0.1), config, CONTEXT, reference=reference).history
        return model, list(descents), rollouts[0], line

    def results():
        """Loss and gradient of the second pass, in two minibatches; the metrics; the steps of rounds with limits of the KL."""
        _, steps, _, line = round_of(minibatches=2, target_kl=9.0)
        assert len(steps) == 4
        gradient = [sum(parts) for parts in zip(*(step.gradients for step in steps[2:]), strict=True)]
        limits = [line["approx_kl"] * (1 + x) for x in (-1e-10, 1e-10)]
        taken = [len(round_of(target_kl=limit)[1]) for limit in limits]
        return sum(step.loss for step in steps[2:]), gradient, line, taken

    list_when_shorter(1)
    model, _, rollout, _ = round_of(minibatches=2, target_kl=9.0)
    assert rollout.counts.shape[-1] == 5
    names = ("counts", "gain", "loss")
    rows = {x: spread(model, rollout.states, getattr(rollout, x)).clamp_min(0) for x in names}
    assert float(rows["gain"].max()) > 0
    assert float(rows["loss"].max()) > 0
    whole = replace(rollout, **rows)

    rollouts.change = lambda *_: rollout
    loss, gradient, metrics, taken = results()
    list_when_shorter(math.inf)
    rollouts.change = lambda *_: whole
    assert model_of(kind, window).support.successors is None
    dense_loss, dense_gradient, dense_metrics, dense_taken = results()
    assert loss == pytest.approx(dense_loss, rel=1e-10)
    for a, b in zip(gradient, dense_gradient, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert metrics == pytest.approx(dense_metrics, rel=1e-8)
    assert metrics["approx_kl"] == pytest.approx(dense_metrics["approx_kl"], rel=1e-10)
    assert metrics["learning_rate"] == 0.5
    assert "tv_to_optimum_max" not in metrics  # it is not known with an entropy bonus
    assert taken == dense_taken == [1, 2]


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_distance_from_the_optimum(gamma, list_when_shorter):
    """Without an entropy bonus the optimum is known, and so is how far from it the policy stands."""
    edges = torch.tensor([[4, int(model_of("linear", 1).support.mask[4].int().argmax())]])

    def distance():
        model, reference = model_of("linear", 1), model_of("linear", 1)
        with torch.no_grad():
            model.logits.add_(0.5 * torch.randn(N, N, generator=seeded(9), dtype=torch.float64))
        config = PPOConfig(rounds=1, epochs=1, transitions=600, path_length=10, gamma=gamma, learning_rate=STILL)
        (line,) = ppo(model, PRM(N, edges), Scales(3, 4, 0.02, 0.1), config, CONTEXT, reference=reference).history
        return line["tv_to_optimum_max"]

    whole, listed = both(list_when_shorter, distance)
    assert listed == pytest.approx(whole, rel=1e-10)
    assert whole > 0.05


def test_walkers_with_history_follow_the_predictions(list_when_shorter):
    """20,000 walkers from each of two states, one step: frequencies against the model's probabilities, false alarm 1e-7."""
    list_when_shorter(1)
    model = model_of("transformer", 4)
    for state in (4, 9):  # five supported steps
        walker = walks.walker(model, torch.full((20_000,), state), seeded(state))
        counts = torch.bincount(walker.advance(1)[:, 0], minlength=N).numpy()
        p = model.log_probs(torch.tensor([[state]]))[0, 0].exp().detach().numpy()
        assert (p > 0).sum() == 5
        assert counts[p == 0].sum() == 0
        assert stats.chisquare(counts[p > 0], 20_000 * p[p > 0] / p.sum()).pvalue > 1e-7


def test_what_training_logs(list_when_shorter):
    """Against the definitions, on a support that lacks some true steps and has some others."""
    graph = clustered_graph(3, 4, 0.05, jumps=(1, -1), degree=2, seed=1)
    truth = graph.kernel()
    model = model_of("linear", 1)
    p = model.kernel().numpy()
    support, tv, hard = model.support.mask.numpy(), abs(p - truth).sum(1) / 2, p[tuple(graph.sparse_edges.T)]
    expected = {
        "sup_error": abs(p - truth).max(),
        "row_tv_mean": tv.mean(),
        "row_tv_max": tv.max(),
        "row_tv_easy_max": tv[graph.hard_weight == 0].max(),
        "support_recall": (support & (truth > 0)).sum() / (truth > 0).sum(),
        "support_precision": (support & (truth > 0)).sum() / support.sum(),
        "hard_step_min": hard.min(),
        "hard_step_mean": hard.mean(),
        "hard_step_max": hard.max(),
    }
    assert 0 < expected["support_recall"] < 1
    assert 0 < expected["support_precision"] < 1
    for probed in both(list_when_shorter, lambda: make_probe(graph)(model_of("linear", 1))):
        assert probed == pytest.approx(expected, rel=1e-10)

"""Reasoners, losses, gradients, advantages, PRM and files on the device give the CPU's numbers."""

import copy

import pytest
import torch

import mcot_torch as mt
from mcot_torch.algorithms.lift import lift
from mcot_torch.algorithms.ppo import (
    clipped_surrogate,
    entropy,
    kl_divergence,
    kl_weights,
    losses_in_blocks,
    sign_ascent,
    surrogate_of_rollout,
)
from mcot_torch.algorithms.pretrain import block_loss, negative_log_likelihood
from mcot_torch.algorithms.pretrain import losses_in_blocks as pretraining_losses
from mcot_torch.algorithms.prm import avoid, tilt, tilt_strength
from mcot_torch.algorithms.rollouts import gae, gae_rollout, one_step_rollout, penalised, soft_values
from mcot_torch.evaluation.measures import make_probe
from mcot_torch.reasoners.decoding import UncachedDecoder
from mcot_torch.reasoners.walks import sparse_kernel, step_table
from mcot_torch.sampling.attempts import Attempts, TransitionCounts
from mcot_torch.sampling.datasets import count_batch, path_batch
from mcot_torch.sampling.walks import StepTable, walk_paths

pytestmark = pytest.mark.gpu

DOUBLE, SINGLE = 1e-12, 1e-5
KINDS = ("table", "window_1", "window_4", "lists", "student")


def made(kind, graph, listed_graph):
    """A reasoner with weights that are not those of a fresh one, on the CPU."""
    draw = torch.Generator().manual_seed(5)
    if kind == "table":
        model = mt.LinearReasoner(graph.n_states)
        model.logits.data.normal_(generator=draw)
    elif kind == "student":
        model = mt.Student(mt.LinearReasoner(graph.n_clusters), graph.n_states)
        model.model.logits.data.normal_(generator=draw)
        model.beta.fill_(2.5)
        model.labels.copy_(torch.from_numpy(graph.clusters))
        model.representatives.copy_(torch.arange(graph.n_clusters) * 8)
    else:
        n = (listed_graph if kind == "lists" else graph).n_states
        model = mt.TransformerReasoner(n, window=4 if kind == "window_4" else 1, width=32, n_layers=2, n_heads=2)
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3, generator=draw)
    if kind == "lists":
        model.support.set(torch.from_numpy(listed_graph.kernel() > 0))
        assert model.support.successors is not None
    elif kind != "student":
        model.support.set(torch.from_numpy(graph.kernel() > 0))
    return model


@pytest.fixture(params=KINDS)
def pair(request, graph, listed_graph, device):
    """A reasoner on the CPU, its copy on the device, and the tolerance of its dtype."""
    ours = made(request.param, graph, listed_graph)
    exact = next(ours.parameters()).dtype == torch.float64
    return ours, copy.deepcopy(ours).to(device), DOUBLE if exact else SINGLE


def contexts_of(model, n=64):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(model.n_states, (n, model.window), generator=draw)


def test_predictions(pair, close, device):
    ours, theirs, tolerance = pair
    states = contexts_of(ours)
    after = torch.randint(ours.n_states, (*states.shape, 3), generator=torch.Generator().manual_seed(2))
    close(theirs(states.to(device)), ours(states), tolerance)
    close(theirs.log_probs(states.to(device)), ours.log_probs(states), tolerance)
    close(theirs.log_probs(states.to(device), cut=False), ours.log_probs(states, cut=False), tolerance)
    close(theirs.successor_log_probs(states.to(device)), ours.successor_log_probs(states), tolerance)
    close(theirs.log_probs_of(states.to(device), after.to(device)), ours.log_probs_of(states, after), tolerance)
    close(theirs.logits_of(states.to(device), after.to(device)), ours.logits_of(states, after), tolerance)


def test_kernels_and_lists(pair, close, device):
    ours, theirs, tolerance = pair
    if ours.window == 1:
        close(theirs.kernel(), ours.kernel(), tolerance)
        close(step_table(theirs).probabilities, step_table(ours).probabilities, tolerance)
        assert torch.equal(step_table(theirs).successors.cpu(), step_table(ours).successors)
        close(sparse_kernel(theirs).toarray(), sparse_kernel(ours).toarray(), tolerance)
    for found, expected in zip(
        theirs.context_kernel(contexts_of(ours).to(device)), ours.context_kernel(contexts_of(ours)), strict=True
    ):
        close(found, expected, tolerance)
    here, there = ours.support, theirs.support
    assert here.width == there.width
    states, after = torch.from_numpy(here.mask.numpy()).nonzero(as_tuple=True)
    assert torch.equal(there.places(states.to(device), after.to(device)).cpu(), here.places(states, after))
    if here.successors is not None:
        assert torch.equal(there.successors.cpu(), here.successors)


def test_exact_times_of_kernels(pair, graph, listed_graph):
    """Chain routines take what the device computed, copied to the host."""
    ours, theirs, tolerance = pair
    if ours.window > 1:
        return
    times = [mt.hitting_time(model.kernel().cpu().numpy(), 0, [ours.n_states - 1]) for model in (ours, theirs)]
    # A relative error of the kernel's entries gives one of the hitting time, times the visits to a cluster.
    assert times[1] == pytest.approx(times[0], rel=100 * tolerance)


@pytest.mark.parametrize("kind", ["table", "window_1", "lists"])
def test_the_cut_and_the_probe(kind, graph, listed_graph, close, device):
    ours = made(kind, graph, listed_graph)
    theirs = copy.deepcopy(ours).to(device)
    threshold = float(ours.kernel()[ours.support.mask].quantile(0.3)) * 1.0001
    assert theirs.support.cut(theirs.kernel(), threshold) == ours.support.cut(ours.kernel(), threshold)
    assert torch.equal(theirs.support.mask.cpu(), ours.support.mask)
    probe = make_probe(listed_graph if kind == "lists" else graph)
    found, expected = probe(theirs), probe(ours)
    assert found.keys() == expected.keys()
    close(list(found.values()), list(expected.values()), SINGLE)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare_gradients(close, found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        close(found[name] / (largest or 1.0), gradient / (largest or 1.0), tolerance)


def batch_of(model, graph, listed_graph, kind):
    """A batch of Algorithm 1 on the CPU."""
    draw = torch.Generator().manual_seed(3)
    table = StepTable.from_graph(listed_graph if kind == "lists" else graph)
    if model.window > 1:
        return path_batch(walk_paths(table, torch.arange(model.n_states), model.window, draw))
    counts = torch.randint(0, 1000, table.successors.shape, generator=draw) * (table.probabilities > 0)
    return count_batch(counts.double(), table.successors, next(model.parameters()).dtype)


@pytest.mark.parametrize("kind", ["table", "window_1", "window_4", "lists"])
def test_pretraining_loss_and_gradient(kind, graph, listed_graph, close, device):
    ours = made(kind, graph, listed_graph)
    theirs = copy.deepcopy(ours).to(device)
    batch = batch_of(ours, graph, listed_graph, kind)
    tolerance = DOUBLE if kind == "table" else SINGLE
    results = []
    for model, given in ((ours, batch), (theirs, tuple(x.to(device) for x in batch))):
        loss = sum(pretraining_losses(model, given, lambda x: x, block_loss))
        results.append((loss.detach(), gradients(model, loss)))
    close(results[1][0], results[0][0], tolerance)
    compare_gradients(close, results[1][1], results[0][1], tolerance)


def test_losses_of_tensors(close, device):
    draw = torch.Generator().manual_seed(4)
    log_p = torch.randn(40, 7, generator=draw, dtype=torch.float64).log_softmax(-1)
    log_q = torch.randn(40, 7, generator=draw, dtype=torch.float64).log_softmax(-1)
    log_p[::3, 2] = -torch.inf
    counts = torch.randint(0, 50, (40, 7), generator=draw).double()
    reward, weight = (
        torch.rand(40, 7, generator=draw, dtype=torch.float64),
        torch.rand(40, generator=draw).double() + 0.1,
    )
    for function, arguments in (
        (negative_log_likelihood, (log_p, counts)),
        (lambda a, b: clipped_surrogate(a - b, b, 0.2), (log_q, reward)),
        (entropy, (log_p,)),
        (kl_divergence, (log_p, log_q)),
        (penalised, (reward, log_p, log_q, weight)),
    ):
        close(function(*(x.to(device) for x in arguments)), function(*arguments), DOUBLE)


def transitions_of(model, graph, kind, device):
    """Sampled steps on the CPU and the same on the device."""
    draw = torch.Generator().manual_seed(6)
    if model.window > 1:
        paths = walk_paths(StepTable.from_graph(graph), torch.arange(model.n_states), model.window, draw)
        return Attempts.until(paths), Attempts.until(paths.to(device))
    table = step_table(model)
    counts = torch.randint(0, 500, table.successors.shape, generator=draw).double() * (table.probabilities > 0)
    return TransitionCounts(table.successors, counts), TransitionCounts(table.successors.to(device), counts.to(device))


@pytest.mark.parametrize("kind", ["table", "window_1", "window_4", "lists"])
def test_ppo_rollout_surrogate_and_gradient(kind, graph, listed_graph, close, device):
    true = listed_graph if kind == "lists" else graph
    scales, prm = mt.Scales.of(true, 0.1), mt.PRM.simulated(true)
    ours = made(kind, graph, listed_graph)
    reference = copy.deepcopy(ours)
    for parameter in reference.parameters():
        parameter.data.mul_(0.9)
    tolerance = DOUBLE if kind == "table" else SINGLE
    sampled, results = transitions_of(ours, true, kind, device), []
    for model, ref, steps in (
        (ours, reference, sampled[0]),
        (copy.deepcopy(ours).to(device), copy.deepcopy(reference).to(device), sampled[1]),
    ):
        with torch.no_grad():
            weight_of = kl_weights(model, prm, scales, None)
            rollout = one_step_rollout(model, ref, steps, prm.scores(model.device), weight_of)
            old = model.successor_log_probs(rollout.states)
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
        rows = torch.arange(len(old), device=model.device)
        loss = sum(losses_in_blocks(model, rollout, old, rows, 1 / rollout.n_samples, 0.2, 0.01))
        surrogate = surrogate_of_rollout(model.successor_log_probs(rollout.states), old, rollout, 0.2).detach()
        results.append((rollout, surrogate / rollout.n_samples, loss.detach(), gradients(model, loss)))
    (here, *numbers, slopes), (there, *found, found_slopes) = results
    assert here.n_samples == there.n_samples
    for name in ("counts", "gain", "loss", "mean_reward", "explained_variance"):
        close(getattr(there, name), getattr(here, name), tolerance)
    for a, b in zip(found, numbers, strict=True):
        close(a, b, tolerance)
    compare_gradients(close, found_slopes, slopes, tolerance)


def test_gae_and_its_rollout(graph, listed_graph, close, device):
    draw = torch.Generator().manual_seed(7)
    reward, values = (torch.rand(s, generator=draw, dtype=torch.float64) for s in ((20, 9), (20, 10)))
    done = torch.rand(20, 9, generator=draw) < 0.1
    close(
        gae(reward.to(device), done.to(device), values.to(device), 0.97, 0.9),
        gae(reward, done, values, 0.97, 0.9),
        DOUBLE,
    )
    model = made("table", graph, listed_graph)
    terminal = torch.zeros(graph.n_states, dtype=torch.bool)
    terminal[-3:] = True
    paths = walk_paths(step_table(model), torch.arange(graph.n_states), 12, draw)
    start = torch.rand(graph.n_states, generator=draw, dtype=torch.float64)
    results = []
    for where in ("cpu", device):
        policy = copy.deepcopy(model).to(where)
        reward = terminal.to(where).double().expand(graph.n_states, -1)
        attempts = Attempts.until(paths.to(where), terminal.to(where))
        weight_of = kl_weights(policy, mt.PRM.simulated(graph), mt.Scales.of(graph, 0.1), 0.05)
        with torch.no_grad():
            results.append(
                gae_rollout(policy, policy, attempts, reward, terminal.to(where), start.to(where), weight_of, 0.9, 0.95)
            )
    for name in ("counts", "gain", "loss", "mean_reward", "explained_variance"):
        close(getattr(results[1][0], name), getattr(results[0][0], name), DOUBLE)
    close(results[1][1], results[0][1], DOUBLE)


def test_soft_values(graph, close, device):
    log_ref = torch.from_numpy(graph.kernel()).log()
    terminal = torch.zeros(graph.n_states, dtype=torch.bool)
    terminal[-1] = True
    reward, weight = terminal.double().expand(graph.n_states, -1), torch.full((graph.n_states,), 0.2).double()
    expected = soft_values(log_ref, reward, terminal, 0.99, weight)
    found = soft_values(*(x.to(device) for x in (log_ref, reward, terminal)), 0.99, weight.to(device))
    for a, b in zip(found, expected, strict=True):
        close(a.exp(), b.exp(), 1e-10)  # the solver's condition number, about 1 / (1 - 0.99), multiplies the rounding


def test_prm(graph, listed_graph, close, device):
    prm, scales = mt.PRM.simulated(graph, noise=0.1), mt.Scales.of(graph, 0.1)
    assert torch.equal(prm.mask(device).cpu(), prm.mask())
    draws = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(prm.scores(device, draws[0]).cpu(), prm.scores("cpu", draws[1]))
    log_p = torch.from_numpy(graph.kernel()).log()
    known, scores = prm.mask(), prm.mask().double()
    close(
        tilt(*(x.to(device) for x in (log_p, scores, known)), scales).exp(),
        tilt(log_p, scores, known, scales).exp(),
        DOUBLE,
    )
    mass = torch.linspace(0, 0.9, 50, dtype=torch.float64)
    close(tilt_strength(mass.to(device), scales), tilt_strength(mass, scales), DOUBLE)
    exact = mt.PRM(graph.n_states, prm.edges)
    for kind in ("table", "window_1"):
        ours = made(kind, graph, listed_graph)
        theirs = copy.deepcopy(ours).to(device)
        tolerance = DOUBLE if kind == "table" else SINGLE
        close(
            theirs.kernel(policy=mt.guidance(exact, scales, device)),
            ours.kernel(policy=mt.guidance(exact, scales)),
            tolerance,
        )
        close(theirs.kernel(policy=avoid(exact.edges, theirs)), ours.kernel(policy=avoid(exact.edges, ours)), tolerance)


def test_sign_ascent(graph, close, device):
    prm, scales, results = mt.PRM.simulated(graph), mt.Scales.of(graph, 0.1), []
    for where in ("cpu", device):
        model = mt.LinearReasoner.from_kernel(torch.from_numpy(graph.kernel())).to(where)
        results.append((sign_ascent(model, prm, scales), model.kernel()))
    assert results[0][0] == results[1][0]
    close(results[1][1], results[0][1], DOUBLE)


def test_lifted_paths_are_paths_of_the_graph(graph, device):
    model = mt.LinearReasoner.from_kernel(torch.from_numpy(graph.kernel())).to(device)
    prm, clusters = mt.PRM.simulated(graph), torch.from_numpy(graph.clusters).to(device)
    pairs = torch.zeros(graph.n_clusters, graph.n_clusters, dtype=torch.float64)
    pairs[clusters.cpu()[prm.edges[:, 0]], clusters.cpu()[prm.edges[:, 1]]] = 0.3
    student = mt.Student(mt.LinearReasoner.from_kernel(pairs + torch.eye(len(pairs)).double()), graph.n_states)
    student.support.set(pairs + torch.eye(len(pairs)) > 0)
    student = student.to(device)
    student.labels.copy_(clusters)
    target = (clusters == 2).clone()
    start = torch.zeros(50, dtype=torch.int64, device=device)
    paths, arrived = lift(student, model, prm, start, target, torch.Generator(device).manual_seed(0))
    assert bool(arrived.all())
    before, after = paths[:, :-1], paths[:, 1:]
    taken = after >= 0
    assert bool((torch.from_numpy(graph.kernel()).to(device)[before[taken], after[taken]] > 0).all())
    last = paths.gather(1, (paths >= 0).sum(1, keepdim=True) - 1)[:, 0]
    assert bool(target[last].all())


def test_cached_decoding_equals_uncached(graph, listed_graph, close, device):
    model = made("window_4", graph, listed_graph).to(device)
    context = contexts_of(model).to(device)
    cached, plain = model.decoder(), UncachedDecoder(model)
    with torch.no_grad():
        for t in range(1, model.window + 1):
            close(cached.logits(context[:, :t], None), plain.logits(context[:, :t], None), SINGLE)
            if t == 2:
                alive = torch.arange(len(context), device=device) % 2 == 0
                cached.keep(alive)
                context = context[alive]


def test_saved_and_loaded(pair, tmp_path, device):
    _, theirs, _ = pair
    mt.save_reasoner(theirs, tmp_path)
    for where in ("cpu", device):
        loaded = mt.load_reasoner(tmp_path, where)
        assert loaded.device.type == torch.device(where).type
        for key, value in theirs.state_dict().items():
            assert torch.equal(loaded.state_dict()[key].cpu(), value.cpu())


def test_a_captured_inference_equals_eager(graph, listed_graph, close, device):
    if device.type != "cuda":
        pytest.skip("CUDA graphs need CUDA")
    for kind in ("window_1", "window_4", "lists"):
        model = made(kind, graph, listed_graph).to(device)
        states = contexts_of(model).to(device)
        read = model.successor_log_probs if kind == "lists" else model.log_probs
        with torch.no_grad():
            read(states)  # makes the lists
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    read(states)
            torch.cuda.current_stream().wait_stream(side)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                out = read(states)
            states.copy_(states.flip(0))
            captured.replay()
            torch.cuda.synchronize()
            close(out, read(states), SINGLE)

"""The corrupted oracle against autograd, against all concepts by brute force, and against the bound that it illustrates."""

import math

import pytest
import torch

from mcot_torch.logic import all_bits, parity_values
from mcot_torch.logic.learners import PathMLP
from mcot_torch.logic.oracle import CorruptedOracle, covered_queries, gradient_scale

K = 4
BITS = all_bits(K)
ALL = torch.from_numpy(parity_values(BITS, BITS)).double()  # (2^K concepts, 2^K paths)
MEAN = (BITS.sum(1) == 0).double()  # the mean of h_p over all p


def network(seed=0):
    """A small network away from its start, where its output and its gradients are near 0."""
    draw = torch.Generator().manual_seed(seed)
    model = PathMLP(torch.zeros(K, 3), 8, draw).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=draw))
    return model


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def population_gradient(model, target):
    """Autograd of the squared loss over all paths."""
    loss = (model(BITS.double()) - target).square().mean()
    return flat(torch.autograd.grad(loss, list(model.parameters()))), float(loss.detach())


def test_the_mean_concept():
    assert torch.equal(ALL.mean(0), MEAN)


def test_an_honest_oracle_is_the_gradient_of_the_population_loss():
    model, oracle = network(), CorruptedOracle(BITS.double(), ALL[11], MEAN, delta=0.0)
    answer, loss = oracle.query(model)
    expected, expected_loss = population_gradient(model, ALL[11])
    assert expected.norm() > 0.1
    torch.testing.assert_close(flat(answer), expected, rtol=1e-9, atol=1e-12)
    assert loss == pytest.approx(expected_loss)
    assert (oracle.queries, oracle.corrupted) == (1, 0)


def test_a_corrupted_answer_is_the_mean_gradient_over_all_concepts():
    """And says nothing of p: it is the same for every p."""
    model = network(1)
    expected = torch.stack([population_gradient(model, target)[0] for target in ALL]).mean(0)
    for p in (1, 6, 15):
        oracle = CorruptedOracle(BITS.double(), ALL[p], MEAN, delta=1e6)
        torch.testing.assert_close(flat(oracle.query(model)[0]), expected, rtol=1e-9, atol=1e-12)
        assert (oracle.queries, oracle.corrupted) == (1, 1)


def test_who_is_told_p_cannot_be_deceived():
    model, oracle = network(2), CorruptedOracle(BITS.double(), ALL[5], ALL[5], delta=1e6)
    torch.testing.assert_close(flat(oracle.query(model)[0]), population_gradient(model, ALL[5])[0])
    assert oracle.corrupted == 0


def test_corruption_starts_at_delta_times_the_scale():
    """The true and the mean gradient lie |g_p − ḡ| apart: just below that the oracle is honest, just above it lies."""
    model, p = network(3), 9
    gradients = torch.stack([population_gradient(model, target)[0] for target in ALL])
    ratio = float((gradients[p] - gradients.mean(0)).norm()) / slow_scale(model)
    for delta, corrupted in ((0.99 * ratio, 0), (1.01 * ratio, 1)):
        oracle = CorruptedOracle(BITS.double(), ALL[p], MEAN, delta=delta)
        oracle.query(model)
        assert oracle.corrupted == corrupted


def slow_scale(model):
    """Root mean square over the paths of |2 ∇f(x)|, one path at a time."""
    squares = []
    for row in BITS.double():
        gradient = flat(torch.autograd.grad(model(row[None])[0], list(model.parameters())))
        squares.append(float((2 * gradient).square().sum()))
    return math.sqrt(sum(squares) / len(squares))


def test_gradient_scale_against_a_loop():
    for seed in range(3):
        assert gradient_scale(network(seed), BITS.double()) == pytest.approx(slow_scale(network(seed)), rel=1e-9)


def test_concepts_are_close_to_their_mean():
    """mean over p of |g_p − ḡ|² ≤ s²/SDA with SDA = 2^K (Bessel), which Chebyshev's inequality turns into covered queries."""
    for seed in range(5):
        model = network(seed)
        gradients = torch.stack([population_gradient(model, target)[0] for target in ALL])
        spread = float((gradients - gradients.mean(0)).square().sum(1).mean())
        bound = slow_scale(model) ** 2 / 2**K
        assert 0.05 * bound < spread <= bound  # and it is no empty bound
        for delta in (0.3, 0.5):
            told_apart = ((gradients - gradients.mean(0)).norm(dim=1) > delta * slow_scale(model)).double().mean()
            assert told_apart <= 1 / (delta**2 * 2**K)


def test_covered_queries():
    assert covered_queries(2**12, 0.1) == pytest.approx(20.48)
    assert covered_queries(2**24, 0.1) == pytest.approx(83_886.08)
    assert covered_queries(1, 0.1) < 1  # whoever knows p is not covered

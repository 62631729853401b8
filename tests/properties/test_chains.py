"""Invariants of exact chain mathematics over random kernels whose weights span twelve orders of magnitude."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcot_torch.chains import (
    committor,
    escape_probabilities,
    hitting_time,
    hitting_times,
    pair_kernel,
    rescale,
    restricted_mean,
    spectral_gap,
    stationary_law,
    stochastic_complement,
    survival,
    time_reversal,
)

few = settings(max_examples=25, deadline=None)


@st.composite
def chains(draw, smallest=3, largest=40):
    """(off-diagonal kernel (N, N), irreducible by a ring through all states; labels (N,); generator)."""
    n = draw(st.integers(smallest, largest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.random((n, n)) < draw(st.sampled_from([0.05, 0.3, 1.0]))
    ring = rng.permutation(n)
    mask[ring, np.roll(ring, 1)] = True
    P = np.where(mask, 10.0 ** rng.uniform(-12, 0, (n, n)), 0.0)
    np.fill_diagonal(P, 0.0)
    P /= max(1.0, P.sum(1).max() * 1.001)
    return P, rng.integers(0, draw(st.integers(1, n)), n), rng


def close(a, b, rel=1e-11):
    assert a == pytest.approx(b, rel=rel, abs=0, nan_ok=True)


@few
@given(chains())
def test_blocks_agree_with_one_elimination(chain):
    P, labels, rng = chain
    target = rng.choice(len(P), size=rng.integers(1, 3), replace=False)
    close(hitting_times(P, target, labels), hitting_times(P, target))
    close(escape_probabilities(P, target, labels), escape_probabilities(P, target))
    close(stationary_law(P, labels), stationary_law(P))


@few
@given(chains())
def test_permuting_states_permutes_answers(chain):
    P, _, rng = chain
    order = rng.permutation(len(P))
    Q, place = P[np.ix_(order, order)], np.argsort(order)
    close(hitting_times(Q, place[0]), hitting_times(P, 0)[order])
    close(committor(Q, place[0], place[1]), committor(P, 0, 1)[order])
    close(escape_probabilities(Q, place[0]), escape_probabilities(P, 0)[order])
    close(stationary_law(Q), stationary_law(P)[order])


@few
@given(chains())
def test_first_step_equations(chain):
    P, _, _ = chain
    outflow = P.sum(1)
    h = hitting_times(P, 0)
    close((1 + P @ h)[1:], (outflow * h)[1:])
    law = stationary_law(P)
    close(law @ P, outflow * law)
    assert law.sum() == pytest.approx(1.0, rel=1e-14)


@few
@given(chains())
def test_return_times_are_reciprocal_stationary_probabilities(chain):
    P, _, _ = chain
    # Kac: between visits to 0 the chain makes 1/π_0 steps, of which 1 + Σ_y P(0,y) h(y)
    close(1 + P[0] @ hitting_times(P, 0), 1 / stationary_law(P)[0])


@few
@given(chains())
def test_escape_is_balanced_by_the_stationary_law(chain):
    P, _, _ = chain
    law = stationary_law(P)
    # capacity: π_x P_x(τ_y < τ_x) = π_y P_y(τ_x < τ_y), reversible or not
    close(law[0] * escape_probabilities(P, 1)[0], law[1] * escape_probabilities(P, 0)[1])


@few
@given(chains())
def test_complement_has_the_conditional_law_and_committors(chain):
    P, labels, _ = chain
    kept = np.arange(0, len(P), 2)
    S = stochastic_complement(P, kept)
    assert S.sum(1) == pytest.approx(np.ones(len(kept)), rel=1e-14)
    law = stationary_law(P)[kept]
    close(stationary_law(S), law / law.sum())
    off = ~np.eye(len(kept), dtype=bool)
    close(stochastic_complement(P, kept, labels)[off], S[off])


@few
@given(chains(largest=20))
def test_commute_time_between_reversals(chain):
    P, _, _ = chain
    law = stationary_law(P)
    R = time_reversal(P, law)
    close(stationary_law(R), law)
    # E_x[τ_y] + E_y[τ_x] is the same for a chain and its reversal
    close(hitting_time(P, 0, 1) + hitting_time(P, 1, 0), hitting_time(R, 0, 1) + hitting_time(R, 1, 0))
    close(spectral_gap(R, law), spectral_gap(P, law), rel=1e-9)


@few
@given(chains(largest=12), st.integers(1, 200))
def test_survival_falls_and_adds_up(chain, horizon):
    P, _, _ = chain
    S = survival(P, 1, 0, np.arange(horizon + 1))
    assert S[0] == 1.0
    assert (np.diff(S) <= 1e-14).all()
    mean = restricted_mean(P, 1, 0, horizon)
    assert mean == pytest.approx(S[:-1].sum(), rel=1e-12)
    assert mean <= hitting_time(P, 1, 0) * (1 + 1e-12)


@few
@given(chains(largest=12), st.floats(-30, 30))
def test_rescaling_is_undone_by_its_opposite(chain, beta):
    P, labels, _ = chain
    _, labels = np.unique(labels, return_inverse=True)
    q = pair_kernel(P, labels, labels.max() + 1)
    assert q.sum(1) == pytest.approx(np.ones(len(q)), rel=1e-14)
    back = rescale(rescale(q, beta), -beta)
    close(back[np.diagonal(q) > 1e-3], q[np.diagonal(q) > 1e-3])

"""Spectra in closed form, the number of clusters, and clusters recovered from counts."""

import numpy as np
import pytest
from scipy import sparse as sp

from mcot_torch.estimation.clusters import (
    METASTABLE,
    number_of_clusters,
    pcca_clusters,
    simplex_clusters,
    spectrum,
)
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.puzzles import tower_of_hanoi


def ring(n):
    shift = np.roll(np.eye(n), 1, axis=1)
    return sp.csr_array(1000.0 * (shift + shift.T))


def expected_counts(graph, visits):
    """Counts of a walk that visits every state equally often, without noise."""
    return sp.csr_array(visits * graph.to_scipy())


def same_partition(a, b):
    return np.array_equal(a[:, None] == a, b[:, None] == b)


def test_ring_in_closed_form():
    n = 12
    rates = spectrum(ring(n)).rates
    expected = np.sort(1 - np.cos(2 * np.pi * np.arange(n) / n))
    np.testing.assert_allclose(rates, expected, atol=1e-12)
    # the rates 1 - cos(2πj/n), two of each: the widest gap is between j = 1 and j = 2
    k, ratio = number_of_clusters(rates, n)
    assert k == 3
    assert ratio == pytest.approx((1 - np.cos(4 * np.pi / n)) / (1 - np.cos(2 * np.pi / n)))
    assert ratio < METASTABLE


def test_two_states_in_closed_form():
    # a reversible chain of two states with flows a, b, c has λ = 1 - p - q
    counts = sp.csr_array(np.array([[90.0, 10.0], [10.0, 40.0]]))
    found = spectrum(counts)
    np.testing.assert_allclose(found.rates, [0, 10 / 100 + 10 / 50], atol=1e-12)
    mass = np.array([100, 50]) / 150
    np.testing.assert_allclose(found.vectors.T @ (mass[:, None] * found.vectors), np.eye(2), atol=1e-12)


def test_large_chains_have_the_same_spectrum(monkeypatch):
    counts = expected_counts(clustered_graph(6, 16, 0.01, seed=1), 1000)
    dense = spectrum(counts, 10)
    monkeypatch.setattr("mcot_torch.estimation.clusters._DENSE", 10)
    sparse = spectrum(counts, 10)
    np.testing.assert_allclose(sparse.rates, dense.rates, atol=1e-10)


def test_walks_without_barriers_are_not_metastable():
    line = np.diag(np.ones(29), 1)
    hanoi = tower_of_hanoi(5, 1, 0.33)  # the large disc moves as easily as the others
    rng = np.random.default_rng(0)
    for counts in (ring(50), sp.csr_array(1000 * (line + line.T)), expected_counts(hanoi, 1000)):
        _, ratio = number_of_clusters(spectrum(counts).rates, counts.shape[0])
        assert ratio < 5.1
        for _ in range(5):  # as counted on some 100 visits a state
            share = 100 * counts.shape[0] / counts.sum()
            seen = sp.csr_array((rng.poisson(counts.data * share) * 1.0, counts.indices, counts.indptr), counts.shape)
            _, ratio = number_of_clusters(spectrum(seen).rates, counts.shape[0])
            assert ratio < METASTABLE


@pytest.mark.parametrize("shape", ["circulant", "ring", "bidirectional_ring", "complete", "path"])
def test_clusters_of_noisy_counts(shape):
    graph = clustered_graph(5, 16, 0.005, shape=shape, seed=2)
    rng = np.random.default_rng(0)
    counts = expected_counts(graph, 1000 if shape in ("ring", "path") else 150)  # so that every hard step is seen
    counts.data = rng.poisson(counts.data).astype(float)
    counts.eliminate_zeros()
    slow = spectrum(counts)
    k, ratio = number_of_clusters(slow.rates, graph.n_states)
    assert k == 5
    assert ratio > METASTABLE
    labels = simplex_clusters(slow.vectors, counts.sum(axis=1), k)
    assert same_partition(labels, graph.clusters)
    assert labels[0] == 0
    assert list(dict.fromkeys(labels.tolist())) == [0, 1, 2, 3, 4]


def test_pcca_agrees():
    pytest.importorskip("deeptime")
    graph = clustered_graph(5, 16, 0.005, seed=2)
    assert same_partition(pcca_clusters(expected_counts(graph, 1000), 5), graph.clusters)


def test_chains_too_small_to_have_a_gap():
    assert number_of_clusters(np.array([0.0, 0.3]), 2) == (2, 1.0)

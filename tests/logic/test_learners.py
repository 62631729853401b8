"""What the learners of the parity task see, and how their learning is booked."""

import math

import pytest
import torch

from mcot_torch import Context
from mcot_torch.experiments.support import exact_reasoner
from mcot_torch.graphs.families.lifts import LiftedUnits
from mcot_torch.logic import all_bits, parity_values
from mcot_torch.logic.learners import (
    Curve,
    PathMLP,
    PathTransformer,
    graph_features,
    learn_from_oracle,
    learn_from_samples,
    searched_bits,
)
from mcot_torch.logic.oracle import CorruptedOracle


@pytest.mark.parametrize(("rho", "size"), [(0, 16), (1, 16)])
def test_features_hide_p_within_the_radius_and_show_it_beyond(rho, size):
    units = LiftedUnits(3, size, 0.01, rho, 4)
    graphs = [units.graph(p.tolist()) for p in all_bits(3)]
    for radius in (None, *range(rho + 1)):
        views = torch.stack([graph_features(units, graph, radius) for graph in graphs])
        assert (views == views[0]).all(), radius
        assert bool(views.any()) == (radius is not None)
    beyond = torch.stack([graph_features(units, graph, rho + 1) for graph in graphs])
    assert len(beyond.flatten(1).unique(dim=0)) == len(graphs)


def test_all_rows_are_the_crossings():
    units = LiftedUnits(3, 16, 0.01, 0, 2)
    for p in all_bits(3):
        crossed = torch.from_numpy(units.crossings) & (p == 0)[:, None]
        expected = torch.where(crossed, -1.0, 1.0)
        assert torch.equal(graph_features(units, units.graph(p.tolist()), math.inf), expected)


@pytest.mark.parametrize("p", ["101", "010"])
def test_search_reads_p_off_walks(p):
    """e_k is as likely for either bit; only whether it leaves its cluster tells them apart."""
    units = LiftedUnits(3, 16, 0.004, 0, 1)
    found = searched_bits(units, exact_reasoner(units.graph(p)), Context(3))
    assert "".join(map(str, found)) == p


def test_curve():
    curve = Curve()
    inputs, target = torch.tensor([[1.0], [2.0], [-1.0], [0.0]]), torch.tensor([1.0, 1.0, 1.0, -1.0])
    curve.look(0, lambda x: 0 * x[:, 0], inputs, target)  # the zero predictor: loss 1, and 0 is no right sign
    curve.look(5, lambda x: x[:, 0], inputs, target)  # errors 0, 1, -2, 1
    curve.look(9, lambda x: target, inputs, target)
    assert curve.queries == [0, 5, 9]
    assert curve.loss == pytest.approx([1.0, 6 / 4, 0.0])
    assert curve.accuracy == [0.0, 0.5, 1.0]
    assert [curve.reached(a) for a in (0.0, 0.4, 0.9, 1.1)] == [0, 5, 9, None]


BITS = all_bits(3)
TARGET = torch.from_numpy(parity_values(BITS, BITS)).float()


@pytest.mark.parametrize("kind", [PathMLP, PathTransformer])
def test_learners_start_near_zero_and_learn_what_nothing_hides(kind):
    model = kind(torch.zeros(3, 4), generator=torch.Generator().manual_seed(0))
    oracle = CorruptedOracle(BITS.float(), TARGET[1], TARGET[1])  # p = 001 is told
    curve = learn_from_oracle(model, oracle, 150, rate=1e-2)
    assert curve.loss[0] == pytest.approx(1.0, abs=0.2)
    assert (curve.queries[0], curve.queries[-1], oracle.queries) == (0, 150, 150)
    assert curve.accuracy[-1] == 1.0
    assert curve.loss[-1] < 0.1


def test_learning_from_samples_stops_when_it_is_enough():
    model = PathMLP(torch.zeros(3, 4), generator=torch.Generator().manual_seed(1))
    curve = learn_from_samples(model, BITS.float(), TARGET[6], 2000, torch.Generator().manual_seed(2), rate=3e-3)
    assert curve.accuracy[-1] == 1.0
    assert curve.queries[-1] < 2000
    assert all(accuracy < 1.0 for accuracy in curve.accuracy[:-1])

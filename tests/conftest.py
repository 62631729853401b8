"""One torch thread for all tests, and small graphs and reasoners that several files use."""

import pytest
import torch

from mcot_torch.graphs.families import clustered_graph
from mcot_torch.reasoners import LinearReasoner

torch.set_num_threads(1)


@pytest.fixture
def small_graph():
    """K = 4 clusters of M = 8 states on the circulant, ε = .02."""
    return clustered_graph(4, 8, 0.02, seed=3)


@pytest.fixture
def exact_reasoner():
    """graph -> the table whose kernel is p^ε, cut to its support."""

    def build(graph):
        kernel = torch.from_numpy(graph.kernel())
        model = LinearReasoner(graph.n_states)
        with torch.no_grad():
            model.logits.copy_(torch.where(kernel > 0, kernel.clamp_min(1e-300).log(), 0.0))
        model.support.copy_(kernel > 0)
        return model

    return build

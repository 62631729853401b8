"""One torch thread for all tests, and small graphs and reasoners that several files use."""

import pytest
import torch

from mcot_torch.experiments import support
from mcot_torch.graphs.families.clustered import clustered_graph

torch.set_num_threads(1)


@pytest.fixture
def small_graph():
    """K = 4 clusters of M = 8 states on the circulant, ε = .02."""
    return clustered_graph(4, 8, 0.02, seed=3)


@pytest.fixture
def exact_reasoner():
    """graph -> the table whose kernel is p^ε, cut to its support."""
    return support.exact_reasoner

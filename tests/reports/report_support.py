"""Models that are exact."""

import torch

from mcot_torch.reasoners import LinearReasoner


def table(graph):
    """The table whose kernel is the graph's."""
    kernel = torch.from_numpy(graph.kernel())
    model = LinearReasoner(graph.n_states)
    with torch.no_grad():
        model.logits.copy_(torch.where(kernel > 0, kernel.clamp_min(1e-300).log(), 0.0))
    model.support.copy_(kernel > 0)
    return model

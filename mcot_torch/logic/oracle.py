"""The corrupted gradient oracle of Theorem 5.2: what a learner may ask, and how its answers may lie.

The learner minimises the squared loss E_x (f_θ(x) − h_p(x))², x uniform over all paths. The oracle knows the exact population
gradient. Among the concepts with the same information as p it also knows the mean gradient, which says nothing of p,
and gives that one instead whenever the two lie within δ of each other. Theorem 5.2: after polynomially many such
queries the loss is still at least 1 − 1/SDA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["CorruptedOracle", "covered_queries", "gradient_scale"]


def covered_queries(dimension: float, delta: float) -> float:
    """n up to which at least half of the concepts answer every query with the mean gradient: δ²·SDA/2.

    Uncorrelated h_p are orthonormal, so by Bessel's inequality the mean over p of |g_p − ḡ|² is at most s²/SDA, s the
    root-mean-square gradient of one sample; by Chebyshev's a query tells p from the mean for a share 1/(δ²·SDA) of them.
    """
    return 0.5 * delta**2 * dimension


def gradient_scale(model: nn.Module, inputs: Tensor) -> float:
    """s = (mean over the rows of |2∇_θ f(x)|²)^½: the size of one sample's gradient at residual ±1.

    Args:
        model: (B, F) -> (B,).
        inputs: (B, F), all paths or a sample of them.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def one(values: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(model, values, (row[None],))[0]

    gradients = torch.func.vmap(torch.func.grad(one), (None, 0))(parameters, inputs)
    squares = sum(g.square().flatten(1).sum(1) for g in gradients.values())
    return 2.0 * math.sqrt(float(torch.as_tensor(squares).mean()))


@dataclass
class CorruptedOracle:
    """Answers gradient queries about h_p, δ-corrupted.

    Attributes:
        inputs: (n, F), all n paths as the learner sees them.
        target: (n,) h_p, ±1.
        mean: (n,) the mean of h over all concepts with the same information as p; h_p itself where p is told.
        delta: δ in units of `gradient_scale`.
        probe: rows, evenly spaced, on which the scale is measured.
        queries: asked so far.
        corrupted: how many of them were answered with the mean gradient instead of another.
    """

    inputs: Tensor
    target: Tensor
    mean: Tensor
    delta: float = 0.1
    probe: int = 128
    queries: int = 0
    corrupted: int = 0

    def query(self, model: nn.Module) -> tuple[list[Tensor], float]:
        """The gradient for each parameter of `model`, in their order, and the true loss at it.

        The model is (n, F) -> (n,), differentiable at all n paths.
        """
        self.queries += 1
        parameters = list(model.parameters())
        output = model(self.inputs)
        loss = float((output.detach() - self.target).square().mean())
        shared = 2.0 * (output * (output.detach() - self.mean)).mean()
        if torch.equal(self.target, self.mean):
            return list(torch.autograd.grad(shared, parameters)), loss
        answer = list(torch.autograd.grad(shared, parameters, retain_graph=True))
        special = torch.autograd.grad(2.0 * (output * (self.mean - self.target)).mean(), parameters)
        distance = math.sqrt(sum(float(g.square().sum()) for g in special))
        every = max(1, len(self.inputs) // self.probe)
        if distance > self.delta * gradient_scale(model, self.inputs[::every]):
            return [g + d for g, d in zip(answer, special, strict=True)], loss
        self.corrupted += 1
        return answer, loss

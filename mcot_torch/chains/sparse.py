"""Sparse chains without subtractions: a million states in seconds, at every ε.

First the insides of all clusters at once, where there are labels. Then the portals in rounds of independent sets with few
neighbours, which is a minimum-degree ordering: a ring of clusters, a path or a tree it eliminates nearly to nothing.
What fills up is a core: solved as a dense matrix, by GTH as well, or by sparse LU where that can prove its answer
(refined.py). No threads are made here; numpy's BLAS decides.

Not here: the layers themselves (layers.py), and what the solutions mean (hitting.py, stationary.py, meta_chain.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp

from mcot_torch.chains.elimination import Array, Kernel, dense, gth_solve, off_diagonal
from mcot_torch.chains.layers import Chain, ClusterLayer, Layer, Round, few_neighbours
from mcot_torch.chains.refined import refined_solve
from mcot_torch.errors import InputError

__all__ = ["eliminate", "escapes_to", "green_diagonal", "invariant_weights", "solve"]

_SMALL = 200  # states below which one dense block is sooner done than more rounds
_FULL = 0.15  # share of entries above which it is so at any size
_WORTHWHILE = 0.03  # share of the states that a round must eliminate for sparse LU not to be tried
_SOON_DENSE = 4_000  # states up to which a dense core is sooner done than sparse LU and its proof
_MOST_ENTRIES = 50_000_000  # of a chain that fills up: .6 GiB, several times over in a round
_LARGEST_CORE = 12_000  # states of a dense core: 1.1 GiB a copy


def eliminate(chain: Chain, layers: list[Layer], share: float = 0.0, small: int = _SMALL) -> Chain:
    """Rounds, appended to `layers`, until what is left, the core, has `small` states or is full; returns the core.

    They also end when a set holds less than `share` of the states, which is when the rest is a few large cliques.
    """
    draw = np.random.default_rng(0)  # breaks ties only
    while (n := chain.rates.shape[0]) > small and chain.rates.nnz < min(_FULL * n * n, _MOST_ENTRIES):
        gone = few_neighbours(chain.rates, draw.random(n))
        if gone.sum() < share * n:
            break
        layer, chain = Round.of(chain, gone)
        layers.append(layer)
    return chain


def solve(A: Kernel, exits: Array, R: Array, clusters: NDArray[np.integer] | None = None) -> Array:
    """`gth_solve` for one chain, dense or sparse; with labels (n,) the clusters are eliminated at once.

    K·m³ operations for the clusters, and few for the portals where the graph of clusters has small separators. Where
    it has none, sparse LU answers if it can prove its answer, else the portals are eliminated all the same.

    Raises:
        InputError: where too many states are left for a dense matrix and LU has no proof.
    """
    if clusters is None and not sp.issparse(A):
        return gth_solve(dense(A), exits, R)
    chain = Chain(off_diagonal(A), exits, R)
    layers: list[Layer] = []
    if clusters is not None:
        inner, chain = ClusterLayer.of(chain, clusters)
        layers.append(inner)
    core = eliminate(chain, layers, _WORTHWHILE)
    n = len(core.exits)
    full = n <= _SOON_DENSE or (n <= _LARGEST_CORE and core.rates.nnz >= _FULL * n * n)
    X = None if full else refined_solve(*core)
    if X is None:
        core = eliminate(core, layers)
        X = gth_solve(_matrix(core.rates), core.exits, core.right)
    for layer in reversed(layers):
        X = layer.back(X)
    return X


def _matrix(rates: Kernel) -> Array:
    """The rates as a dense array; `InputError` beyond `_LARGEST_CORE` states."""
    if (n := rates.shape[0]) > _LARGEST_CORE and sp.issparse(rates):
        raise InputError(
            f"{n:,} states of the chain are too closely joined to be eliminated one by one, and more than {_LARGEST_CORE:,} "
            f"are too many for a dense matrix ({8 * n * n / 2**30:,.0f} GiB); give cluster labels, join the clusters by "
            "fewer hard steps, or take a smaller graph (hitting times: or a larger epsilon, at which sparse LU can prove its answer)"
        )
    return dense(rates)


def green_diagonal(A: Kernel, exits: Array, clusters: NDArray[np.integer] | None = None) -> Array:
    """(n,) diagonal of (D - A)^-1: expected visits to y from y, the first included, before the chain takes an exit.

    n³ operations for the n portals; `InputError` where they are too many for a dense matrix.
    """
    if clusters is None:
        return np.diagonal(gth_solve(_matrix(A), exits, np.eye(len(exits))))
    layer, core = ClusterLayer.of(Chain(off_diagonal(A), exits, np.zeros((len(exits), 0))), clusters, green=True)
    return layer.green_diagonal(gth_solve(_matrix(core.rates), core.exits, np.eye(len(core.exits))))


def escapes_to(A: Kernel, clusters: NDArray[np.integer]) -> Iterator[Array]:
    """For each cluster C, in the order of the labels: (n,) P_y(τ̄_C < τ̄_y) of a chain without exits, 0 on C.

    n³ operations a cluster for the n portals; `InputError` where they are too many for a dense matrix.
    """
    n = A.shape[0]
    layer, core = ClusterLayer.of(Chain(off_diagonal(A), np.zeros(n), np.zeros((n, 0))), clusters, green=True)
    rates, label = _matrix(core.rates), clusters[layer.kept]
    for cluster in np.unique(clusters):
        inside = label == cluster
        rest = np.flatnonzero(~inside)
        green = np.zeros(rates.shape)
        green[np.ix_(rest, rest)] = gth_solve(
            rates[np.ix_(rest, rest)], rates[np.ix_(rest, np.flatnonzero(inside))].sum(1), np.eye(len(rest))
        )
        visits = layer.green_diagonal(green)
        visits[clusters == cluster] = np.inf
        yield 1.0 / visits


def invariant_weights(
    A: Kernel, law_of: Callable[[Array], Array], clusters: NDArray[np.integer] | None = None
) -> Array:
    """(n,) weights π ∝ πA of an irreducible chain, `law_of` being the solver (n, n) -> (n,) for the core."""
    if clusters is not None and (clusters == clusters[0]).all():
        clusters = None  # a single cluster has no portal at which the rest could begin
    if clusters is None and not sp.issparse(A):
        return law_of(np.array(dense(A)))
    n = A.shape[0]
    chain = Chain(off_diagonal(A), np.zeros(n), np.zeros((n, 0)))
    layers: list[Layer] = []
    if clusters is not None:
        inner, chain = ClusterLayer.of(chain, clusters, green=True)
        layers.append(inner)
    core = eliminate(chain, layers)
    pi = law_of(_matrix(core.rates).copy())
    for layer in reversed(layers):
        pi = layer.law(pi)
    return pi

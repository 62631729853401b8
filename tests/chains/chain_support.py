"""Small graphs and slow oracles for the tests of chains."""

import mpmath
import numpy as np
import pytest

from mcot_torch.graphs.graph import MetastableGraph


def clustered_graph(sizes, epsilon, seed=0, jumps=(1, 2), periodic=False):
    """Clusters of the given sizes: random weighted cliques (or directed cycles), hard edges along circulant jumps."""
    rng = np.random.default_rng(seed)
    first = np.concatenate([[0], np.cumsum(sizes)])
    triples = []
    for start, size in zip(first, sizes, strict=False):
        if size == 1:
            triples.append((start, start, 1.0))
        for i in range(size):
            if periodic:
                rows = [((i + 1) % size, 1.0)]
            else:
                heads = [j for j in range(size) if j != i]
                value = rng.uniform(0.2, 1.0, len(heads))
                rows = list(zip(heads, value / value.sum(), strict=True))
            if size > 1:
                triples += [(start + i, start + j, p) for j, p in rows]
    hard = []
    for k in range(len(sizes)):
        for jump in sorted({j % len(sizes) for j in jumps} - {0}):
            to = (k + jump) % len(sizes)
            hard.append((first[k] + jump % sizes[k], first[to], rng.uniform(0.5, 1.5)))
    columns = [tuple(np.array(c) for c in zip(*edges, strict=True)) for edges in (triples, hard)]
    return MetastableGraph.from_edges(*columns, np.repeat(np.arange(len(sizes)), sizes), epsilon)


def near(expected, rel=None, abs=0.0, nan_ok=False):
    """pytest.approx without the absolute tolerance of 1e-12 that it adds on its own."""
    return pytest.approx(expected, rel=rel, abs=abs, nan_ok=nan_ok)


class Exact:
    """The same float64 off-diagonal entries in 120-digit arithmetic, the diagonal implied there."""

    def __init__(self, P):
        mpmath.mp.dps = 120
        self.n = len(P)
        self.P = [
            [mpmath.mpf(float(P[i, j])) if i != j else mpmath.mpf(0) for j in range(self.n)] for i in range(self.n)
        ]
        for i in range(self.n):
            self.P[i][i] = 1 - sum(self.P[i])

    def green(self, target):
        """(I - Q)^-1 on the states outside the target, and those states."""
        rest = [i for i in range(self.n) if i not in set(int(t) for t in target)]
        matrix = mpmath.matrix([[(i == j) - self.P[i][j] for j in rest] for i in rest])
        return mpmath.inverse(matrix), rest

    def hitting_times(self, target):
        green, rest = self.green(target)
        h = [mpmath.mpf(0)] * self.n
        for a, i in enumerate(rest):
            h[i] = sum(green[a, b] for b in range(len(rest)))
        return h

    def committor(self, A, B):
        green, rest = self.green([*A, *B])
        q = [mpmath.mpf(int(i in A)) for i in range(self.n)]
        for a, i in enumerate(rest):
            q[i] = sum(green[a, b] * sum(self.P[j][int(t)] for t in A) for b, j in enumerate(rest))
        return q

    def escape(self, target):
        green, rest = self.green(target)
        return {i: 1 / green[a, a] for a, i in enumerate(rest)}

    def survival(self, start, target, time):
        """P(τ > t) by squaring."""
        rest = [i for i in range(self.n) if i not in set(int(t) for t in target)]
        power = mpmath.matrix([[self.P[i][j] for j in rest] for i in rest]) ** int(time)
        return sum(power[rest.index(start), b] for b in range(len(rest)))

    def stationary(self):
        """π as solution of πP = π, Σπ = 1."""
        n = self.n
        matrix = mpmath.matrix(
            [[(i == j) - self.P[i][j] if j < n - 1 else mpmath.mpf(1) for j in range(n)] for i in range(n)]
        )
        law = mpmath.lu_solve(matrix.T, mpmath.matrix([0] * (n - 1) + [1]))
        return [law[i] for i in range(n)]


def worst(values, exact):
    """Largest relative error of float64 values against mpmath numbers (exact zeros must be hit)."""
    errors = [mpmath.mpf(0)]
    for value, true in zip(values, exact, strict=True):
        errors.append(abs((mpmath.mpf(float(value)) - true) / true) if true != 0 else abs(mpmath.mpf(float(value))))
    return float(max(errors))

"""Discrete trajectories: sequences of named states, read from text, counted, and cut down to what can be estimated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp
from scipy.sparse.csgraph import connected_components

from mcot_torch.errors import InputError
from mcot_torch.system.files import read_utf8

__all__ = ["Trajectories", "read_trajectories"]

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Sequences of states, observed step by step.

    Attributes:
        paths: each (T,) int64, T >= 1, states 0 .. N - 1.
        names: N names, different from one another.
    """

    paths: tuple[NDArray[np.int64], ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, sequences: Iterable[Sequence[str]]) -> Trajectories:
        """From sequences of names; states are numbered by their first appearance."""
        number: dict[str, int] = {}
        paths = [[number.setdefault(name, len(number)) for name in sequence] for sequence in sequences]
        return cls(tuple(np.array(path, dtype=np.int64) for path in paths if path), tuple(number))

    @property
    def n_states(self) -> int:
        """N."""
        return len(self.names)

    @property
    def n_steps(self) -> int:
        """Observed transitions."""
        return sum(len(path) - 1 for path in self.paths)

    @cached_property
    def counts(self) -> sp.csr_array:
        """(N, N) float64 n(x, y), how often a step from x led to y."""
        pairs = [(path[:-1], path[1:]) for path in self.paths]
        source, target = (np.concatenate([pair[i] for pair in pairs] or [np.empty(0, np.int64)]) for i in (0, 1))
        ones = np.ones(len(source))
        return sp.csr_array(sp.coo_array((ones, (source, target)), shape=(self.n_states, self.n_states)))

    def restrict(self, states: NDArray[np.int64]) -> Trajectories:
        """The runs inside `states` (ascending), renumbered; a path is cut wherever it is outside."""
        number = np.full(self.n_states, -1, dtype=np.int64)
        number[states] = np.arange(len(states))
        runs = []
        for path in self.paths:
            inside = number[path]
            cuts = np.flatnonzero(inside < 0)
            runs += [run[run >= 0] for run in np.split(inside, cuts)]
        return Trajectories(tuple(run for run in runs if len(run)), tuple(self.names[x] for x in states))


def largest_connected(
    counts: sp.csr_array, min_visits: int, clusters: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The states, ascending, on which a chain can be estimated: maybe none.

    Again and again: states left fewer than `min_visits` times go, and of the strongly connected parts of the rest the one
    with the most steps stays. With `clusters`, each cluster is first cut down to its own largest strongly connected part,
    so that easy steps connect it.
    """
    kept = np.arange(counts.shape[0])
    while len(kept):
        inside = sp.csr_array(counts[kept][:, kept])
        visits = inside.sum(axis=1)
        stay = visits >= min_visits
        if stay.all() and clusters is not None:
            coo = inside.tocoo()
            same = clusters[kept][coo.row] == clusters[kept][coo.col]
            easy = sp.csr_array((coo.data[same], (coo.row[same], coo.col[same])), shape=inside.shape)
            for cluster in np.unique(clusters[kept]):
                members = np.flatnonzero(clusters[kept] == cluster)
                stay[members] = _heaviest_part(sp.csr_array(easy[members][:, members]), visits[members])
        if stay.all():
            stay = _heaviest_part(inside, visits)
        if stay.all():
            return kept
        kept = kept[stay]
    return kept


def _heaviest_part(counts: sp.csr_array, visits: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The strongly connected part with the most visits; a single state only if it has a step to itself."""
    _, part = connected_components(counts, directed=True, connection="strong")
    heaviest = np.bincount(part, visits).argmax()
    chosen: NDArray[np.bool_] = part == heaviest
    if chosen.sum() == 1 and counts.diagonal()[chosen][0] == 0:
        return np.zeros(len(visits), dtype=bool)
    return chosen


def read_trajectories(path: str | Path) -> Trajectories:
    """One sequence of states a line, UTF-8: separated by commas (.csv), tabs (.tsv, .tab), else by the first of tab, comma and blank that the file holds.

    Names stand without the blanks around them; lines that are blank or begin with '#' are skipped.

    Raises:
        InputError: a file that cannot be read, a state without a name (with its line), or no step at all.
    """
    path = Path(path)
    text = read_utf8(path, "write one sequence of states a line")
    lines = [
        (i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip() and not line.lstrip().startswith("#")
    ]
    held = {mark for _, line in lines for mark in "\t," if mark in line}
    delimiter = _DELIMITERS.get(path.suffix.lower()) or next((mark for mark in "\t," if mark in held), None)
    sequences = []
    for number, line in lines:
        names = [name.strip() for name in line.split(delimiter)]
        if "" in names:
            raise InputError(
                f"{path} line {number}: state {names.index('') + 1} has no name; a line holds the states of one sequence, "
                "separated by commas, tabs or blanks"
            )
        sequences.append(names)
    found = Trajectories.of(sequences)
    if found.n_steps == 0:
        raise InputError(
            f"{path}: no step from one state to another; a line holds the states of one sequence, separated by commas, tabs "
            "or blanks"
        )
    return found

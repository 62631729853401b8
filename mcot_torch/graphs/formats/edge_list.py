"""Graphs as text: edge lists (CSV or TSV) in and out, with the clusters from a second file or from the probabilities.

An edge list has one step a line: source, target, value. The values of a file are all counts or all probabilities:
counts if the header calls them so or if any value exceeds 1, and then every value must be a whole number; else
probabilities, whose rows must sum to 1 within 1e-6. Both are normalised a row. Lines that are blank, begin with '#' or have
the value 0 are skipped.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse as sp
from scipy.sparse.csgraph import connected_components

from mcot_torch.errors import InputError
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.system.files import read_utf8, whole_file

__all__ = ["find_threshold", "read_edge_list", "write_edge_list"]

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_COLUMNS = {"source": 0, "from": 0, "target": 1, "to": 1, "value": 2, "probability": 2, "count": 2, "counts": 2}
_ROW_SUM_TOLERANCE = 1e-6
_ROUNDING = 1e-12
_LARGEST_COUNT = 2**53  # beyond it float64 does not hold every whole number
_CLEAR_FACTOR = 5.0  # [ours] dense and hard steps must differ by this factor ...
_CLEAR_RATIO = 1.5  # [ours] ... and by this many times the second largest gap in log-probability


class _Edge(NamedTuple):
    line: int
    source: str
    target: str
    value: float


def read_edge_list(
    path: str | Path, clusters_path: str | Path | None = None, threshold: float | None = None
) -> MetastableGraph:
    """Read a graph from an edge list.

    The delimiter follows the suffix (.csv comma, .tsv and .tab tab), else the first line. A header is optional; it
    names the columns source (or from), target (or to) and value (or probability, or count), in any order.
    States: if the sources are exactly 0 .. N - 1 they are numbered so and have no names, else they are numbered by their
    first line as a source and keep their names.

    Hard edges join two clusters. ε is the largest hard probability, the weights are w = p/ε, and the dense edges of a row,
    normalised, are p^0; so p^ε is the file's kernel. Rare edges inside a cluster stay dense.

    Args:
        path: the edge list, UTF-8.
        clusters_path: lines of state, cluster (header optional), one for every state. Clusters are numbered as the
            states are: 0 .. K - 1 if they are called so, else by first line.
        threshold: without `clusters_path`, edges less probable than this are cut and the strongly connected components
            that remain are the clusters; None for the largest gap in log-probability (`find_threshold`).

    Raises:
        InputError: naming the file, the line or the state, the value, the rule and the way out.
    """
    path = Path(path)
    if threshold is not None and not 0.0 < threshold < 1.0:
        raise InputError(f"threshold is {threshold}; it is a probability a step and must lie in (0, 1)")
    if threshold is not None and clusters_path is not None:
        raise InputError(
            "threshold and clusters_path are both given; the clusters come from one of them: drop the other"
        )
    edges, is_count = _parse_edges(path)
    names = _numbering([edge.source for edge in edges])
    index = {name: i for i, name in enumerate(names)}
    for edge in edges:
        if edge.target not in index:
            raise InputError(
                f"{path} line {edge.line}: no step leads out of state {edge.target}; add one, or remove the steps into it"
            )
    source = np.array([index[edge.source] for edge in edges])
    target = np.array([index[edge.target] for edge in edges])
    value = np.array([edge.value for edge in edges])
    row_sum = np.bincount(source, value)
    wrong = np.abs(row_sum - 1.0) > _ROW_SUM_TOLERANCE
    if not is_count and wrong.any():
        x = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{path}: the probabilities of the steps out of state {names[x]} sum to {row_sum[x]:.9g}; they must sum to 1: "
            "add what is missing, or, if these are counts, call their column 'count' in a header"
        )
    row_sum[np.abs(row_sum - 1.0) < _ROUNDING] = 1.0  # dividing by the rounding error of a sum would only add another
    probability = value / row_sum[source]

    if clusters_path is not None:
        clusters = _read_clusters(Path(clusters_path), path, index)
    else:
        try:
            cut = find_threshold(probability) if threshold is None else threshold
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        clusters = _components(path, source, target, probability, cut, names)
    hard = clusters[source] != clusters[target]
    return _assemble(path, source, target, probability, hard, clusters, names)


def write_edge_list(graph: MetastableGraph, path: str | Path, clusters_path: str | Path | None = None) -> None:
    """Write p^ε as an edge list, and the clusters to a second file if one is named; reading both gives p^ε to 1e-15.

    Probabilities are written with all their digits. The delimiter follows the suffix as in `read_edge_list`. Files appear
    only when they are whole.

    Raises:
        InputError: a name that an edge list cannot hold: empty, with blanks around it, with a line break, or '#' first.
    """
    names = [graph.name(x) for x in range(graph.n_states)]
    for name in names:
        if not name or name != name.strip() or name.startswith("#") or any(c in name for c in "\r\n\0"):
            raise InputError(f"state name {name!r} cannot stand in an edge list; rename the state")
    rows = [
        (names[x], names[y], repr(float(p)))
        for x, y, p in zip(graph.sources, graph.indices, graph.probabilities, strict=True)
    ]
    _write(Path(path), [("source", "target", "probability"), *rows])
    if clusters_path is not None:
        labels = [(name, str(k)) for name, k in zip(names, graph.clusters, strict=True)]
        _write(Path(clusters_path), [("state", "cluster"), *labels])


def find_threshold(probability: NDArray[np.float64]) -> float:
    """The geometric middle of the largest gap in log-probability, between easy and hard steps.

    Right for exact kernels and for counts of many visits; with few visits a state the gap closes (specification,
    "Clusters from a kernel or from counts", docs/specification.md#clusters-from-a-kernel-or-from-counts).

    Raises:
        InputError: no clear gap: a factor below 5, or less than 1.5 times the second largest gap in log-probability.
    """
    levels = np.log(np.unique(probability))
    gaps = np.sort(np.diff(levels))
    way_out = "give threshold, the probability below which a step is hard, or clusters_path, a file of state, cluster"
    if len(gaps) == 0 or gaps[-1] < np.log(_CLEAR_FACTOR):
        factor = np.exp(gaps[-1]) if len(gaps) else 1.0
        raise InputError(
            f"no clear gap between easy and hard steps: neighbouring probabilities differ by at most a factor {factor:.3g}, "
            f"a clear gap is {_CLEAR_FACTOR:g} or more; {way_out}"
        )
    if len(gaps) > 1 and gaps[-1] < _CLEAR_RATIO * gaps[-2]:
        raise InputError(
            f"no clear gap between easy and hard steps: the two largest gaps are factors {np.exp(gaps[-1]):.3g} and "
            f"{np.exp(gaps[-2]):.3g}; {way_out}"
        )
    i = int(np.argmax(np.diff(levels)))
    return float(np.exp((levels[i] + levels[i + 1]) / 2))


# ---- lines ----------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields without blanks around them) of every line that says something."""
    cure = "export the table as CSV or TSV"
    text = read_utf8(path, cure)
    if "\0" in text:
        raise InputError(f"{path}: not a text file in UTF-8; {cure}")
    delimiter = _DELIMITERS.get(path.suffix.lower())
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if delimiter is None:
            delimiter = next((d for d in "\t,;" if d in line), " ")
        try:
            # one line at a time, so that an open quote cannot swallow the rest of the file
            fields = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))
        except csv.Error as error:
            raise InputError(f"{path} line {number}: not a row of a table ({error})") from None
        yield number, [field.strip() for field in fields]


def _parse_edges(path: Path) -> tuple[list[_Edge], bool]:
    """(edges with a positive value, whether the values are counts), every line checked."""
    order, header_kind = [0, 1, 2], ""
    edges: list[_Edge] = []
    seen: dict[tuple[str, str], int] = {}
    first = True
    for number, fields in _rows(path):
        header = [field.casefold() for field in fields]
        is_header = first and {_COLUMNS.get(field) for field in header} >= {0, 1, 2}
        first = False
        if is_header:
            order = [next(i for i, field in enumerate(header) if _COLUMNS.get(field) == c) for c in range(3)]
            header_kind = header[order[2]]
            continue
        if len(fields) <= max(order):
            raise InputError(
                f"{path} line {number}: {len(fields)} column(s); a line holds source, target and value, separated by commas "
                "(.csv) or tabs (.tsv)"
            )
        source, target, text = (fields[i] for i in order)
        if not source or not target:
            raise InputError(f"{path} line {number}: a state without a name; a line holds source, target and value")
        try:
            value = float(text)
        except ValueError:
            raise InputError(
                f"{path} line {number}: value {text!r} of edge {source} -> {target} is not a number; a header, if there is "
                "one, names the columns source, target and value"
            ) from None
        if (source, target) in seen:
            raise InputError(
                f"{path} line {number}: edge {source} -> {target} stands in line {seen[source, target]} already; keep one"
            )
        seen[source, target] = number
        edges.append(_Edge(number, source, target, value))
    is_count = header_kind in ("count", "counts") or (
        header_kind != "probability" and any(edge.value > 1 for edge in edges)
    )
    _check_values(path, edges, is_count)
    edges = [edge for edge in edges if edge.value > 0]
    if not edges:
        raise InputError(f"{path}: no edges; a line holds source, target and value")
    return edges, is_count


def _check_values(path: Path, edges: Sequence[_Edge], is_count: bool) -> None:
    """Every value in the domain of its kind."""
    if is_count:
        wrong = [e for e in edges if not (0.0 <= e.value <= _LARGEST_COUNT and e.value.is_integer())]
        if wrong:
            edge = max(wrong, key=lambda e: e.value > 1)  # the first above 1, which can be neither, else the first
            other = next((e for e in edges if e.value > 1 and e not in wrong), None)
            hint = f"; line {other.line} holds {other.value:g}, so these are counts" if other else ""
            raise InputError(
                f"{path} line {edge.line}: count {edge.value:g} of edge {edge.source} -> {edge.target}; a file with values "
                f"above 1 holds counts, which are whole numbers up to 2^53, not probabilities in (0, 1]{hint}"
            )
    for edge in edges:
        if not is_count and not 0.0 <= edge.value <= 1.0:
            raise InputError(
                f"{path} line {edge.line}: probability {edge.value:g} of edge {edge.source} -> {edge.target}; "
                "probabilities lie in (0, 1]"
            )


def _numbering(called: Sequence[str]) -> list[str]:
    """The different names in the order of their numbers: 0 .. N - 1 if they are called so, else by first appearance."""
    names = list(dict.fromkeys(called))
    numbers = [str(i) for i in range(len(names))]
    return numbers if set(names) == set(numbers) else names


def _write(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    delimiter = _DELIMITERS.get(path.suffix.lower(), ",")
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


# ---- clusters -------------------------------------------------------------------------------------------------------


def _read_clusters(clusters_path: Path, path: Path, index: dict[str, int]) -> NDArray[np.int64]:
    """(N,) cluster of each state from a file of state, cluster."""
    called: dict[str, str] = {}
    first = True
    for number, fields in _rows(clusters_path):
        is_header = first and [field.casefold() for field in fields[:2]] == ["state", "cluster"]
        first = False
        if is_header:
            continue
        if len(fields) < 2 or not fields[0] or not fields[1]:
            raise InputError(f"{clusters_path} line {number}: a line holds state and cluster")
        state, cluster = fields[:2]
        if state not in index:
            raise InputError(f"{clusters_path} line {number}: state {state} has no steps in {path}")
        if state in called:
            raise InputError(f"{clusters_path} line {number}: state {state} stands twice; keep one line")
        called[state] = cluster
    for state in index:
        if state not in called:
            raise InputError(f"{clusters_path}: state {state} of {path} has no cluster; add a line for it")
    number_of = {cluster: k for k, cluster in enumerate(_numbering(list(called.values())))}
    return np.array([number_of[called[state]] for state in index], dtype=np.int64)


def _components(
    path: Path,
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    probability: NDArray[np.float64],
    threshold: float,
    names: Sequence[str],
) -> NDArray[np.int64]:
    """(N,) strongly connected components once the steps under `threshold` are cut, numbered by their first state."""
    keep = probability >= threshold
    graph = sp.csr_array((np.ones(int(keep.sum())), (source[keep], target[keep])), shape=(len(names), len(names)))
    count, labels = connected_components(graph, directed=True, connection="strong")
    way_out = "give another threshold, or clusters_path, a file of state, cluster"
    if count < 2:
        raise InputError(
            f"{path}: with the steps below {threshold:.3g} cut the states still hang together in one cluster, and a graph "
            f"needs at least 2; {way_out}"
        )
    between = keep & (labels[source] != labels[target])
    if between.any():
        i = int(np.flatnonzero(between)[0])
        x, y = names[source[i]], names[target[i]]
        raise InputError(
            f"{path}: the step {x} -> {y} has probability {probability[i]:.3g}, which is not below the threshold "
            f"{threshold:.3g}, yet no such steps lead back from {y} to {x}; {way_out}"
        )
    numbers = {label: k for k, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([numbers[label] for label in labels.tolist()], dtype=np.int64)


def _assemble(
    path: Path,
    source: NDArray[np.int64],
    target: NDArray[np.int64],
    probability: NDArray[np.float64],
    hard: NDArray[np.bool_],
    clusters: NDArray[np.int64],
    names: Sequence[str],
) -> MetastableGraph:
    """The graph with ε = the largest hard probability, w = p/ε and the dense part of each row normalised to p^0."""
    dense_mass = np.bincount(source[~hard], probability[~hard], minlength=len(names))
    if (dense_mass == 0).any():
        x = int(np.flatnonzero(dense_mass == 0)[0])
        raise InputError(
            f"{path}: every step out of state {names[x]} leads to another cluster; a state needs an easy step inside its own "
            "(a self-loop will do): add one, or put the state into the cluster that it leads to"
        )
    if not hard.any():
        raise InputError(f"{path}: no step joins two clusters; a graph needs at least 2, joined by hard steps")
    epsilon = float(probability[hard].max())
    numbered = list(names) == [str(i) for i in range(len(names))]
    try:
        return MetastableGraph.from_edges(
            (source[~hard], target[~hard], probability[~hard] / dense_mass[source[~hard]]),
            (source[hard], target[hard], probability[hard] / epsilon),
            clusters,
            epsilon,
            None if numbered else tuple(names),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None

"""Graphs in and out of the formats of other tools: kernels, networkx, GraphML, SciPy .npz, Matrix Market, pandas, deeptime.

| format | holds | loses |
|---|---|---|
| .npz (`MetastableGraph.save`) | everything | nothing |
| networkx, GraphML | p^ε, ε, hard steps, clusters, names | nothing |
| pandas | p^ε, ε, hard steps, clusters, names | nothing |
| .csv, .tsv and a file of clusters beside it | p^ε, hard steps, clusters, names | ε (read back as the largest hard probability) |
| .scipy.npz, .mtx | p^ε | ε, clusters, names (clusters are found again by the widest gap in log-probability) |
| deeptime MarkovStateModel | p^ε | the same |

Probabilities come back to 1e-15 and weights to 1e-12.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import io as scipy_io
from scipy import sparse as sp
from scipy.sparse.csgraph import connected_components

from mcot_torch.errors import InputError
from mcot_torch.graphs.formats.checked import import_extra, is_scipy, read_graphml, read_matrix_market, read_scipy
from mcot_torch.graphs.formats.edge_list import find_threshold, read_edge_list, write_edge_list
from mcot_torch.graphs.graph import MetastableGraph

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    from deeptime.markov.msm import MarkovStateModel

__all__ = [
    "from_deeptime",
    "from_kernel",
    "from_networkx",
    "from_pandas",
    "load_graph",
    "save_graph",
    "to_deeptime",
    "to_networkx",
    "to_pandas",
]

_ROW_SUM_TOLERANCE = 1e-6


# ---- kernels --------------------------------------------------------------------------------------------------------


def from_kernel(
    kernel: ArrayLike | sp.sparray | sp.spmatrix,
    clusters: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    epsilon: float | None = None,
    threshold: float | None = None,
) -> MetastableGraph:
    """A graph from its kernel p^ε.

    Args:
        kernel: (N, N), dense or sparse, rows that sum to 1 within 1e-6.
        clusters: (N,) labels 0 .. K - 1; hard steps are those between two clusters. None: what stays strongly connected
            once steps below `threshold` are cut.
        names: N names.
        epsilon: ε; None for the largest hard probability. Weights are w = p/ε, so that the kernel does not depend on it.
        threshold: None for the widest gap in log-probability (`find_threshold`). Only without `clusters`.

    Raises:
        InputError: no square matrix of laws, no clear clusters, or what `MetastableGraph.validate` finds.
    """
    if threshold is not None and clusters is not None:
        raise InputError("threshold and clusters are both given; the clusters come from one of them: drop the other")
    if epsilon is not None and not (isinstance(epsilon, Real) and 0 < epsilon < 1):
        raise InputError(f"epsilon is {epsilon!r:.40}; it is a probability a step and must lie in (0, 1)")
    if np.iscomplexobj(kernel):
        raise InputError("the kernel holds complex numbers; probabilities are real: write their real part alone")
    matrix = sp.coo_array(kernel if sp.issparse(kernel) else np.asarray(kernel, dtype=np.float64))
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise InputError(f"a kernel is a square matrix with one row a state; this has the shape {matrix.shape}")
    matrix.sum_duplicates()
    n, p = matrix.shape[0], matrix.data.astype(np.float64)
    if not (np.isfinite(p) & (p >= 0)).all():
        raise InputError("the kernel has an entry that is negative or no number; probabilities lie in [0, 1]")
    used = p > 0
    source, target, p = matrix.row[used].astype(np.int64), matrix.col[used].astype(np.int64), p[used]
    rule = "every row must sum to 1: divide counts by their row sums"
    rows = np.unique(source)
    if len(rows) < n:  # told before any array of n numbers is made: a file may claim what it likes
        x = int(np.argmin(np.append(rows, -1) == np.arange(len(rows) + 1)))
        raise InputError(f"row {x} of the kernel sums to 0; {rule}, and give every state a step")
    total = np.bincount(source, p)
    if (np.abs(total - 1) > _ROW_SUM_TOLERANCE).any():
        x = int(np.abs(total - 1).argmax())
        raise InputError(f"row {x} of the kernel sums to {total[x]:.9g}; {rule}")
    if clusters is None:
        labels = _components(source, target, p, find_threshold(p) if threshold is None else threshold, n)
    else:
        labels = np.asarray(clusters, dtype=np.int64)
        if labels.shape != (n,):
            raise InputError(f"clusters has the shape {labels.shape}; a kernel of {n} states needs ({n},)")
    hard = labels[source] != labels[target]
    if not hard.any():
        raise InputError("no step joins two clusters; a graph needs at least 2, joined by hard steps")
    mass = np.bincount(source[~hard], p[~hard], minlength=n)
    epsilon = float(p[hard].max()) if epsilon is None else float(epsilon)
    with np.errstate(over="ignore"):  # an ε that is too small: `validate` names the step whose weight is infinite
        weights = p[hard] / epsilon
    return MetastableGraph.from_edges(
        (source[~hard], target[~hard], p[~hard] / mass[source[~hard]]),
        (source[hard], target[hard], weights),
        labels,
        epsilon,
        None if names is None else tuple(map(str, names)),
    )


def _components(
    source: NDArray[np.int64], target: NDArray[np.int64], p: NDArray[np.float64], threshold: float, n: int
) -> NDArray[np.int64]:
    """(N,) strongly connected components once the steps under `threshold` are cut, numbered by their first state."""
    if not 0.0 < threshold < 1.0:
        raise InputError(f"threshold is {threshold}; it is a probability a step and must lie in (0, 1)")
    keep = p >= threshold
    easy = sp.csr_array((p[keep], (source[keep], target[keep])), shape=(n, n))
    count, found = connected_components(easy, directed=True, connection="strong")
    if count < 2 or (found[source[keep]] != found[target[keep]]).any():
        raise InputError(
            f"cutting the steps below {threshold:.3g} does not part the states into clusters that are joined by such steps "
            "only; give another threshold, or the clusters"
        )
    number = {label: k for k, label in enumerate(dict.fromkeys(found.tolist()))}
    return np.array([number[label] for label in found.tolist()], dtype=np.int64)


# ---- networkx, pandas, deeptime ---------------------------------------------------------------------------------------


def to_networkx(graph: MetastableGraph) -> nx.DiGraph:
    """A DiGraph: nodes by name (str) with `cluster`, edges with `weight` = p^ε and `hard`, the graph with `epsilon`."""
    nx = import_extra("networkx")
    result = nx.DiGraph(epsilon=graph.epsilon)
    result.add_nodes_from((graph.name(x), {"cluster": int(graph.clusters[x])}) for x in range(graph.n_states))
    edges = zip(graph.sources.tolist(), graph.indices.tolist(), graph.probabilities, graph.hard, strict=True)
    result.add_edges_from((graph.name(x), graph.name(y), {"weight": float(p), "hard": bool(h)}) for x, y, p, h in edges)
    return result


def from_networkx(network: nx.DiGraph, threshold: float | None = None) -> MetastableGraph:
    """The graph of a DiGraph whose edges carry `weight` = p^ε.

    Clusters are the nodes' `cluster` where every node has one (any labels), else found as in `from_kernel`. ε is the graph's
    `epsilon` if it has one. Nodes called '0' .. 'N - 1' in their order get no names.

    Raises:
        InputError: an undirected graph, an edge without a weight, or what `from_kernel` finds.
    """
    if not network.is_directed() or network.is_multigraph():
        raise InputError("the network must be a networkx DiGraph: steps have a direction, and one probability each")
    nodes = list(network.nodes)
    number = {node: i for i, node in enumerate(nodes)}
    rows, columns, p = [], [], []
    for a, b, weight in network.edges(data="weight"):
        if not (isinstance(weight, (int, float, np.floating)) and 0 <= weight <= 1 + _ROW_SUM_TOLERANCE):
            raise InputError(
                f"edge {a} -> {b} has weight {weight!r:.40}; its attribute 'weight' is the probability of the step, in [0, 1]"
            )
        rows.append(number[a])
        columns.append(number[b])
        p.append(float(weight))
    called = [network.nodes[node].get("cluster") for node in nodes]
    kernel = sp.coo_array((p, (rows, columns)), shape=(len(nodes), len(nodes)))
    return from_kernel(kernel, _labels(called), _names(list(map(str, nodes))), network.graph.get("epsilon"), threshold)


def to_pandas(graph: MetastableGraph) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(steps, states): columns source, target, probability, hard; and state, cluster. `steps.attrs['epsilon']` is ε."""
    pd = import_extra("pandas")
    names = np.array([graph.name(x) for x in range(graph.n_states)], dtype=object)
    steps = pd.DataFrame(
        {
            "source": names[graph.sources],
            "target": names[graph.indices],
            "probability": graph.probabilities,
            "hard": graph.hard,
        }
    )
    steps.attrs["epsilon"] = graph.epsilon
    return steps, pd.DataFrame({"state": names, "cluster": graph.clusters})


def from_pandas(
    steps: pd.DataFrame,
    states: pd.DataFrame | None = None,
    epsilon: float | None = None,
    threshold: float | None = None,
) -> MetastableGraph:
    """The graph of a table of steps with columns source, target and probability (or count).

    States are numbered by `states` (columns state, cluster) where it is given, else by first line; ε is `epsilon`, else
    `steps.attrs['epsilon']`, else the largest hard probability.

    Raises:
        InputError: a column or a state that is missing, or what `from_kernel` finds.
    """
    value = next((column for column in ("probability", "count") if column in steps.columns), None)
    if value is None or not {"source", "target"} <= set(steps.columns):
        raise InputError(
            f"the table of steps has the columns {list(steps.columns)}; it needs source, target and probability or count"
        )
    if states is not None and not {"state", "cluster"} <= set(states.columns):
        raise InputError(f"the table of states has the columns {list(states.columns)}; it needs state and cluster")
    if steps.empty:
        raise InputError("the table of steps has no rows; it needs one for every step")
    _check_cells(steps, ["source", "target", value])
    if states is not None:
        _check_cells(states, ["state", "cluster"])
    called = steps["source"].tolist() + steps["target"].tolist() if states is None else states["state"].tolist()
    number = {name: i for i, name in enumerate(dict.fromkeys(called))}
    lost = [name for name in [*steps["source"], *steps["target"]] if name not in number]
    if lost:
        raise InputError(
            f"state {lost[0]!r} of the steps does not stand in the table of states; add it with its cluster"
        )
    shape = (len(number), len(number))
    ends = tuple([number[name] for name in steps[column]] for column in ("source", "target"))
    kernel = sp.csr_array(sp.coo_array((steps[value].to_numpy(dtype=np.float64), ends), shape=shape))
    if value == "count":
        kernel = sp.csr_array(sp.diags_array(1 / np.maximum(kernel.sum(axis=1), 1e-300)) @ kernel)
    labels = None if states is None else _labels(states["cluster"].tolist())
    epsilon = steps.attrs.get("epsilon") if epsilon is None else epsilon
    return from_kernel(kernel, labels, _names(list(map(str, number))), epsilon, threshold)


def _check_cells(table: pd.DataFrame, columns: list[str]) -> None:
    """`InputError` naming a column that stands twice, or the row whose cell is empty, no number or no name."""
    for column in columns:
        cells: Any = table[column]
        if cells.ndim > 1:
            raise InputError(f"the table has {cells.shape[1]} columns called {column}; keep one")
        wanted, fits = ("number", _is_number) if column in ("probability", "count") else ("name", _is_name)
        for row, cell in zip(table.index, cells, strict=True):
            if not fits(cell):
                raise InputError(f"row {row} of the table has the {column} {cell!r:.40}; it must be a {wanted}")


def _is_number(cell: Any) -> bool:
    try:
        return not isinstance(cell, complex) and bool(np.isfinite(float(cell)))
    except (TypeError, ValueError, OverflowError):
        return False


def _is_name(cell: Any) -> bool:
    """Anything that can be told from others: NaN and None, an empty cell, cannot, and a list cannot be looked up."""
    try:
        return cell is not None and bool(cell == cell) and isinstance(hash(cell), int)
    except (TypeError, ValueError):
        return False


def to_deeptime(graph: MetastableGraph) -> MarkovStateModel:
    """The MarkovStateModel of p^ε (dense); it holds no ε, clusters or names."""
    model: Any = import_extra("deeptime.markov.msm").MarkovStateModel
    return model(graph.kernel())


def from_deeptime(
    model: MarkovStateModel,
    n_clusters: int | None = None,
    names: Sequence[str] | None = None,
    threshold: float | None = None,
) -> MetastableGraph:
    """The graph of a MarkovStateModel; clusters by deeptime's PCCA+ if `n_clusters` is given, else as in `from_kernel`.

    PCCA+ sees the reversible part (P + P*)/2, so that chains that are not reversible have clusters as well.
    """
    clusters = None
    if n_clusters is not None:
        flow = model.stationary_distribution[:, None] * model.transition_matrix
        flow = flow + flow.T
        found = import_extra("deeptime.markov").pcca(flow / flow.sum(1)[:, None], n_clusters, flow.sum(1) / flow.sum())
        clusters = np.unique(found.assignments, return_inverse=True)[1]
    return from_kernel(model.transition_matrix, clusters, names, None, threshold)


def _labels(called: list[Any]) -> NDArray[np.int64] | None:
    """Numbers of the clusters: 0 .. K - 1 if they are called so, else by first appearance; None where one has no label."""
    if any(label is None or label != label for label in called):
        return None
    different = list(dict.fromkeys(called))
    numbers = range(len(different))
    number = {label: k for k, label in enumerate(numbers if set(different) == set(numbers) else different)}
    return np.array([number[label] for label in called], dtype=np.int64)


def _names(called: list[str]) -> list[str] | None:
    return None if called == [str(i) for i in range(len(called))] else called


# ---- files ----------------------------------------------------------------------------------------------------------

LOSSES = {
    ".npz": "",
    ".graphml": "",
    ".csv": "ε (read back as the largest hard probability)",
    ".tsv": "ε (read back as the largest hard probability)",
    ".scipy.npz": "ε, clusters and names: only the kernel is written",
    ".mtx": "ε, clusters and names: only the kernel is written",
}
"""Suffix of a file that `save_graph` writes -> what it cannot hold."""


def suffix_of(path: str | Path) -> str:
    """The longest known suffix of a file; `InputError` names the known ones."""
    name = Path(path).name.lower()
    known = [suffix for suffix in LOSSES if name.endswith(suffix)]
    if not known:
        raise InputError(f"{path}: unknown format; the file's name ends in one of {', '.join(LOSSES)}")
    return max(known, key=len)


def clusters_beside(path: str | Path) -> Path:
    """The file of clusters that `save_graph` writes beside an edge list: graph.csv -> graph.clusters.csv."""
    path = Path(path)
    return path.with_name(f"{path.stem}.clusters{path.suffix}")


def load_graph(
    path: str | Path, clusters_path: str | Path | None = None, threshold: float | None = None
) -> MetastableGraph:
    """Read a graph from any of the formats, by suffix; SciPy's .npz and the package's own are told apart by what they hold.

    Args:
        path: .npz, .graphml, .mtx, .csv or .tsv.
        clusters_path: for an edge list, its file of clusters; None for the threshold.
        threshold: where the file holds no clusters, the probability below which a step is hard; None for the widest gap.

    Raises:
        InputError: naming the file, what is wrong, and the way out.
    """
    path, suffix = Path(path), suffix_of(path)
    if suffix in (".csv", ".tsv"):
        return read_edge_list(path, clusters_path, threshold)
    if clusters_path is not None:
        raise InputError(
            f"clusters_path is {str(clusters_path)!r}, but only an edge list (.csv, .tsv) is read with one"
        )
    if suffix.endswith(".npz") and not is_scipy(path):
        return MetastableGraph.load(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    read: dict[str, Callable[[Path], Any]] = {".graphml": read_graphml, ".mtx": read_matrix_market}
    try:
        content = read.get(suffix, read_scipy)(path)
    except InputError:
        raise
    except Exception as error:  # parsers of three libraries, each with its own kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: not a readable {suffix} file ({reason})") from None
    try:
        return from_networkx(content, threshold) if suffix == ".graphml" else from_kernel(content, threshold=threshold)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def save_graph(graph: MetastableGraph, path: str | Path) -> list[Path]:
    """Write a graph in the format of the file's suffix; returns the files written (an edge list has one of clusters beside).

    Files appear only when they are whole. `LOSSES` says what a format cannot hold.
    """
    path, suffix = Path(path), suffix_of(path)
    if suffix == ".npz":
        graph.save(path)
        return [path]
    if suffix in (".csv", ".tsv"):
        write_edge_list(graph, path, clusters_beside(path))
        return [path, clusters_beside(path)]
    temporary = path.with_name("." + path.name)  # keeps the suffix, which the writers look at
    if suffix == ".graphml":
        import_extra("networkx").write_graphml(to_networkx(graph), temporary)
    elif suffix == ".mtx":
        scipy_io.mmwrite(temporary, sp.coo_array(graph.to_scipy()), precision=17)
    else:
        sp.save_npz(temporary, graph.to_scipy())
    temporary.replace(path)
    return [path]

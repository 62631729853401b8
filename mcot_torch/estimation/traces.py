"""Reasoning traces: text in, a chain of kinds of steps out, and where the reasoning gets stuck."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, fisher_exact

from mcot_torch.errors import InputError
from mcot_torch.estimation.estimate import Estimate, EstimationConfig, estimate
from mcot_torch.estimation.texts import Embedding, kinds_of_steps, normalise
from mcot_torch.estimation.trajectories import Trajectories
from mcot_torch.estimation.uncertainty import LEVEL
from mcot_torch.system.files import read_utf8

__all__ = ["Basin", "Kind", "Passage", "Trace", "TraceAnalysis", "analyse_traces", "read_traces"]

# Steps of a kind, on average: kinds are unequal, and the eigenvectors need about 100 visits of each
# (docs/specification.md#clusters-from-a-kernel-or-from-counts).
_VISITS = 300
_MOST_KINDS = 200
_EXAMPLES = 3
_NAME = 48


@dataclass(frozen=True)
class Trace:
    """One chain of thought: its steps as text, and whether its answer was right (None: not known)."""

    id: str
    steps: tuple[str, ...]
    correct: bool | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of step: its share of all steps, of the last steps of traces, and its commonest text."""

    name: str
    share: float
    last: float
    example: str


@dataclass(frozen=True)
class Basin:
    """A metastable cluster of kinds of steps. Shares are None where no trace is known to be right, or none wrong.

    Attributes:
        cluster: k.
        kinds: number of kinds in it.
        share: of all steps.
        stay: mean number of steps before it is left, visits over exits; infinite if it never is.
        ends_correct: share of the correct traces that end here, or in a final step that follows on this cluster.
        ends_incorrect: likewise of the incorrect ones.
        examples: its commonest steps as they were written.
    """

    cluster: int
    kinds: int
    share: float
    stay: float
    ends_correct: float | None
    ends_incorrect: float | None
    examples: list[str]


@dataclass(frozen=True)
class Passage:
    """All hard steps from one cluster to another.

    Attributes:
        source: k.
        target: l.
        count: how often.
        probability: a step while in k.
        low: end of its 95 % interval.
        high: the other end.
        correct: share of the correct traces that take it at least once.
        incorrect: likewise of the incorrect ones.
        p_value: Fisher's exact test that the two shares are one.
        examples: (step before, step after), as they were written.
    """

    source: int
    target: int
    count: int
    probability: float
    low: float
    high: float
    correct: float | None
    incorrect: float | None
    p_value: float | None
    examples: list[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class TraceAnalysis:
    """What traces say: kinds of steps, the estimated chain and, if it is metastable, its clusters and passages.

    Attributes:
        traces: those with a step.
        kinds: kind of every step, one array a trace.
        kind_list: the kinds, commonest first; their names are the names of the states.
        estimate: of the chain of kinds.
        basins: clusters, 0 .. K - 1.
        passages: between clusters, commonest first.
        stuck: one sentence on where incorrect traces end; empty where that is not known.
    """

    traces: list[Trace]
    kinds: list[NDArray[np.int64]]
    kind_list: list[Kind]
    estimate: Estimate
    basins: list[Basin]
    passages: list[Passage]
    stuck: str


def read_traces(path: str | Path) -> list[Trace]:
    """Read JSON lines of {"id": ..., "steps": [text, ...], "correct": true | false}; `id` and `correct` may be missing.

    Raises:
        InputError: naming the file, the line and what is wrong with it.
    """
    path = Path(path)
    lines = read_utf8(path, "write one JSON object a line").split("\n")  # not at U+2028, which JSON allows in a text
    traces = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error}); write one object a line") from None
        steps = item.get("steps") if isinstance(item, dict) else None
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise InputError(
                f'{where}: no list of texts under "steps"; write {{"id": ..., "steps": ["...", "..."], "correct": true}}'
            )
        correct = item.get("correct")
        if correct is not None and not isinstance(correct, bool):
            raise InputError(f'{where}: "correct" is {correct!r}; it is true, false or missing')
        written = tuple(step for step in steps if step.strip())
        traces.append(Trace(str(item.get("id", number)), written, correct))
    if not any(len(trace.steps) > 1 for trace in traces):
        raise InputError(f"{path}: no trace has two steps; a chain needs steps that follow one another")
    return traces


def analyse_traces(
    traces: Sequence[Trace],
    n_kinds: int | None = None,
    embedding: Embedding | NDArray[np.floating] | None = None,
    keep_numbers: bool = False,
    kinetic: bool = True,
    config: EstimationConfig | None = None,
) -> TraceAnalysis:
    """Find kinds of steps in the text, estimate their chain, and say where it gets stuck.

    Args:
        traces: with at least one step between them.
        n_kinds: kinds of steps; None for one in 300 steps, 2 .. 200.
        embedding: see `texts.kinds_of_steps`; rows of an array are the steps of all traces in their order.
        keep_numbers: numbers name what a step is about; else they are masked.
        kinetic: see `texts.kinds_of_steps`.
        config: of the estimation.

    Raises:
        InputError: fewer than 2 kinds, or what clustering and estimation find.
    """
    config = config or EstimationConfig()
    traces = [trace for trace in traces if trace.steps]
    texts = [[normalise(step, keep_numbers) for step in trace.steps] for trace in traces]
    n_steps = sum(map(len, texts))
    if n_kinds is None:
        n_kinds = int(np.clip(n_steps // _VISITS, 2, _MOST_KINDS))
    if n_kinds < 2:
        raise InputError(f"kinds is {n_kinds}; a chain needs at least 2 kinds of steps")
    flat = kinds_of_steps(texts, n_kinds, embedding, kinetic, config.seed)
    kinds = np.split(flat, np.cumsum([len(steps) for steps in texts])[:-1])
    kind_list = _kinds(traces, kinds)
    names = tuple(kind.name for kind in kind_list)
    found = estimate(Trajectories(tuple(kinds), names), config)
    if found.graph is None:
        return TraceAnalysis(traces, kinds, kind_list, found, [], [], "")
    label = np.full(len(names), -1, dtype=np.int64)
    label[found.kept] = found.graph.clusters
    clusters = [label[path] for path in kinds]
    basins = [_basin(k, traces, kinds, clusters, label) for k in range(found.graph.n_clusters)]
    return TraceAnalysis(traces, kinds, kind_list, found, basins, _passages(traces, clusters), _stuck(basins))


def _kinds(traces: Sequence[Trace], kinds: Sequence[NDArray[np.int64]]) -> list[Kind]:
    flat = np.concatenate(kinds)
    n = int(flat.max()) + 1
    spoken = [Counter[str]() for _ in range(n)]
    for trace, path in zip(traces, kinds, strict=True):
        for step, kind in zip(trace.steps, path, strict=True):
            spoken[kind][" ".join(step.split())] += 1
    share = np.bincount(flat, minlength=n) / len(flat)
    last = np.bincount([path[-1] for path in kinds], minlength=n) / len(kinds)
    examples = [counter.most_common(1)[0][0] for counter in spoken]
    # a comma separates the names of several states on the command line
    return [
        Kind(f"{i}: {text[:_NAME].replace(',', ';')}", float(share[i]), float(last[i]), text)
        for i, text in enumerate(examples)
    ]


def _groups(traces: Sequence[Trace]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(n,) which traces are known to be right, which to be wrong."""
    return np.array([t.correct is True for t in traces]), np.array([t.correct is False for t in traces])


def _share(holds: NDArray[np.bool_], among: NDArray[np.bool_]) -> float | None:
    return float(holds[among].mean()) if among.any() else None


def _basin(
    k: int,
    traces: Sequence[Trace],
    kinds: Sequence[NDArray[np.int64]],
    clusters: Sequence[NDArray[np.int64]],
    label: NDArray[np.int64],
) -> Basin:
    right, wrong = _groups(traces)
    visits = sum(int((path[:-1] == k).sum()) for path in clusters)
    exits = sum(int(((path[:-1] == k) & (path[1:] != k) & (path[1:] >= 0)).sum()) for path in clusters)
    # a final state that is never left belongs to no cluster: what counts is the cluster before it
    ends = np.array([(path[path >= 0][-1:] == k).any() for path in clusters])
    spoken: Counter[str] = Counter()
    for trace, path in zip(traces, clusters, strict=True):
        spoken.update(" ".join(trace.steps[i].split()) for i in np.flatnonzero(path == k))
    return Basin(
        k,
        int((label == k).sum()),
        spoken.total() / sum(map(len, kinds)),
        visits / exits if exits else float("inf"),
        _share(ends, right),
        _share(ends, wrong),
        [text for text, _ in spoken.most_common(_EXAMPLES)],
    )


def _passages(traces: Sequence[Trace], clusters: Sequence[NDArray[np.int64]]) -> list[Passage]:
    right, wrong = _groups(traces)
    visits: Counter[int] = Counter()
    where: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (k, l) -> (trace, step) of every crossing
    for i, path in enumerate(clusters):
        visits.update(path[:-1][path[1:] >= 0].tolist())
        for t in np.flatnonzero((path[:-1] != path[1:]) & (path[:-1] >= 0) & (path[1:] >= 0)):
            where.setdefault((int(path[t]), int(path[t + 1])), []).append((i, int(t)))
    passages = []
    for (k, l), places in sorted(where.items(), key=lambda item: -len(item[1])):  # noqa: E741
        taken = np.zeros(len(traces), dtype=bool)
        taken[[i for i, _ in places]] = True
        table = [[int((taken & group).sum()), int((~taken & group).sum())] for group in (right, wrong)]
        n, tail = visits[k], (1 - LEVEL) / 2
        law = beta(len(places) + 0.5, max(n - len(places), 0) + 0.5)
        steps = [(traces[i].steps[t], traces[i].steps[t + 1]) for i, t in places[:_EXAMPLES]]
        passages.append(
            Passage(
                k,
                l,
                len(places),
                len(places) / n,
                float(law.ppf(tail)),
                float(law.ppf(1 - tail)),
                _share(taken, right),
                _share(taken, wrong),
                float(fisher_exact(table).pvalue) if right.any() and wrong.any() else None,
                [(" ".join(a.split()), " ".join(b.split())) for a, b in steps],
            )
        )
    return passages


def _stuck(basins: Sequence[Basin]) -> str:
    """Where incorrect traces end more often than correct ones, if both are known."""
    known = [b for b in basins if b.ends_correct is not None and b.ends_incorrect is not None]
    if not known:
        return ""
    worst = max(known, key=lambda b: b.ends_incorrect - b.ends_correct)  # type: ignore[operator]
    return (
        f"Incorrect traces get stuck in C_{worst.cluster} above all: {worst.ends_incorrect:.0%} of them end there, and "
        f"{worst.ends_correct:.0%} of the correct ones; it takes {worst.stay:.0f} steps on average to leave it."
    )

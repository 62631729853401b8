"""The second question of a run's report: how the kernel changed."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from mcot_torch.chains.elimination import Kernel
from mcot_torch.evaluation.measures import entries, row_tv
from mcot_torch.evaluation.models import MODELS, ordered
from mcot_torch.report.page.charts import Chart, colour, line, log_axis, numbers, plain_axis, rule, thinned
from mcot_torch.report.page.material import Material
from mcot_torch.report.page.page import Section, plot, table
from mcot_torch.report.text import cluster, escape, not_yet, number, span

__all__ = ["kernel_section"]

_MOST_HARD = 300  # hard steps drawn one by one
_MOST_ROWS = 400  # rows of a model drawn one by one
_MOST_CELLS = 100  # clusters a side of a heat map
_MOST_LISTED = 200


def kernel_section(m: Material) -> Section:
    """How did the kernel change?"""
    scales, rows = m.problem.scales, m.rows

    def learned(model: str) -> str:
        p = rows[model]["hard_step_probability"]
        return f"{number(p['mean'])} ({span(p['min'], p['max'])})"

    if "tuned" in rows:
        answer = (
            f"PPO raised the probability of a hard step from {learned('pretrained')} to {learned('tuned')}, "
            f"where ε<sub>max</sub> = {number(scales.epsilon_max)} was asked for"
        )
        easy = rows["tuned"]["row_tv_easy_max"]
        answer += f"; no row without a hard step is further than {number(easy)} from the graph's." if easy else "."
    else:
        answer = (
            f"Pretraining learned the hard steps at {learned('pretrained')} a step, where the graph has {number(m.graph.epsilon)}. "
            + not_yet("ppo")
        )
    section = Section("kernel", "How did the kernel change?", answer)
    section.body = "<div class='pair'>" + _hard_chart(m, section) + _rows_chart(m, section) + "</div>"
    section.body += _maps(m, section) + _hard_table(m)
    return section


def _state_models(m: Material, own_weights: bool = False) -> list[str]:
    """Names of the models over the graph's states, in the order of the table; optionally those with weights of their own."""
    entries = [entry for entry in ordered(m.subjects) if entry.unit == "steps"]
    return [entry.name for entry in entries if entry.own_weights or not own_weights]


def _hard_chart(m: Material, section: Section) -> str:
    edges = np.array(list(chain(*m.picture.kinds.values())), dtype=np.int64).reshape(-1, 2)
    kind = list(chain(*([k] * len(v) for k, v in m.picture.kinds.items())))
    order = np.lexsort((edges[:, 1], edges[:, 0]))
    chosen = order[thinned(len(order), _MOST_HARD)]
    edges, kind = edges[chosen], [kind[i] for i in chosen]
    models = _state_models(m, own_weights=True)
    exact = {n: entries(m.subjects[n].kernel, edges) for n in models}
    every = np.concatenate(list(exact.values()))
    floor = max(1e-9, float(every[every > 0].min()) / 10)  # where those that a model never takes are drawn
    p = {n: np.maximum(exact[n], floor) for n in models}
    x = np.arange(1, len(edges) + 1)
    verdict = {"found": "found", "missed": "missed by search", "false": "not hard"}
    texts = [
        f"{escape(m.graph.name(a))} → {escape(m.graph.name(b))}"
        f"<br>{cluster(m.graph.clusters[a])} → {cluster(m.graph.clusters[b])}{', ' + verdict[k] if m.found is not None else ''}<br>"
        + "<br>".join(f"{n} {number(float(exact[n][i]))}" for n in models)
        for i, ((a, b), k) in enumerate(zip(edges.tolist(), kind, strict=True))
    ]
    gaps = np.full(len(x), np.nan)
    ends = np.stack([p[models[0]], p[models[-1]], gaps], axis=1).ravel()
    data = [line(np.repeat(x, 3), ends, "", "@rule", 1.5, hoverinfo="skip", showlegend=False)]
    for n in models:
        marker = {
            "symbol": MODELS[n].marker,
            "size": 9 if n == "base" else 7,
            "color": colour(n),
            "line": {"width": 1.8, "color": colour(n)},
        }
        data.append(
            {"type": "scatter", "mode": "markers", "x": x.tolist(), "y": numbers(p[n]), "name": n, "text": texts,
             "hovertemplate": "%{text}<extra></extra>", "marker": marker}
        )  # fmt: skip
    shapes, notes = [], []
    for at, name in ((m.graph.epsilon, "ε"), (m.problem.scales.epsilon_max, "ε<sub>max</sub>")):
        shape, note = rule(at, name)
        shapes.append(shape)
        notes.append(note)
    some = f"{len(edges):,} of {len(order):,} " if len(order) > len(edges) else ""
    yaxis = log_axis("probability a step", [v for n in models for v in (p[n].min(), p[n].max())])
    caption = "Each hard step before and after. One that search missed stays low."
    if (every <= floor).any():
        yaxis = _with_zero(yaxis, floor)
        caption += " At 0: cut in pretraining with the impossible steps, and out of the search's sight."
    layout = {
        "xaxis": plain_axis(
            f"{some}hard steps, in order of their states", showticklabels=False, ticks="", showgrid=False
        ),
        "yaxis": yaxis,
        "shapes": shapes,
        "annotations": notes,
    }
    chart = Chart(data, layout, 340, "Probability of each hard step in the base chain, after pretraining and after PPO")
    return plot(section, chart, caption)


def _with_zero(axis: dict[str, Any], floor: float) -> dict[str, Any]:
    """A logarithmic axis whose lowest tick stands for 0."""
    kept = [(v, t) for v, t in zip(axis["tickvals"], axis["ticktext"], strict=True) if v > 2 * floor]
    values, texts = [floor, *(v for v, _ in kept)], ["0", *(t for _, t in kept)]
    return {**axis, "tickvals": numbers(values), "ticktext": texts}


def _rows_chart(m: Material, section: Section) -> str:
    models = [n for n in _state_models(m) if n != "base"]
    source = np.zeros(m.graph.n_states, dtype=bool)
    source[m.graph.sparse_edges[:, 0]] = True
    data: list[dict[str, Any]] = []
    distances = {n: row_tv(m.subjects[n].kernel, m.subjects[n].truth) for n in models}
    highest = max(1e-15, *(float(tv.max()) for tv in distances.values()))
    floor = max(1e-16, 1e-6 * highest)  # what is closer still is drawn there
    for i, (n, tv) in enumerate(distances.items()):
        order = np.argsort(-tv, kind="stable")
        shown = order[thinned(len(order), _MOST_ROWS)]
        spread = (np.arange(len(shown)) * 0.618034) % 1.0 - 0.5  # the golden ratio: even and repeatable
        texts = [
            f"{escape(m.graph.name(x))} ({cluster(m.graph.clusters[x])})<br>total variation {tv[x]:.2g}"
            for x in shown.tolist()
        ]
        data.append(
            {"type": "scatter", "mode": "markers", "x": numbers(np.maximum(tv[shown], floor)),
             "y": numbers(i + 0.55 * spread), "name": n, "text": texts, "showlegend": False,
             "hovertemplate": "%{text}<extra></extra>",
             "marker": {"size": [8 if s else 5 for s in source[shown]], "color": colour(n, 0.7),
                        "symbol": ["diamond" if s else "circle" for s in source[shown]], "line": {"width": 0}}}
        )  # fmt: skip
    layout = {
        "xaxis": log_axis("total variation of a row from its reference", [v for t in data for v in t["x"]]),
        "yaxis": {
            "tickvals": list(range(len(models))),
            "ticktext": models,
            "showgrid": False,
            "ticks": "",
            "range": [len(models) - 0.4, -0.6],
        },
    }
    chart = Chart(data, layout, 340, "Total variation between each row of a model and its reference")
    return plot(
        section,
        chart,
        "Each row of each model: how far from the kernel it should have (p<sup>ε</sup> for pretrained, p<sup>ε<sub>max</sub></sup> "
        "for the others). Diamonds are rows with a hard step.",
    )


def _cells(kernel: Kernel, labels: np.ndarray) -> np.ndarray:
    """(K, K) probability that a step from cluster k enters l, mean over the states of k."""
    belongs = np.eye(int(labels.max()) + 1)[labels]  # (N, K)
    return belongs.T @ (kernel @ belongs) / belongs.sum(axis=0)[:, None]


def _maps(m: Material, section: Section) -> str:
    graph, names = m.graph, [entry.name for entry in ordered(m.subjects) if entry.own_weights]
    if graph.n_clusters > _MOST_CELLS:
        return f"<p class='missing'>{graph.n_clusters:,} clusters are too many for a heat map.</p>"
    floor = graph.epsilon / graph.cluster_size / 10
    low = float(np.floor(np.log10(floor)))
    out = []
    for n in names:
        kernel = m.subjects[n].kernel
        hops = MODELS[n].unit == "hops"
        cells = kernel if hops else _cells(kernel, graph.clusters)
        if hops:
            order = np.argsort(m.student_clusters, kind="stable")
            cells = cells[np.ix_(order, order)]
        with np.errstate(divide="ignore"):
            shown = np.where(cells > 0, np.log10(np.maximum(cells, 10**low)), np.nan)
        unit = "hop" if hops else "step"
        size = len(cells)
        texts = [
            [f"{cluster(k)} → {cluster(j)}<br>{number(float(cells[k, j]))} a {unit}" for j in range(size)]
            for k in range(size)
        ]
        heat = {
            "type": "heatmap", "z": [numbers(row) for row in shown], "text": texts, "hovertemplate": "%{text}<extra></extra>",
            "zmin": low, "zmax": 0.0, "colorscale": [[i / 4, f"@heat{i}"] for i in range(5)], "showscale": False,
            "xgap": 1 if size <= 40 else 0, "ygap": 1 if size <= 40 else 0,
        }  # fmt: skip
        bare = {
            "showgrid": False,
            "ticks": "",
            "dtick": max(1, -(-size // 8)),
            "showline": False,
            "constrain": "domain",
        }
        layout = {
            "xaxis": plain_axis("to", **bare, constraintoward="left"),
            "yaxis": plain_axis("from", **bare, autorange="reversed", scaleanchor="x", constraintoward="top"),
            "margin": {"t": 4, "r": 4},
        }
        chart = Chart([heat], layout, 215, f"Probability a {unit} of moving from cluster to cluster, {n}")
        out.append(
            f'<div><p class="who"><span class="swatch" style="--c:var(--{n})"></span>{n}</p>{plot(section, chart)}</div>'
        )
    caption = (
        "Probability that a step leads from one cluster to another, averaged over the states of the first; of the student: that a hop does. "
        "Empty cells are never taken."
    )
    scale = f'<p class="scale"><span>10<sup>{low:.0f}</sup></span><i></i>1</p>'
    return f'<h3>Cluster to cluster</h3><div class="maps">{"".join(out)}</div>{scale}<p class="caption">{caption}</p>'


def _hard_table(m: Material) -> str:
    models = _state_models(m)
    rows = []
    for kind, edges in m.picture.kinds.items():
        for x, y in edges:
            place = f"{cluster(m.graph.clusters[x])} → {cluster(m.graph.clusters[y])}"
            told = "" if m.found is None else kind
            p = [number(float(m.subjects[n].kernel[x, y])) for n in models]
            rows.append([escape(m.graph.name(x)), escape(m.graph.name(y)), place, told, *p])
    rows.sort(key=lambda row: (row[3] == "found", row[2]))
    cut = f"The first {_MOST_LISTED:,} of {len(rows):,}." if len(rows) > _MOST_LISTED else ""
    body = table(["from", "to", "clusters", "search", *models], rows[:_MOST_LISTED], cut, text_columns=4)
    return f'<details class="long"><summary>All hard steps as a table</summary>{body}</details>'

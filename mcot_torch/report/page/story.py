"""The report of one run: from base chain to student, in six questions, seven where hard steps compute.

Here the head of the page and the first three. Every sentence is computed from this run's numbers; a stage that has not run
leaves a question open and says so.
"""

from __future__ import annotations

import numpy as np

from mcot_torch.evaluation.models import ordered, title
from mcot_torch.evaluation.rows import expected_time
from mcot_torch.report.figures import empirical_survival, stairs
from mcot_torch.report.page.charts import Chart, colour, line, log_axis, numbers, plain_axis, thinned
from mcot_torch.report.page.costs import chain_section, cost_section, student_section
from mcot_torch.report.page.kernels import kernel_section
from mcot_torch.report.page.material import Material
from mcot_torch.report.page.page import Section, page, plot, table
from mcot_torch.report.page.picture import SIZE
from mcot_torch.report.page.values import value_section
from mcot_torch.report.text import amount, escape, interval, not_yet, number, plural, typeset

__all__ = ["report_page"]


def report_page(m: Material) -> str:
    """The whole page."""
    sections = [hard_steps(m), kernel_section(m), times(m), cost_section(m), student_section(m)]
    sections += [value_section(m)] if "logic" in m.result else []
    last, player = chain_section(m)
    return page(f"{m.name}: from base chain to student", _header(m), [*sections, last], _footer(m), {"player": player})


# ---- head and foot ----------------------------------------------------------------------------------------------


def _header(m: Material) -> str:
    graph, rows = m.graph, m.rows
    base = expected_time(rows["base"])
    rungs = []
    for entry in ordered(rows):
        model, row = entry.name, rows[entry.name]
        if not entry.own_weights and "tuned" in rows:  # guidance is in the weights by then
            continue
        faster = f"ε = {number(graph.epsilon)}" if model == "base" else _faster(row["speedup"])
        if row.get("lifted_steps") is not None:
            faster = f"lifted: {number(row['lifted_steps'])} steps, {_faster(row['lifted_speedup'])}"
        value = f"{number(expected_time(row))} <small>{row['unit']}</small>"
        rungs.append(
            f'<li style="--c:var(--{model})"><span class="who">{_capital(entry.title)}</span><b>{value}</b>'
            f"<span>{faster}</span></li>"
        )
    competing = [entry.name for entry in ordered(rows) if entry.unit == "steps" and entry.competes]
    best = min(competing, key=lambda n: expected_time(rows[n]))
    lede = (
        f"From {typeset(m.task.description).replace(' → ', ' to the ' if 'entry' in m.task.description else ' to ')} "
        f"a chain of thought on this graph takes {number(base)} steps on average. "
    )
    if "student" in rows and rows["student"].get("lifted_steps") is not None:
        lede += (
            f"After search, reinforcement learning and distillation a student thinks it through in "
            f"{number(expected_time(rows['student']))} hops, which lift to {number(rows['student']['lifted_steps'])} steps."
        )
    elif expected_time(rows[best]) < 0.9 * base:
        lede += f"So far the {title(best)} needs {number(expected_time(rows[best]))}."
    else:
        lede += "So far only the chain itself has been learned."
    where = f"{graph.n_states:,} states in {plural(graph.n_clusters, 'cluster')}, seed {m.seed}"
    return (
        f'<p class="eyebrow">{escape(m.name)} · {where}</p><h1>From base chain to student</h1>'
        f'<p class="lede">{lede}</p><ul class="ladder">{"".join(rungs)}</ul>'
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _faster(speedup: float | None) -> str:
    if speedup is None:
        return "never arrives"
    return "as fast as the base chain" if 0.95 < speedup < 1.05 else f"{number(speedup)} times as fast"


def _footer(m: Material) -> str:
    versions = ", ".join(f"{escape(k)} {escape(v)}" for k, v in m.result["versions"].items())
    walks = m.result["evaluation"]
    return (
        f"<p>Exact values are solved from each model's kernel; sampled ones are means of {walks['walks']:,} walks with "
        f"95 % intervals (evaluation seed {walks['seed']}). Theory: Kim, Wu, Lee and Suzuki, <i>Metastable Dynamics of "
        f"Chain-of-Thought Reasoning</i>, ICML 2025.</p><p>{versions}</p>"
        f'<details class="long"><summary>Configuration of this run</summary><pre>{escape(m.configuration)}</pre></details>'
    )


# ---- 1: hard steps ----------------------------------------------------------------------------------------------


def hard_steps(m: Material) -> Section:
    """Where are the hard steps, and did search find them?"""
    graph, kinds = m.graph, m.picture.kinds
    n, edges = int(graph.hard.sum()), graph.n_edges
    p = graph.probabilities[graph.hard]
    low, high = number(float(p.min())), number(float(p.max()))
    rare = f"{low}" if low == high else f"{low} to {high}"
    answer = f"{n:,} of the graph's {edges:,} steps are hard: they alone lead from cluster to cluster, each taken with probability {rare}. "
    if m.found is None:
        answer += not_yet("search")
    else:
        took = m.result["transitions"]["search"]
        found, missed, false = (len(kinds[k]) for k in ("found", "missed", "false"))
        verdict = "found all of them" if not missed else f"found {found:,} and missed {missed:,}"
        if false:
            verdict += f", and took {plural(false, 'easy step')} for {'a ' if false == 1 else ''}hard {'one' if false == 1 else 'ones'}"
        else:
            verdict += ", and took no easy step for a hard one" if missed else " and nothing else"
        answer += f"Search {verdict}, in {amount(took)} steps of the model's own walks."
    marks = [("found", "hard step, found" if m.found is not None else "hard step")]
    marks += [(k, t) for k, t in (("missed", "hard step, missed"), ("false", "easy step taken for hard")) if kinds[k]]
    key = "".join(
        f'<li><svg class="arrow {k}" viewBox="0 0 22 12"><path class="line" stroke-width="2" d="M0 6H16"/>'
        f'<path class="tip" d="M22 6L15 2.5V9.5Z"/></svg>{text}</li>'
        for k, text in marks
    )
    if m.picture.with_states and (graph.entries >= 0).any():
        key += '<li><svg viewBox="0 0 22 12"><circle class="state entry" cx="11" cy="6" r="5"/></svg>entry of a cluster</li>'
    key += '<li><svg viewBox="0 0 22 12"><circle class="blob start" cx="11" cy="6" r="6"/></svg>start</li>'
    key += '<li><svg viewBox="-11 -6 22 12"><path class="target" d="M0 -7L1.9 -2.2L7 -2.2L2.9 1.1L4.4 6L0 3.1L-4.4 6L-2.9 1.1L-7 -2.2L-1.9 -2.2Z"/></svg>target</li>'
    what = (
        '<span class="screen">Hover over a state or an arrow for its name and its probabilities.</span>'
        if m.picture.with_states
        else (
            f"{graph.n_states:,} states are too many to draw: a circle is a cluster, an arrow all hard steps between two"
            '<span class="screen">; hover for their numbers</span>.'
        )
    )
    drawing = (
        f'<ul class="key">{key}</ul><figure><svg class="graph" viewBox="0 0 {SIZE} {SIZE}" role="img" '
        f'aria-label="The state graph with its hard steps"><g id="drawing">{m.picture.svg()}</g></svg>'
        f"<figcaption>{what}</figcaption></figure>"
    )
    return Section("hard-steps", "Where are the hard steps, and did search find them?", answer, drawing)


# ---- 3: times ---------------------------------------------------------------------------------------------------


def times(m: Material) -> Section:
    """How long does each model take?"""
    rows = m.rows
    base = expected_time(rows["base"])
    last = [entry.name for entry in ordered(rows) if entry.unit == "steps" and entry.stage is not None][-1]
    answer = (
        f"The base chain needs {number(base)} steps on average and the {title(last)} {number(expected_time(rows[last]))}"
        + _fewer(rows[last]["speedup"])
    )
    if "student" in rows:
        answer += f"; the student needs {number(expected_time(rows['student']))} hops"
    checked = [
        r["hitting_time_sampled"]
        for r in rows.values()
        if r["hitting_time_sampled"]["restricted_mean_exact"] is not None
    ]
    inside = sum(s["low"] <= s["restricted_mean_exact"] <= s["high"] for s in checked)
    if checked:
        answer += f". {inside} of {len(checked)} sampled 95 % intervals cover the exact value"
    section = Section("times", "How long does each model take?", answer + ".")
    data, latest = [], 10.0
    for n, curve in m.curves.items():
        unit = curve["unit"]
        legend = n if unit == "steps" else f"{n} (hops)"
        t, alive, half = empirical_survival(curve["sampled"], curve["horizon"])
        keep = thinned(len(t), 160)
        keep = keep[t[keep] >= 1]
        latest = max(latest, float(t[-1]))
        band = numbers(np.maximum(t[keep], 1))
        bounds = {
            "type": "scatter",
            "mode": "lines",
            "line": {"width": 0, "shape": "hv"},
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": n,
        }
        data.append({**bounds, "x": band, "y": numbers(np.minimum(alive[keep] + half, 1))})
        data.append(
            {
                **bounds,
                "x": band,
                "y": numbers(np.maximum(alive[keep] - half, 0)),
                "fill": "tonexty",
                "fillcolor": colour(n, 0.2),
            }
        )
        told = f"{n}<br>t = %{{x:,.0f}} {unit}<br>%{{y:.1%}} still on their way<extra></extra>"
        if curve["exact"] is not None:
            times_shown = curve["times"] >= 1
            data.append(
                line(
                    *stairs(curve["times"][times_shown].astype(float), curve["exact"][times_shown]),
                    legend,
                    colour(n),
                    2.5,
                    legendgroup=n,
                    hovertemplate=told,
                )
            )
        data.append(
            line(np.maximum(t[keep], 1), alive[keep], legend, "@ink", 1.0, legendgroup=n, hovertemplate=told,
                 showlegend=curve["exact"] is None, style={"shape": "hv"})
        )  # fmt: skip
    layout = {
        "xaxis": log_axis("t, steps (of the student: hops)", [1.0, latest], 0.03),
        "yaxis": plain_axis("target not yet reached", tickformat=".0%", range=[0, 1.02], dtick=0.25),
    }
    chart = Chart(data, layout, 400, "Survival curves of all models, exact and sampled")
    section.body = plot(
        section,
        chart,
        "Share of chains of thought that are still on their way after t. Coloured: exact. Thin: sampled, with its 95 % band.",
    ) + _times_table(m)
    return section


def _fewer(speedup: float | None) -> str:
    if speedup is None or 0.95 < speedup < 1.05:
        return ""
    return f", {number(speedup)} times fewer" if speedup > 1 else f", {number(1 / speedup)} times as many"


def _times_table(m: Material) -> str:
    out = []
    averaged = False
    for n, row in m.rows.items():
        mean = row["hitting_time_context_averaged"]
        averaged |= mean is not None
        exact = f"{number(mean)}*" if mean is not None else number(row["hitting_time_exact"])
        sampled = row["hitting_time_sampled"]
        cut = f" ({sampled['censored']:,} given up)" if sampled["censored"] else ""
        parameters = "–" if row["parameters"] is None else f"{row['parameters']:,}"
        swatch = f'<span class="swatch" style="--c:var(--{n})"></span>{title(n)}'
        out.append(
            [swatch, row["unit"], exact, number(row["hitting_time_exact_raw"]), interval(sampled["mean"], sampled["high"]) + cut,
             f"{number(row['speedup'])}×", parameters]
        )  # fmt: skip
        if row.get("lifted_steps") is not None:
            length = interval(row["lifted_steps"], row["lifted_steps_high"])
            swatch = '<span class="swatch" style="--c:var(--student)"></span>its paths, lifted'
            out.append([swatch, "steps", "–", "–", length, f"{number(row['lifted_speedup'])}×", "–"])
    caption = "Raw: before the cut, where a softmax leaks a little probability to impossible steps that are short cuts."
    if averaged:
        caption += " *: of predictions averaged over contexts, since the model reads history."
    return table(["model", "unit", "exact", "raw", "sampled", "speed-up", "parameters"], out, caption, text_columns=2)

"""The last three questions of a run's report: what the gains cost, teacher beside student, a chain of thought played."""

from __future__ import annotations

from typing import Any

import numpy as np

from mcot_torch.evaluation.models import made_by, ordered, title
from mcot_torch.evaluation.rows import expected_time
from mcot_torch.evaluation.statistics import wilson_interval
from mcot_torch.report.page.charts import Chart, colour, line, log_axis, numbers, plain_axis
from mcot_torch.report.page.material import Material, StageCost
from mcot_torch.report.page.page import Section, plot, table
from mcot_torch.report.page.picture import SIZE
from mcot_torch.report.page.sampling import Routes, Thought, chain_of_thought, frames, lifted_thought, sample_routes
from mcot_torch.report.text import amount, cluster, not_yet, number, plural, seconds

__all__ = ["chain_section", "cost_section", "student_section"]

_ROUTES = 1000  # walks of teacher and student
_SHOWN_ROUTES = 10
_MOST_STEPS = 300_000  # of a chain of thought from a table: seconds at the worst
_MOST_READ = 4_000  # of one whose model reads history
_LIFTED = "lifted path"
_STUDENT = made_by("distill").name

# ---- 4: costs ---------------------------------------------------------------------------------------------------


def cost_section(m: Material) -> Section:
    """What did each gain cost?"""
    base = expected_time(m.rows["base"])
    by_stage = {c.stage: c for c in m.costs}
    parts = []
    if "search" in by_stage and by_stage["search"].transitions:
        c = by_stage["search"]
        solves = c.transitions / base if c.transitions else 0
        parts.append(
            f"search made the model {number(base / c.after) if c.after else '–'} times as fast for {amount(c.transitions)} steps, "
            f"the price of {plural(round(solves), 'unaided solve')}, in {seconds(c.seconds)}"
        )
    if "ppo" in by_stage:
        c = by_stage["ppo"]
        took = f"{amount(c.transitions)} steps" if c.transitions else "no sampling"
        parts.append(f"PPO {_kept(base, by_stage['search'].after, c.after)} for {took} in {seconds(c.seconds)}")
    if "distill" in by_stage and by_stage["distill"].after:
        c = by_stage["distill"]
        parts.append(
            f"distillation brought a path to {number(c.after)} steps for {amount(c.transitions)}, in {seconds(c.seconds)}"
        )
    if not parts:
        c = by_stage["pretrain"]
        parts.append(
            f"pretraining read {amount(c.transitions)} sampled steps in {seconds(c.seconds)} and gains no speed: it learns the chain as it is"
        )
    answer = "; ".join(parts)
    section = Section("costs", "What did each gain cost?", answer[0].upper() + answer[1:] + ".")
    section.body = f'<div class="pair">{_sampled_chart(m, section)}{_seconds_chart(m, section)}</div>' + _cost_table(m)
    return section


def _kept(base: float, guided: float | None, tuned: float | None) -> str:
    """What PPO made of the speed of the guided model."""
    if not guided or not tuned or guided > base / 1.05 or tuned < 1.25 * guided:
        return "put that into the weights"
    if tuned < base / 1.05:
        return f"put part of that into the weights ({number(base / tuned)} times as fast)"
    return f"has not put that into the weights yet (still {number(tuned)} steps)"


def _sampled_chart(m: Material, section: Section) -> str:
    shown = [c for c in m.costs if c.transitions and c.after]
    data = [
        _stage_point(c, c.transitions or 0.0, c.after or 0.0, ("top", "bottom")[i % 2]) for i, c in enumerate(shown)
    ]
    xaxis = log_axis("steps sampled in the stage", [c.transitions or 1.0 for c in shown] or [1.0], 0.6)
    chart = Chart(
        data,
        _time_layout(m, xaxis),
        340,
        "Steps sampled in each stage against the expected steps to the target after it",
    )
    return plot(section, chart)


def _seconds_chart(m: Material, section: Section) -> str:
    timed = [c for c in m.costs if c.seconds is not None]
    ends = np.cumsum([c.seconds for c in timed])
    values = [expected_time(m.rows["base"])]
    for c in timed:
        values.append(c.after if c.after else values[-1])
    x = np.repeat(np.concatenate([[0.0], ends]), 2)[1:]
    y = np.repeat(values, 2)[:-1]
    data = [line(x, y, "", "@rule", 1.5, hoverinfo="skip", showlegend=False)]
    for i, (c, end, value) in enumerate(zip(timed, ends, values[1:], strict=True)):
        data.append(_stage_point(c, end, value, ("top", "bottom")[i % 2]))
    xaxis = plain_axis("seconds of training", range=[0, 1.15 * float(ends[-1])] if len(ends) else None)
    return plot(
        section,
        Chart(data, _time_layout(m, xaxis), 340, "Seconds of training against the expected steps to the target"),
    )


def _stage_point(c: StageCost, x: float, y: float, side: str) -> dict[str, Any]:
    told = [f"{amount(c.transitions)} steps sampled", seconds(c.seconds), f"then {number(c.after)} steps to the target"]
    return {
        "type": "scatter", "mode": "markers+text", "x": numbers([x]), "y": numbers([y]), "showlegend": False,
        "text": [c.stage], "textposition": f"{side} center", "cliponaxis": False,
        "hovertemplate": f"{c.stage}<br>{'<br>'.join(told)}<extra></extra>",
        "marker": {"size": 12, "color": colour(c.model)},
    }  # fmt: skip


def _time_layout(m: Material, xaxis: dict[str, Any]) -> dict[str, Any]:
    values = [expected_time(m.rows["base"]), *(c.after for c in m.costs if c.after)]
    return {"xaxis": xaxis, "yaxis": log_axis("expected steps to the target", values, 0.35)}


def _cost_table(m: Material) -> str:
    before, rows = expected_time(m.rows["base"]), []
    for c in m.costs:
        gain = "–" if not c.after else f"{number(before / c.after)}×"
        rows.append(
            [c.stage, title(c.model), amount(c.transitions), seconds(c.seconds), number(before), number(c.after), gain]
        )
        before = c.after or before
    caption = (
        "Expected steps to the target before and after each stage; of the student, those of its lifted paths. Distillation walks some "
        "more to label the states, which is not counted."
    )
    head = ["stage", "gives", "steps sampled", "time", "before", "after", "gain"]
    return table(head, rows, caption, text_columns=2)


# ---- 5: teacher and student -------------------------------------------------------------------------------------


def student_section(m: Material) -> Section:
    """Does the student think like its teacher?"""
    section = Section("student", "Does the student think like its teacher?", "")
    if m.models.student is None:
        section.answer = not_yet("distill")
        return section
    teacher, student = m.rows[m.teacher], m.rows[_STUDENT]
    most = round(6 * max(100.0, expected_time(teacher)))
    ours = sample_routes(m.subjects[_STUDENT], m.student_clusters, m.seed, _ROUTES, most)
    theirs = sample_routes(m.subjects[m.teacher], m.graph.clusters, m.seed, _ROUTES, min(most, 50_000))
    compared = theirs.n >= _ROUTES // 2 and ours.n >= _ROUTES // 2
    section.answer = (
        f"It hops {number(expected_time(student))} times where its teacher takes {number(expected_time(teacher))} steps"
        + (f", with {number(student['parameters'])} parameters instead of {number(teacher['parameters'])}")
    )
    if student["lifted_valid"] is not None:
        section.answer += f"; {student['lifted_valid']:.0%} of its lifted paths are valid"
    if compared:
        section.answer += (
            f", and its routes are as diverse: {number(ours.effective)} effective ones, the teacher's {number(theirs.effective)}"
            if abs(np.log(ours.effective / theirs.effective)) < 0.15
            else f"; its routes are {'more' if ours.effective > theirs.effective else 'less'} diverse: {number(ours.effective)} "
            f"effective ones, the teacher's {number(theirs.effective)}"
        )
    section.answer += "."
    section.body = _beside(m, ours, theirs if compared else None)
    if compared:
        section.body += _routes_chart(m, section, ours, theirs)
    return section


def _beside(m: Material, ours: Routes, theirs: Routes | None) -> str:
    teacher, student = m.rows[m.teacher], m.rows[_STUDENT]

    def answers(row: dict[str, Any]) -> str:
        return number(row["steps_per_second"] / max(1e-9, expected_time(row)))

    lifted = student.get("lifted_steps")
    rows = [
        ["thinks in", f"{m.graph.n_states:,} states", f"{student['n_clusters']:,} clusters"],
        ["to the target", f"{number(expected_time(teacher))} steps", f"{number(expected_time(student))} hops"],
        ["as a path of states", f"{number(expected_time(teacher))} steps", f"{number(lifted)} steps"],
        ["valid paths", "–", f"{student['lifted_valid']:.0%}"],
        ["parameters", number(teacher["parameters"]), number(student["parameters"])],
        ["chains of thought a second", answers(teacher), answers(student)],
        ["states with the wrong cluster", "–", f"{student['mislabelled_states']:,}"],
    ]
    if theirs is not None:
        rows.insert(
            4,
            [
                "different routes",
                f"{len(theirs.counts):,} in {theirs.n:,}",
                f"{len(ours.counts):,} in {ours.n:,}",
            ],
        )
        rows.insert(5, ["effective routes", number(theirs.effective), number(ours.effective)])
    caption = f"Chains of thought a second: of {m.result['evaluation']['walks']:,} sampled together on this machine."
    if theirs is not None:
        caption = (
            "A route is the sequence of clusters with loops erased; the number of effective routes is the exponential of their "
            f"entropy. {caption}"
        )
    return table(["", f"teacher ({m.teacher})", "student"], rows, caption)


def _routes_chart(m: Material, section: Section, ours: Routes, theirs: Routes) -> str:
    both = ours.counts + theirs.counts
    top = [route for route, _ in sorted(both.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN_ROUTES]]

    def label(route: tuple[int, ...]) -> str:
        shown = route if len(route) <= 7 else (*route[:3], -1, *route[-3:])
        return "→".join("…" if k < 0 else str(k) for k in shown)

    labels = [f"<span>{label(route)}</span>" for route in top]
    places = np.arange(len(top))
    data = []
    for name, routes, shift in ((m.teacher, theirs, -0.14), (_STUDENT, ours, 0.14)):
        p = np.array([routes.share(route) for route in top])
        low, high = wilson_interval(p, routes.n)
        told = [f"{name}<br>{'→'.join(cluster(k) for k in route)}" for route in top]
        data.append(
            {"type": "scatter", "mode": "markers", "x": numbers(p), "y": numbers(places + shift), "text": told,
             "name": f"teacher ({name})" if name != _STUDENT else name,
             "hovertemplate": "%{text}<br>%{x:.1%} of walks<extra></extra>", "marker": {"size": 9, "color": colour(name)},
             "error_x": {"type": "data", "symmetric": False, "array": numbers(high - p), "arrayminus": numbers(p - low),
                         "color": colour(name), "thickness": 2, "width": 0}}
        )  # fmt: skip
    layout = {
        "xaxis": plain_axis("share of walks, 95 % interval", tickformat=".0%", rangemode="tozero"),
        "yaxis": {
            "tickvals": places.tolist(),
            "ticktext": labels,
            "range": [len(top) - 0.4, -0.6],
            "ticks": "",
            "tickfont": {"size": 12},
        },
    }
    rest = 1 - sum(ours.share(route) for route in top)
    chart = Chart(data, layout, 90 + 30 * len(top), "The routes that teacher and student take most")
    note = (
        f"The {len(top)} routes taken most, by the numbers of their clusters; {rest:.0%} of the student's walks take another."
        if rest > 0.005
        else ("All routes, by the numbers of their clusters.")
    )
    if theirs.given_up or ours.given_up:
        note += (
            f" Left out: {plural(theirs.given_up + ours.given_up, 'walk')} still on the way after six times the mean."
        )
    return "<h3>The routes they take</h3>" + plot(section, chart, note)


# ---- 6: a chain of thought --------------------------------------------------------------------------------------


def chain_section(m: Material) -> tuple[Section, dict[str, Any]]:
    """What does a chain of thought look like? The section and the player's data."""
    thoughts = _thoughts(m)
    told = [
        f"the {label} {'takes' if t.arrived else 'was given up after'} {plural(t.length, unit)}"
        for label, unit, t, _ in thoughts
        if label != _LIFTED
    ]
    answer = f"Here {', '.join(told[:-1])} and {told[-1]}"
    if thoughts[-1][0] == _LIFTED:
        answer += f", which lift to {plural(thoughts[-1][2].length, 'step')}"
    median = (
        'Each is the one of median length among nine<span class="screen">; press play, or take it step by step</span>.'
    )
    picture, labels = m.picture, m.graph.clusters
    used: set[int] = set()
    entries = []
    for label, unit, thought, tone in thoughts:
        level = "cluster" if unit == "hop" else "state"
        own = np.arange(m.graph.n_clusters) if level == "cluster" else labels
        shown = frames(thought.states, own)
        at = thought.states[shown]
        used |= set(at.tolist()) if level == "state" else set()
        cut = len(shown) < len(thought.states)
        note = (
            f"Shown: {len(shown):,} of them, every change of cluster from near and an even sample of the rest."
            if cut
            else ""
        )
        entries.append(
            {"label": label, "unit": unit, "level": level, "colour": tone, "arrived": thought.arrived, "note": note,
             "times": shown.tolist(), "at": at.tolist()}
        )  # fmt: skip
    spots = np.round(picture.spots, 1)
    data = {
        "thoughts": entries,
        "states": {str(x): [*spots[x].tolist(), int(labels[x]), m.graph.name(x)] for x in sorted(used)},
        "clusters": np.round(picture.centres, 1).tolist(),
        "radius": round(picture.radius, 1),
        "dot": round(picture.dot, 1),
    }
    tabs = "".join(
        f'<button type="button" role="radio" aria-checked="false" style="--c:var(--{e["colour"]})">{e["label"][0].upper() + e["label"][1:]}</button>'
        for e in entries
    )
    lane = 26 + min(150, max(60, 14 * m.graph.n_clusters))
    speeds = "".join(f'<option value="{v}"{" selected" if v == 1 else ""}>{v}×</option>' for v in (0.25, 1, 4))
    body = f"""<div class="player" id="player"><div class="tabs" role="radiogroup" aria-label="Model">{tabs}</div>
<svg class="graph" viewBox="0 0 {SIZE} {SIZE}" aria-hidden="true"><use href="#drawing"/>
<circle class="cell"/><polyline class="trail"/><circle class="here" r="8"/></svg>
<div class="controls"><button type="button" class="back" aria-label="One step back">‹</button>
<button type="button" class="play">Play</button><button type="button" class="forth" aria-label="One step on">›</button>
<input type="range" min="0" value="0" aria-label="Step"><select class="speed" aria-label="Speed">{speeds}</select></div>
<p class="now" aria-live="off"></p><svg class="lane" viewBox="0 0 {SIZE} {lane}" aria-hidden="true"></svg>
<figcaption>Below: the cluster it is in, over time. {median}</figcaption></div>"""
    section = Section("chain-of-thought", "What does one chain of thought look like?", f"{answer}.", body)
    return section, data


def _thoughts(m: Material) -> list[tuple[str, str, Thought, str]]:
    """(label, unit, chain of thought, colour) of what can be played."""
    out: list[tuple[str, str, Thought, str]] = []
    latest = [entry.name for entry in ordered(m.subjects) if entry.unit == "steps" and entry.stage is not None][-1]
    for n in ("base", latest):
        most = _MOST_STEPS if n == "base" or m.subjects[n].exact else _MOST_READ
        most = min(
            most, round(4 * max(100.0, expected_time(m.rows[n])))
        )  # the median is beyond once in millions of runs
        tone = "ink" if n == "base" else n
        out.append((title(n), "step", chain_of_thought(m.subjects[n], m.seed, most), tone))
    teacher = m.teacher_model
    if m.models.student is not None and teacher is not None and m.models.prm is not None:
        lifted = lifted_thought(m.models.student, teacher, m.models.prm, m.task, m.seed)
        if lifted is not None:
            inside = m.student_clusters[m.models.student.labels.cpu().numpy()[lifted.states]]
            hops = inside[np.concatenate([[True], inside[1:] != inside[:-1]])]
            out.append(("student", "hop", Thought(hops, True), "student"))
            out.append((_LIFTED, "step", lifted, "student"))
    return out

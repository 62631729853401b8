"""report.html without a browser: what it says is what was measured, names are text, large graphs stay small."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from mcot_torch.evaluation.models import MODELS
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.task import TaskConfig, build_task
from mcot_torch.report.figures import model_colour
from mcot_torch.report.page import page as shell
from mcot_torch.report.page import picture
from mcot_torch.report.page.charts import log_axis
from mcot_torch.report.page.picture import Picture
from mcot_torch.report.page.story import report_page
from mcot_torch.report.text import amount, number, typeset

HOSTILE = "<script>window.pwned=1</script>"
QUESTIONS = ["hard-steps", "kernel", "times", "costs", "student", "chain-of-thought"]


class Reader(HTMLParser):
    """Tags that were opened, and the text of the answers."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.answers, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "p" and dict(attrs).get("class") == "answer":
            self.answers.append("")
            self._inside = True

    def handle_endtag(self, tag):
        if tag == "p":
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.answers[-1] += data


def without_plotly(text):
    """The page without the library that it carries."""
    scripts = re.findall(r"<script>.*?</script>", text, flags=re.DOTALL)
    return text.replace(max(scripts, key=len), "")


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def graph():
    return clustered_graph(5, 8, 0.01, seed=2)


@pytest.fixture(scope="module")
def whole(material, graph):
    """A run whose search missed one hard step and took one easy step for hard."""
    easy = np.argwhere((graph.kernel() > 0) & (graph.clusters[:, None] == graph.clusters[None]))
    easy = easy[easy[:, 0] != easy[:, 1]][:1]
    found = np.concatenate([graph.sparse_edges[1:], easy])
    m = material(graph, stages=("pretrain", "search", "ppo"), found=found)
    return m, report_page(m), easy[0]


def test_answers_tell_what_was_measured(material, graph):
    m = material(graph)
    answers = Reader(without_plotly(report_page(m))).answers[-6:]
    rows, n = m.rows, int(graph.hard.sum())
    assert f"{n} of the graph's {graph.n_edges} steps are hard" in answers[0]
    assert "found all of them and nothing else, in 1.23 million steps" in answers[0]
    assert f"to {number(m.problem.scales.epsilon_max)} (" in answers[1]
    assert f"base chain needs {number(rows['base']['hitting_time_exact'])} steps" in answers[2]
    assert f"{number(rows['student']['hitting_time_exact'])} hops" in answers[2]
    solves = round(1_234_567 / rows["base"]["hitting_time_exact"])
    assert f"the price of {number(solves)} unaided solves" in answers[3]
    assert f"with {m.graph.n_clusters**2} parameters instead of {graph.n_states**2:,}" in answers[4]
    assert "100% of its lifted paths are valid" in answers[4]
    assert re.match(
        r"Here the base chain takes [\d,]+ steps, the tuned model takes [\d,]+ steps and the student takes", answers[5]
    )


def test_a_run_that_gains_nothing_is_told_as_it_is(material, graph):
    """PPO too short, a hard step cut in pretraining: no "0.5 times fewer", and 0 has a place on a logarithmic axis."""
    m = material(graph, stages=("pretrain", "search", "ppo"))
    base, (x, y) = m.rows["base"]["hitting_time_exact"], graph.sparse_edges[0]
    m.rows["tuned"] |= {"hitting_time_exact": 2 * base, "speedup": 0.5}
    for name in ("pretrained", "tuned"):
        m.subjects[name] = replace(m.subjects[name], kernel=m.subjects[name].kernel.copy())
        m.subjects[name].kernel[x, y] = 0.0
    text = report_page(m)
    answers = Reader(without_plotly(text)).answers[-6:]
    assert f"and the tuned model {number(2 * base)}, 2 times as many" in answers[2]
    assert f"PPO has not put that into the weights yet (still {number(2 * base)} steps)" in answers[3]
    chart = data_of(text)["charts"]["kernel-1"]
    tuned = next(trace for trace in chart["data"] if trace.get("name") == "tuned")
    axis = chart["layout"]["yaxis"]
    assert axis["ticktext"][0] == "0"
    lowest = min(p for trace in chart["data"] if trace.get("name") == "base" for p in trace["y"])
    assert axis["tickvals"][0] == min(tuned["y"]) == pytest.approx(lowest / 10, rel=1e-4)
    assert 10 ** axis["range"][0] < axis["tickvals"][0]
    assert tuned["text"][int(np.argmin(tuned["y"]))].endswith("<br>base 0.01<br>pretrained 0<br>tuned 0")
    assert "At 0: cut in pretraining" in text
    assert m.rows["guided"]["hitting_time_exact"] < base / 1.6
    m.rows["tuned"] |= {"hitting_time_exact": base / 1.2, "speedup": 1.2}
    assert "PPO put part of that into the weights (1.2 times as fast)" in report_page(replace(m))  # its costs anew


def test_missed_and_false_steps_are_drawn_and_counted(whole, graph):
    _, text, easy = whole
    arrows = [
        attrs for tag, attrs in Reader(without_plotly(text)).tags if tag == "g" and "arrow" in attrs.get("class", "")
    ]
    kinds = [attrs["class"] for attrs in arrows]
    n = int(graph.hard.sum())
    assert kinds.count("arrow found") == n - 1
    assert kinds.count("arrow missed") == kinds.count("arrow false") == 1
    x, y = graph.sparse_edges[0]
    missed = next(a["data-t"] for a in arrows if a["class"] == "arrow missed")
    assert missed.startswith(f"{x} → {y}  (C_{graph.clusters[x]} → C_{graph.clusters[y]})\nhard step, missed")
    assert f"base {number(0.01)}" in missed
    false = next(a["data-t"] for a in arrows if a["class"] == "arrow false")
    assert false.startswith(f"{easy[0]} → {easy[1]} ")
    assert f"found {n - 1} and missed 1, and took 1 easy step for a hard one" in text


def test_charts_carry_the_numbers(whole):
    m, text, easy = whole
    charts = data_of(text)["charts"]
    hard = {trace["name"]: trace["y"] for trace in charts["kernel-1"]["data"] if trace.get("mode") == "markers"}
    edges = np.concatenate([m.graph.sparse_edges, easy[None]])
    for name in ("base", "pretrained", "tuned"):
        assert sorted(hard[name]) == pytest.approx(sorted(m.subjects[name].kernel[edges[:, 0], edges[:, 1]]), rel=1e-4)
    exact = next(t for t in charts["times-1"]["data"] if t.get("name") == "base" and t["line"]["color"] == "@base")
    t, alive = np.array(exact["x"]), np.array(exact["y"])
    going = np.setdiff1d(np.arange(m.graph.n_states), m.task.target)
    stopped = m.graph.kernel()[np.ix_(going, going)]
    for s in (1, 10, 50):
        expected = (m.task.start[going] @ np.linalg.matrix_power(stopped, s)).sum()
        assert alive[np.flatnonzero(t == s)[-1]] == pytest.approx(expected, rel=1e-4)


def test_cluster_maps_by_an_independent_sum(whole):
    m, text, _ = whole
    z = np.array(data_of(text)["charts"]["kernel-3"]["data"][0]["z"], dtype=float)
    kernel, labels = m.graph.kernel(), m.graph.clusters
    for k in range(5):
        for j in range(5):
            p = np.mean([sum(kernel[x, y] for y in range(40) if labels[y] == j) for x in range(40) if labels[x] == k])
            assert (np.isnan(z[k, j]) and p == 0) or 10 ** z[k, j] == pytest.approx(p, rel=1e-4)


def test_names_are_text_everywhere(material, graph):
    names = [HOSTILE, "</script><b>", '" onmouseover="x', "a & b", "<img src=x onerror=alert(1)>", "C_3"]
    m = material(replace(graph, names=(*names, *(f"s{i}" for i in range(graph.n_states - len(names))))))
    text = report_page(m)
    plain = without_plotly(text)
    assert HOSTILE not in plain
    assert "<img" not in plain
    assert plain.count("<script") == 2  # the data and the page's own; plotly was taken out
    tags = Reader(plain).tags
    assert not any("onmouseover" in attrs or "onerror" in attrs for _, attrs in tags)
    assert any(attrs.get("data-t", "").startswith(HOSTILE) for _, attrs in tags)
    everything = json.dumps(data_of(text)["charts"])
    assert "<script" not in everything  # plotly reads tags in its texts
    assert "<img" not in everything


@pytest.mark.parametrize(
    ("stages", "open_questions"),
    [
        (("pretrain",), {"search", "ppo", "distill"}),
        (("pretrain", "search"), {"ppo", "distill"}),
        (("pretrain", "search", "ppo"), {"distill"}),
    ],
)
def test_a_partial_run_says_what_is_missing(material, graph, stages, open_questions):
    text = without_plotly(report_page(material(graph, stages=stages)))
    assert [attrs["id"] for tag, attrs in Reader(text).tags if tag == "section"] == QUESTIONS
    assert set(re.findall(r"Not measured yet: (\w+) has not run", text)) == open_questions


def test_a_large_graph_is_drawn_as_clusters():
    graph = clustered_graph(60, 100, 0.002, seed=1)
    task = build_task(TaskConfig(), graph)
    drawing = Picture(graph, task, graph.sparse_edges[1:], {}).svg()
    assert len(drawing) < 300_000
    tags = Reader(drawing).tags
    classes = Counter(attrs.get("class") for _, attrs in tags)
    assert classes["state"] == classes["state entry"] == 0
    assert classes["blob"] + classes["blob start"] == 60
    pairs = {(graph.clusters[x], graph.clusters[y]) for x, y in graph.sparse_edges.tolist()}
    assert classes["arrow found"] + classes["arrow missed"] == len(pairs)
    assert classes["arrow missed"] == 1


def test_the_report_of_a_graph_drawn_as_clusters(material, graph, monkeypatch):
    monkeypatch.setattr(picture, "_MOST_STATES", 30)
    text = report_page(material(graph, stages=("pretrain", "search")))
    assert "40 states are too many to draw" in text
    assert not any("state" == attrs.get("class") for _, attrs in Reader(without_plotly(text)).tags)


def test_model_colours_are_those_of_the_figures():
    style = shell.style()
    for model in MODELS:
        assert re.search(rf"--{model}: light-dark\({model_colour(model)},", style, re.IGNORECASE), model


def test_text_helpers():
    assert [amount(v) for v in (950, 2_402_797, 10**9, None)] == ["950", "2.4 million", "1 billion", "–"]
    assert typeset("C_0 -> entry of C_12 (state <b>)") == "C<sub>0</sub> → entry of C<sub>12</sub> (state &lt;b&gt;)"
    assert log_axis("t", [1, 1e4])["ticktext"] == ["1", "10", "100", "1,000", "10,000"]
    assert log_axis("t", [2e-5, 6e-5])["ticktext"] == ["2·10<sup>-5</sup>", "5·10<sup>-5</sup>"]

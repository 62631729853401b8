"""Figures: valid and repeatable PNG files whose artists carry the data that went in."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy.sparse import csr_array

from mcot_torch.chains import pair_kernel, survival
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.puzzles import tower_of_hanoi
from mcot_torch.graphs.task import TaskConfig, build_task
from mcot_torch.report import figures

GRAPH = clustered_graph(4, 8, 0.01, seed=1)
SAMPLE = {"mean": 1010.0, "low": 950.0, "high": 1070.0, "n": 1000, "censored": 0, "horizon": 12000}
MODELS = {
    "base": {"unit": "steps", "hitting_time_exact": 1000.0, "hitting_time_sampled": SAMPLE},
    "pretrained": {"unit": "steps", "hitting_time_exact": 990.0, "hitting_time_exact_raw": 800.0},
    "guided": {"unit": "steps", "hitting_time_exact": None, "hitting_time_sampled": {**SAMPLE, "censored": 7}},
    "tuned": {"unit": "steps", "hitting_time_exact": None, "hitting_time_sampled": None},
    "student": {"unit": "hops", "hitting_time_exact": 5.25, "hitting_time_exact_raw": None, "lifted_steps": 77.0},
}
HISTORIES = {
    "pretrain": [
        {"step": 10, "loss": 3.0, "sup_error": 0.5, "hard_step_mean": 0.001},
        {"step": 20, "loss": 2.0, "sup_error": 0.1, "hard_step_mean": 0.002},
        {"step": 30, "loss": float("nan")},
    ],
    "search": [{"step": 1, "transitions": 5000, "edges": 3}, {"step": 2, "transitions": 10000, "edges": 9}],
    "ppo": [{"step": 1, "approx_kl": 1e-3, "hard_step_min": 0.002}, {"step": 2, "approx_kl": 0.0}],
    "distill": [{"step": 5, "loss": 1.0}, {"step": 10, "loss": 0.5}],
}


def pixels(path: Path) -> tuple[int, int, int]:
    """Width, height and the number of different rows of a PNG without metadata, decoded by hand."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, packed, kinds = 8, b"", set()
    width, height = struct.unpack(">II", data[16:24])
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        kinds.add(kind)
        if kind == b"IDAT":
            packed += data[at + 8 : at + 8 + size]
        at += size + 12
    assert b"tEXt" not in kinds
    raw = zlib.decompress(packed)
    stride = len(raw) // height
    return width, height, len({raw[i * stride : (i + 1) * stride] for i in range(height)})


def curves() -> dict[str, dict[str, object]]:
    task = build_task(TaskConfig(), GRAPH)
    times = np.arange(0, 2000, 7)
    exact = survival(GRAPH.to_scipy(), task.start, task.target, times)
    sampled = np.random.default_rng(0).geometric(1e-3, 200).astype(float)
    sampled[:5] = np.inf
    return {
        "base": {"times": times, "exact": exact, "sampled": sampled, "horizon": 3000, "unit": "steps"},
        "tuned": {"times": times, "exact": exact, "sampled": None},
        "student": {"sampled": np.array([3, 4, 5, 9]), "horizon": 60},
    }


def draw_all(folder: Path) -> list[Path]:
    task = build_task(TaskConfig(), GRAPH)
    kernels = {"a": GRAPH.kernel(), "b": GRAPH.kernel()}
    drawn = {
        "graph": figures.graph_figure(GRAPH, GRAPH.sparse_edges[1:], task),
        "bars": figures.hitting_time_figure(MODELS),
        "kernels": figures.kernel_figure(kernels, GRAPH.clusters),
        "survival": figures.survival_figure(curves()),
        "training": figures.training_figure(HISTORIES, 0.01, 0.05),
    }
    return [figures.save(figure, folder / f"{name}.png") for name, figure in drawn.items()]


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


def lines(figure: Figure, label: str) -> list[np.ndarray]:
    """(n, 2) points of every line so called."""
    return [line.get_xydata() for axes in figure.axes for line in axes.lines if line.get_label() == label]


def arrows(figure: Figure, label: str) -> list[LineCollection]:
    return [c for axes in figure.axes for c in axes.collections if c.get_label() == label]


def test_every_figure_is_a_png_and_the_same_bytes_twice(tmp_path):
    first, second = draw_all(tmp_path / "one"), draw_all(tmp_path / "two")
    for one, two in zip(first, second, strict=True):
        width, height, different = pixels(one)
        assert width == 1200
        assert height > 300
        assert different > 100
        assert one.read_bytes() == two.read_bytes()
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == sorted(p.name for p in first)  # no temporaries


def test_save_keeps_the_old_file_when_drawing_fails(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    figure = Figure()
    figure.text(0.5, 0.5, r"$\nonsense$")
    with pytest.raises(ValueError, match="nonsense"):
        figures.save(figure, path)
    assert path.read_bytes() == b"old"


# ---- graph ---------------------------------------------------------------------------------------------------------


def test_graph_counts_found_missed_and_false_steps():
    found = np.concatenate([GRAPH.sparse_edges[2:], [[0, 1]]])
    figure = figures.graph_figure(GRAPH, found)
    n = len(GRAPH.sparse_edges)
    assert len(arrows(figure, "hard step, found")[0].get_segments()) == n - 2
    assert len(arrows(figure, "hard step, missed")[0].get_segments()) == 2
    assert len(arrows(figure, "false: no hard step")[0].get_segments()) == 1
    assert f"hard step, found ({n - 2})" in texts(figure)


def test_graph_without_search_and_with_an_empty_one():
    n = len(GRAPH.sparse_edges)
    assert len(arrows(figures.graph_figure(GRAPH), "hard step")[0].get_segments()) == n
    nothing = figures.graph_figure(GRAPH, np.empty((0, 2), dtype=int))
    assert len(arrows(nothing, "hard step, missed")[0].get_segments()) == n


def test_meta_chain_widths_are_proportional_to_the_pair_kernel():
    graph = clustered_graph(4, 8, 0.01, weights=[1.0, 0.5, 0.25], seed=1)
    q = pair_kernel(graph.to_scipy(), graph.clusters, 4)
    np.fill_diagonal(q, 0)
    widths = np.array(arrows(figures.graph_figure(graph), "q°(l|k)")[0].get_linewidths())
    np.testing.assert_allclose(widths / widths.max(), q[q > 0] / q.max(), rtol=1e-12)


@pytest.mark.parametrize("cluster", ["random_regular", "complete", "cycle"])
def test_states_lie_apart_inside_their_blobs(cluster):
    graph = clustered_graph(5, 12, 0.01, cluster=cluster)
    figure = figures.graph_figure(graph)
    states = next(c for c in figure.axes[0].collections if len(c.get_offsets()) == graph.n_states)
    spots = np.asarray(states.get_offsets())
    centres, radius = figures.layout.ring(5)
    assert np.linalg.norm(spots - centres[graph.clusters], axis=1).max() < radius
    apart = np.linalg.norm(spots[:, None] - spots[None], axis=2) + 9 * np.eye(len(spots))
    assert apart.min() > 0.02 * radius


@pytest.mark.parametrize(("k", "m"), [(2, 4), (3, 2), (64, 128)])
def test_graph_sizes(k, m, tmp_path):
    graph = clustered_graph(k, m, 1e-4, [1], cluster="complete" if m < 5 else "random_regular")
    figure = figures.graph_figure(graph, graph.sparse_edges, build_task(TaskConfig(), graph))
    figures.save(figure, tmp_path / "g.png")
    assert ("Not drawn: 8,192 states" in texts(figure)) == (k == 64)


def test_names_of_small_graphs_stand_below_and_dollars_are_no_formulas(tmp_path):
    graph = tower_of_hanoi(3, 1)
    assert "ABC" in texts(figures.graph_figure(graph)).split("\n")  # short: in the states
    named = replace(graph, names=tuple(f"state $x_{i}" for i in range(graph.n_states)))
    task = build_task(TaskConfig("state:state $x_0", "states:state $x_20,state $x_26"), named)
    figure = figures.graph_figure(named, task=task)
    assert "26  state $x_26" in texts(figure).split("\n")
    figures.save(figure, tmp_path / "g.png")


def test_start_everywhere_marks_no_cluster():
    everywhere = figures.graph_figure(GRAPH, task=build_task(TaskConfig("uniform", "cluster:2"), GRAPH))
    labels = [t.get_text() for t in everywhere.legends[0].get_texts()]
    assert "start cluster" not in labels
    assert "target: any state of the cluster" in labels


# ---- hitting times -------------------------------------------------------------------------------------------------


def test_bars_end_at_the_exact_value_and_print_it():
    figure = figures.hitting_time_figure(MODELS)
    axes = figure.axes[0]
    assert [round(bar.get_x() + bar.get_width(), 9) for bar in axes.patches] == [1000.0, 990.0, 5.25, 77.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [*MODELS, "student, lifted"]
    shown = texts(figure)
    for text in (
        "1,000 steps",
        "990 steps",
        "5.25 hops",
        "77 steps",
        "1,010 steps (sampled)",
        "7 of 1,000 walks",
        "no value",
    ):
        assert text in shown
    assert "hops" in axes.get_xlabel()
    assert [float(line[0, 0]) for line in lines(figure, "raw")] == [800.0]


def test_error_bars_span_the_interval():
    axes = figures.hitting_time_figure({"base": MODELS["base"]}).axes[0]
    (segment,) = axes.containers[1].lines[2][0].get_segments()
    np.testing.assert_allclose(segment[:, 0], [950, 1070])
    assert "hops" not in axes.get_xlabel()


def test_a_model_that_reads_history_shows_its_averaged_chain():
    row = {
        "unit": "steps",
        "hitting_time_exact": None,
        "hitting_time_context_averaged": 640.0,
        "hitting_time_sampled": SAMPLE,
    }
    figure = figures.hitting_time_figure({"tuned": row})
    (bar,) = figure.axes[0].patches
    assert bar.get_x() + bar.get_width() == pytest.approx(640)
    assert "640 steps (averaged)" in texts(figure)


def test_lifted_steps_carry_their_interval():
    student = {**MODELS["student"], "lifted_steps_low": 70.0, "lifted_steps_high": 85.0}
    axes = figures.hitting_time_figure({"student": student}).axes[0]
    (segment,) = axes.containers[-1].lines[2][0].get_segments()
    np.testing.assert_allclose(segment[:, 0], [70, 85])
    assert "77 steps" in texts(axes.figure)


# ---- kernels -------------------------------------------------------------------------------------------------------


def test_kernel_cells_are_sorted_by_cluster_and_keep_every_hard_step():
    rng = np.random.default_rng(0)
    order = rng.permutation(GRAPH.n_states)
    kernel = GRAPH.kernel()[np.ix_(order, order)]
    cells = figures.kernel_figure({"a": kernel}, GRAPH.clusters[order]).axes[0].images[0].get_array()
    assert cells.shape == kernel.shape
    same = np.equal.outer(np.sort(GRAPH.clusters), np.sort(GRAPH.clusters))
    assert (~cells.mask & ~same).sum() == len(GRAPH.sparse_edges)
    np.testing.assert_allclose(cells[~same].compressed(), GRAPH.epsilon)


def test_large_kernels_are_pooled_by_their_maximum():
    n = 1000
    kernel = np.eye(n)
    kernel[3, 990] = 0.02
    kernel[700, 5] = 1e-12
    drawn = figures.kernel_figure({"a": kernel, "b": csr_array(kernel)}, np.arange(n) // 250)
    cells, sparse = (drawn.axes[i].images[0].get_array() for i in (0, 1))
    assert np.array_equal(cells.filled(0), sparse.filled(0))
    assert max(cells.shape) <= 320
    width = -(-n // len(cells)) if n % len(cells) else n // len(cells)
    assert cells[3 // width, 990 // width] == 0.02
    assert cells[700 // width, 5 // width] == pytest.approx(1e-6)  # the floor, not white
    assert cells.mask[0, -3]


def test_kernels_of_the_wrong_size_are_named():
    with pytest.raises(ValueError, match=r"'student' has shape \(4, 4\)"):
        figures.kernel_figure({"student": np.eye(4)}, GRAPH.clusters)


# ---- survival ------------------------------------------------------------------------------------------------------


def test_empirical_survival_by_hand():
    t, alive, half = figures.empirical_survival([2, 2, 5, np.nan, -1, 40], horizon=10)
    np.testing.assert_array_equal(t, [0, 2, 5, 10])
    np.testing.assert_allclose(alive, [1, 4 / 6, 3 / 6, 3 / 6])
    assert half == pytest.approx(np.sqrt(np.log(40) / 12))
    t, alive, _ = figures.empirical_survival([1, 3])
    np.testing.assert_allclose(alive, [1, 0.5, 0])
    np.testing.assert_array_equal(t, [0, 1, 3])


def test_survival_lines_are_the_exact_ones():
    data = curves()
    figure = figures.survival_figure(data)
    (line,) = lines(figure, "base")
    np.testing.assert_array_equal(line[:, 0], data["base"]["times"][1:])  # t = 0 has no logarithm
    np.testing.assert_array_equal(line[:, 1], data["base"]["exact"][1:])
    assert len(lines(figure, "base sampled")) == len(lines(figure, "student sampled")) == 1
    assert not lines(figure, "tuned sampled")
    assert "hops" in figure.axes[0].get_xlabel()


def test_consecutive_times_are_drawn_as_steps():
    figure = figures.survival_figure(
        {"student": {"times": np.array([1, 2, 3, 9]), "exact": np.array([0.9, 0.5, 0.2, 0.1])}}
    )
    (line,) = lines(figure, "student")
    np.testing.assert_array_equal(line, [[1, 0.9], [2, 0.9], [2, 0.5], [3, 0.5], [3, 0.2], [9, 0.1]])


# ---- training ------------------------------------------------------------------------------------------------------


def test_training_panels_show_what_was_logged():
    figure = figures.training_figure(HISTORIES, 0.01, 0.05)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert "pretrain: loss" in titles
    assert "pretrain: support" not in titles  # nothing logged
    first, last = lines(figure, "loss")
    np.testing.assert_array_equal(first, [[10, 3.0], [20, 2.0]])  # NaN is left out
    np.testing.assert_array_equal(last, [[5, 1.0], [10, 0.5]])
    np.testing.assert_array_equal(lines(figure, "edges")[0], [[0, 0], [5000, 3], [10000, 9]])
    np.testing.assert_array_equal(lines(figure, "approx. KL")[0], [[1, 1e-3]])  # 0 has no logarithm
    assert [line[0, 1] for line in lines(figure, "ε_max")] == [0.05]
    assert [line[0, 1] for line in lines(figure, "ε")] == [0.01, 0.01]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


@pytest.mark.parametrize("histories", [{}, {"ppo": []}, {"pretrain": [{"step": 1}]}, {"search": [{"edges": None}]}])
def test_training_without_anything(histories, tmp_path):
    figure = figures.training_figure(histories)
    assert "nothing was logged" in texts(figure)
    figures.save(figure, tmp_path / "t.png")


def test_models_have_their_own_colours():
    colours = [figures.model_colour(name) for name in ("base", "pretrained", "guided", "tuned", "student")]
    assert len(set(colours)) == 5
    assert figures.model_colour("optimum") not in colours

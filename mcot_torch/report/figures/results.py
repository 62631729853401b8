"""What a run came to: hitting times, kernels, survival curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from numpy.typing import ArrayLike, NDArray
from scipy import sparse as sp

from mcot_torch.evaluation.models import MODELS
from mcot_torch.report.figures.style import (
    BLACK,
    GREY,
    SMALL,
    TEXT,
    TITLE,
    WIDTH,
    Array,
    model_colour,
    plain,
)

__all__ = ["empirical_survival", "hitting_time_figure", "kernel_figure", "stairs", "survival_figure"]

_FLOOR = 1e-6  # of the colours of a kernel
_CELLS = 320  # most cells of a row of kernels
_HATCH = {"exact": None, "lifted": "////", "averaged": "...."}  # of the bars

# ---- hitting times -------------------------------------------------------------------------------------------------


def hitting_time_figure(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Expected hitting time of X_out: exact as a bar with its number, raw as a tick, sampled mean with its 95 % interval.

    Args:
        models: model -> row of evaluation.json: `unit`, `hitting_time_exact`, `hitting_time_exact_raw`,
            `hitting_time_sampled` {mean, low, high, n, censored, horizon} and, for the student, `lifted_steps` with
            `lifted_steps_low` and `lifted_steps_high`. Each may be missing or None. Where walks were censored the mean
            is a restricted one: hollow. Where `exact` is None, `hitting_time_context_averaged` is the bar.
    """
    bars: list[tuple[str, str, str, Mapping[str, Any]]] = []  # label, colour, unit, row
    for name, row in models.items():
        bars.append((name, model_colour(name), str(row.get("unit") or "steps"), row))
        lifted = row.get("lifted_steps")
        if lifted is not None:
            ends = {key: row.get(f"lifted_steps_{key}") for key in ("low", "high")}
            sample = None if None in ends.values() else {"mean": lifted, **ends}
            both = {"hitting_time_exact": lifted, "hitting_time_sampled": sample, "lifted": True}
            bars.append((f"{name}, lifted", model_colour(name), "steps", both))
    figure = Figure(figsize=(WIDTH, 1.35 + 0.46 * max(len(bars), 1)), layout="constrained")
    axes = figure.add_subplot()
    seen: set[str] = set()
    numbers = [v for *_, row in bars for v in _row_numbers(row)]
    low, high = min([1.0, *(0.5 * v for v in numbers)]), max([10.0, *numbers])
    for y, (_, colour, unit, row) in enumerate(bars):
        exact, raw = row.get("hitting_time_exact"), row.get("hitting_time_exact_raw")
        sample = row.get("hitting_time_sampled") or {}
        mean, cut = sample.get("mean"), sample.get("censored") or 0
        averaged = row.get("hitting_time_context_averaged") if exact is None else None
        bar = exact if exact is not None else averaged
        if bar is not None:
            kind = "lifted" if row.get("lifted") else "exact" if exact is not None else "averaged"
            style: dict[str, Any] = {"color": colour, "alpha": 0.55, "hatch": _HATCH[kind], "edgecolor": "white"}
            axes.barh(y, bar - low, left=low, height=0.62, **style)
            seen.add(kind)
        if raw is not None:
            axes.plot([raw, raw], [y - 0.38, y + 0.38], color=BLACK, lw=1.4, ls=(0, (2, 1)), label="raw")
            seen.add("raw")
        if mean is not None:
            span = [sample.get("low", mean), sample.get("high", mean)]
            error = np.array([[mean - span[0]], [span[1] - mean]])
            face = "white" if cut else colour
            axes.errorbar(
                mean, y, xerr=np.maximum(error, 0), fmt="o", ms=5.5, mfc=face, mec=BLACK, ecolor=BLACK, capsize=4
            )
            seen.add("cut" if cut else "sampled")
        shown = bar if bar is not None else mean
        if shown is not None:
            source = "" if exact is not None else " (averaged)" if averaged is not None else " (sampled)"
            text = f"{_number(shown)} {unit}{source}"
            if cut:
                text += f"\n{cut:,} of {sample.get('n', 0):,} walks cut at {_number(sample.get('horizon') or 0)}"
            edge = max(_row_numbers(row))
            axes.annotate(text, (edge, y), (9, 0), textcoords="offset points", va="center", size=TEXT)
        else:
            axes.annotate("no value", (low, y), (6, 0), textcoords="offset points", va="center", size=TEXT, color=GREY)
    axes.set_xscale("log")
    axes.set_xlim(low, high * (high / low) ** 0.28)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars], fontsize=TITLE)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _number(v)))
    hops = any(unit == "hops" for _, _, unit, _ in bars)
    axes.set_xlabel(
        "expected hitting time of the target X_out (" + ("steps; of the student: hops)" if hops else "steps)")
    )
    plain(axes, grid="x")
    handles = {
        "exact": Patch(fc=GREY, alpha=0.55, label="exact, cut to the support"),
        "lifted": Patch(fc=GREY, alpha=0.55, hatch="////", ec="white", label="path lifted to steps"),
        "averaged": Patch(fc=GREY, alpha=0.55, hatch="....", ec="white", label="chain averaged over contexts"),
        "raw": Line2D([], [], color=BLACK, lw=1.4, ls=(0, (2, 1)), label="exact, raw softmax"),
        "sampled": Line2D([], [], marker="o", mfc=GREY, mec=BLACK, color=BLACK, label="sampled mean, 95 % interval"),
        "cut": Line2D(
            [], [], marker="o", mfc="white", mec=BLACK, color=BLACK, label="sampled, mean of min(τ, horizon)"
        ),
    }
    shown_handles = [h for k, h in handles.items() if k in seen]
    if shown_handles:
        figure.legend(handles=shown_handles, loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False)
    return figure


def _row_numbers(row: Mapping[str, Any]) -> list[float]:
    """Every time in a row, those of its sample included."""
    sample = row.get("hitting_time_sampled") or {}
    values = [row.get(f"hitting_time_{key}") for key in ("exact", "exact_raw", "context_averaged")]
    values += [sample.get(key) for key in ("mean", "low", "high")]
    return [float(v) for v in values if v is not None and v > 0]


def _number(value: float) -> str:
    """55,555 or 14.1 or 0.5: three digits at least, all digits of whole thousands."""
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


# ---- kernels -------------------------------------------------------------------------------------------------------


def kernel_figure(kernels: Mapping[str, ArrayLike | sp.csr_array], clusters: ArrayLike) -> Figure:
    """Heat maps of kernels (N, N) over the same states, in order of their clusters, on one logarithmic scale.

    A map has at most 160 cells a side, 106 where three stand side by side; a cell shows the largest probability of the
    states that it pools, so that single hard steps stay visible. Zeros are white; what lies below 1e-6 has the lightest colour.
    """
    labels = np.asarray(clusters)
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    bounds, n = np.cumsum(sizes)[:-1], len(labels)
    columns = 2 if len(kernels) == 4 else max(1, min(3, len(kernels)))
    rows = max(1, -(-len(kernels) // columns))
    side = {1: 5.0, 2: 3.35, 3: 2.45}[columns]
    figure = Figure(figsize=(WIDTH, 0.5 + rows * side), layout=ConstrainedLayoutEngine(h_pad=0.07, compress=True))
    grid = figure.subplots(rows, columns, squeeze=False)
    colours = _heat()
    image = None
    every = -(-len(sizes) // (24 // columns))
    thin = min(0.4, 8 / len(sizes))
    middles = (np.cumsum(sizes) - sizes / 2)[::every]
    for i, axes in enumerate(grid.flat):
        if i >= len(kernels):
            axes.set_axis_off()
            continue
        name, kernel = list(kernels.items())[i]
        matrix = kernel if isinstance(kernel, sp.csr_array) else np.asarray(kernel)
        if matrix.shape != (n, n):
            raise ValueError(f"kernel {name!r} has shape {matrix.shape}; {n} cluster labels need ({n}, {n})")
        cells, width = _pool(matrix, order, _CELLS // max(columns, 2))
        shown = np.ma.masked_where(~(cells > 0), np.maximum(cells, _FLOOR))
        far = len(cells) * width
        image = axes.imshow(
            shown, cmap=colours, norm=LogNorm(_FLOOR, 1.0), extent=(0, far, far, 0), interpolation="nearest"
        )
        for bound in bounds:
            axes.axhline(bound, color="#9db4c0", lw=thin)
            axes.axvline(bound, color="#9db4c0", lw=thin)
        axes.set(xlim=(0, n), ylim=(n, 0))
        ticks = [str(k) for k in range(0, len(sizes), every)]
        axes.set_xticks(middles, ticks, fontsize=SMALL)
        axes.set_yticks(middles, ticks, fontsize=SMALL)
        axes.tick_params(length=0, pad=2)
        axes.set_title(name, fontsize=TITLE, color=BLACK)
        axes.set_xlabel("to states of cluster", fontsize=TEXT)
        if i % columns == 0:
            axes.set_ylabel("from states of cluster", fontsize=TEXT)
    if image is not None:
        bar = figure.colorbar(image, ax=list(grid.flat), shrink=0.85, pad=0.01, aspect=25)
        bar.set_label("probability a step (white: 0)", fontsize=TEXT)
        bar.ax.tick_params(labelsize=SMALL)
        bar.ax.set_yticks(
            [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1], ["≤10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "1"]
        )
    return figure


def _heat() -> Colormap:
    from matplotlib import colormaps

    return colormaps["magma_r"].with_extremes(bad="white")


def _pool(matrix: NDArray[Any] | sp.csr_array, order: NDArray[np.int64], limit: int) -> tuple[Array, int]:
    """At most (limit, limit) cells, each the maximum of `width` by `width` states in `order`; and that width."""
    width = max(1, -(-len(order) // limit))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order)) // width
    taken, cells = sp.coo_array(matrix), np.zeros((place.max() + 1, place.max() + 1))
    np.maximum.at(cells, (place[taken.row], place[taken.col]), taken.data)
    return cells, width


# ---- survival ------------------------------------------------------------------------------------------------------


def survival_figure(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """P(τ > t): exact as a line, sampled as steps with a 95 % band (Dvoretzky, Kiefer and Wolfowitz).

    Args:
        curves: model -> `times` and `exact` (same length), `sampled` hitting times (n,) with their `horizon`, `unit`
            (steps; hops for a student). Each may be missing or None. Walks that are not finite, negative or beyond the
            horizon count as censored there.
    """
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = figure.add_subplot()
    handles: list[Any] = []
    hops, latest = False, 10.0
    for name, row in curves.items():
        colour = model_colour(name)
        unit = row.get("unit") or (MODELS[name].unit if name in MODELS else "steps")
        hops |= unit == "hops"
        if row.get("exact") is not None and row.get("times") is not None:
            times, exact = np.asarray(row["times"], float), np.asarray(row["exact"], float)
            keep = times >= 1
            axes.plot(*stairs(times[keep], exact[keep]), color=colour, lw=2.0, zorder=3, label=name)
            latest = max(latest, float(times.max(initial=1)))
        if row.get("sampled") is not None and len(row["sampled"]):
            t, alive, half = empirical_survival(row["sampled"], row.get("horizon"))
            axes.step(t, alive, where="post", color=BLACK, lw=0.8, zorder=4, label=f"{name} sampled")
            low, high = np.maximum(alive - half, 0), np.minimum(alive + half, 1)
            axes.fill_between(t, low, high, step="post", color=colour, alpha=0.22, lw=0, zorder=2)
            latest = max(latest, float(t[-1]))
        handles.append(Line2D([], [], color=colour, lw=2.5, label=f"{name} (hops)" if unit == "hops" else name))
    handles.append(Line2D([], [], color=BLACK, lw=0.8, label="sampled"))
    handles.append(Patch(fc=GREY, alpha=0.3, label="95 % band"))
    axes.set_xscale("log")
    axes.set(xlim=(1, latest * 1.05), ylim=(0, 1.02))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _number(v)))
    axes.set_xlabel("t (steps; of the student: hops)" if hops else "t (steps)", fontsize=TITLE)
    axes.set_ylabel("P(τ > t), X_out not yet reached", fontsize=TITLE)
    plain(axes)
    figure.legend(
        handles=handles, loc="outside upper center", ncols=4 if len(handles) > 4 else 7, fontsize=TEXT, frameon=False
    )
    return figure


def stairs(times: Array, values: Array) -> tuple[Array, Array]:
    """Steps where the times are consecutive, a line where they are not."""
    i = np.flatnonzero(np.diff(times) == 1)
    return np.insert(times, i + 1, times[i + 1]), np.insert(values, i + 1, values[i])


def empirical_survival(sampled: ArrayLike, horizon: float | None = None) -> tuple[Array, Array, float]:
    """Times t (m,), the share of walks with τ > t from each on (m,), and half the width of the DKW 95 % band.

    The curve begins at t = 0 and ends at the horizon, where walks are censored; without one, at the last hit.
    """
    tau = np.asarray(sampled, dtype=np.float64)
    tau = np.where(np.isfinite(tau) & (tau >= 0), tau, np.inf)
    finite = tau[np.isfinite(tau)]
    last = float(finite.max(initial=1.0)) if horizon is None else float(horizon)
    jumps = np.unique(np.concatenate([[0.0], finite[finite < last]]))
    alive = 1.0 - np.searchsorted(np.sort(tau), jumps, side="right") / len(tau)
    end = alive[-1] if horizon is not None else float(np.mean(tau > last))
    return np.append(jumps, last), np.append(alive, end), float(np.sqrt(np.log(2 / 0.05) / (2 * len(tau))))

"""Results of `benchmarks.on_gpu` as Markdown: the report of one result, and docs/gpu.md from all that are kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mcot_torch.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
KEPT = Path(__file__).with_name("gpu_results")
UNTESTED = "untested on a GPU"
Result = dict[str, Any]
STAGES = ("pretrain", "search", "ppo", "distill")
ROWS = ("pretrain_window_1", "pretrain_sequences", "rollout_table", "rollout_cached", "ppo_round", "distill")

# What is claimed, and what shows it: parts of a result, and tests by a word of their name. Nothing shows the last ones.
CLAIMS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("`train.py` runs whole, and its figures are the CPU's", ("smoke", "default"), ()),
    ("`configs/gpu.yaml` runs from pretraining to its table", ("gpu_yaml",), ()),
    ("samplers follow their laws (table and context walkers, counts, pairs, rare steps)", (), ("device_samplers",)),
    ("reasoners, losses, gradients, advantages and the PRM give the CPU's numbers", (), ("device_models",)),
    ("models are saved on one device and loaded on another", (), ("saved_and_loaded",)),
    ("pretraining and PPO continue from a checkpoint with the same numbers", (), ("resumes", "goes_on_on_the_cpu")),
    ("`--trainer.deterministic true` gives the same bits", (), ("deterministic_mode",)),
    ("`--trainer.precision bf16-mixed` keeps the hard steps within a factor of 1.5", (), ("bf16",)),
    ("`--pretrain.compile true` gives the numbers of eager mode", (), ("compiled_pretraining",)),
    ("windows above 1 train (`pretrain`, `ppo`)", (), ("window_and_its_lists", "outcome_reward_and_window_4")),
    ("predictions can be captured in a CUDA graph", (), ("captured_inference",)),
    ("two ranks train on one GPU over gloo, below the check of `train.py`", (), ("two_ranks",)),
    ("the CPU tests pass on torch 2.11 (`--part torch_floor`)", ("torch_floor",), ()),
    ("NCCL, and more than one GPU", (), ()),
    ("`configs/large.yaml`, `configs/logic.yaml`, `configs/sequence.yaml`", (), ()),
    ("the laboratory's methods", (), ()),
)


# ---- docs/gpu.md ----------------------------------------------------------------------------------------------------


def write(kept: Path = KEPT, root: Path = ROOT) -> Path:
    """Write docs/gpu.md from the results in `kept`; returns the page."""
    page = root / "docs" / "gpu.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text(load(kept)))
    return page


def load(kept: Path = KEPT) -> list[Result]:
    """The kept results, the oldest first: their file names begin with their date.

    Raises:
        InputError: a result of a rehearsal, whose figures mean nothing.
    """
    results = []
    for path in sorted(kept.glob("2*.json")):
        result = json.loads(path.read_text())
        if result["small"]:
            raise InputError(
                f"{path} is of a rehearsal (--device cpu), whose figures mean nothing on this page; delete it"
            )
        results.append(result)
    return results


def text(results: Sequence[Result]) -> str:
    """The page: results side by side, then what is claimed and where it was seen."""
    told = [
        "# Measured on a GPU",
        "",
        "Written by `python -m benchmarks.on_gpu docs` from the results in `benchmarks/gpu_results`; `python -m benchmarks.on_gpu` "
        "makes such a result on your machine ([a machine with a GPU](howto/gpu.md)). Times are single runs unless a row says otherwise. "
        f'What no result shows is marked "{UNTESTED}".',
        "",
        "| result | machine | torch | version |",
        "|---|---|---|---|",
    ]
    told += [f"| {label(r)} | {machine(r)} | {software(r)} | {version(r)} |" for r in results]
    told += ["", "## What is claimed, and where it was seen", "", "| claim | seen |", "|---|---|"]
    told += [f"| {claim} | {seen(results, parts, tests)} |" for claim, parts, tests in CLAIMS]
    for title, section in (
        ("Seconds of the smoke and the default run", stage_seconds(results)),
        ("Figures of the default run", run_figures(results, "default")),
        ("The hard steps of `configs/gpu.yaml`", hard_steps(results)),
        ("Benchmark rows", rows(results)),
        ("Kernels and waits", profiles(results)),
        ("Tests that failed", failures(results)),
    ):
        told += ["", f"## {title}", "", *(section or [f"{UNTESTED[0].upper()}{UNTESTED[1:]}."])]
    notes = [f"- {note} ({label(r)})" for r in results for note in r.get("notes", [])]
    told += ["", "## Found", "", *notes] if notes else []
    return "\n".join(told).rstrip() + "\n"


def label(result: Result) -> str:
    """How a result is called in tables."""
    return result.get("label") or result["date"]


def part(result: Result, name: str) -> dict[str, Any] | None:
    """A part that ran, or None."""
    return next((p for p in result["parts"] if p["name"] == name and p["status"] != "not run"), None)


def data(result: Result, name: str) -> dict[str, Any]:
    """What a part found, empty where it did not run."""
    return (part(result, name) or {}).get("data", {})


def machine(result: Result) -> str:
    """GPU, driver and cores."""
    d = data(result, "environment")
    cores = f"{d['cores']} cores" if d.get("cores") else None
    return ", ".join(x for x in (d.get("gpu") or "no GPU", d.get("nvidia_smi"), cores) if x)


def software(result: Result) -> str:
    """Torch, CUDA and Python."""
    d = data(result, "environment")
    return f"{d.get('torch', '?')}, CUDA {d.get('cuda', '?')}, Python {d.get('python', '?')}"


def version(result: Result) -> str:
    """Version and commit of the code."""
    d = data(result, "environment")
    return " ".join(x for x in (d.get("version"), d.get("commit")) if x) or "?"


def seen(results: Sequence[Result], parts: Iterable[str], tests: Iterable[str]) -> str:
    """Where a claim was seen last, or that it is untested."""
    for result in reversed(results):
        outcomes = [p["status"] for name in parts if (p := part(result, name))]
        tested = data(result, "pytest").get("outcomes", {})
        outcomes += [outcome for test, outcome in tested.items() if any(word in test for word in tests)]
        ran = [o for o in outcomes if o != "skipped"]
        if not ran:
            continue
        bad = [o for o in ran if o != "passed"]
        where = label(result)
        return f"{where}, **{len(bad)} of {len(ran)} not passed**" if bad else f"{where}, passed"
    return f"**{UNTESTED}**"


def stage_seconds(results: Sequence[Result]) -> list[str]:
    """Seconds of each stage of the runs."""
    lines = []
    for result in results:
        for run in ("smoke", "default", "gpu_yaml"):
            columns = [
                ("CPU, rehearsal" if result["small"] else "GPU", data(result, run).get("seconds")),
                ("CPU", data(result, run).get("cpu_seconds")),
            ]
            for device, s in columns:
                if s:
                    start = s["python"] + s["imports"] if "imports" in s else None
                    cells = [start, *(s.get(stage) for stage in (*STAGES, "evaluate", "whole"))]
                    lines.append(f"| {run} | {device} | {label(result)} | " + " | ".join(map(cell, cells)) + " |")
    head = ["| run | device | result | start and imports | pretrain | search | ppo | distill | evaluation | whole |"]
    return [*head, "|" + "---|" * 10, *lines] if lines else []


def cell(x: float | None, digits: int = 3) -> str:
    """A number of a table."""
    return "–" if x is None else f"{x:,.{digits}g}" if abs(x) < 1000 else f"{x:,.0f}"


def run_figures(results: Sequence[Result], run: str) -> list[str]:
    """Exact times, hard steps, precision and recall of each result beside the CPU's."""
    columns: list[tuple[str, dict[str, Any]]] = []
    for result in results:
        d = data(result, run)
        if "figures" in d:
            where = "CPU, rehearsal" if result["small"] else "GPU"
            columns.append((f"{where}, {label(result)}", d["figures"]))
            columns += [(f"CPU, {label(result)}", d["cpu"])] if "cpu" in d else []
    if not columns:
        return []
    models = list(dict.fromkeys(name for _, f in columns for name in f["exact"]))
    told = [
        "Exact expected time from the start to the target, in steps (hops for the student); then the hard steps of the tuned model, "
        "precision and recall of search, and the sampled length of the student's lifted paths.",
        "",
        "| | " + " | ".join(name for name, _ in columns) + " |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for model in models:
        cells = [cell(f["exact"].get(model), 3 if model == "student" else 5) for _, f in columns]
        told.append(f"| {model} | " + " | ".join(cells) + " |")
    hard = [f["hard_steps"].get("tuned") for _, f in columns]
    told.append("| hard steps, tuned | " + " | ".join(f"{h[0]:.3g} – {h[-1]:.3g}" if h else "–" for h in hard) + " |")
    pairs = [f"{cell(f['precision'])}, {cell(f['recall'])}" for _, f in columns]
    told.append("| precision, recall | " + " | ".join(pairs) + " |")
    lifted = [f.get("lifted") for _, f in columns]
    shown = [f"{x[0]:.3g} ± {x[1]:.3g}, {x[2]:.0%} valid" if x else "–" for x in lifted]
    return [*told, "| lifted paths | " + " | ".join(shown) + " |"]


def hard_steps(results: Sequence[Result]) -> list[str]:
    """What the data show of the hard steps, what the reasoner makes of them, and what is kept."""
    told = []
    for result in results:
        p, d = part(result, "gpu_yaml"), data(result, "gpu_yaml")
        if p is None:
            continue
        told.append(f"- {label(result)}: {p['status']} after {cell(p['seconds'])} s.")
        if "data" in d:
            x = d["data"]
            least, most = x["expected"]
            told.append(
                f"    - Sampled data: {x['never_seen']} of {x['hard_steps']} hard steps never seen; the smallest count is "
                f"{x['smallest_counts'][0]:.0f} where {least:.0f} to {most:.0f} are expected; seen to expected, in all, "
                f"{x['seen_to_expected']:.4f}; z-scores from {x['z_min']:.1f} to {x['z_max']:.1f}."
            )
        for cut in d.get("cuts", []):
            told.append(
                f"    - Cut at step {cut['step']}, threshold {cut['threshold']:.2g}: {cut['below_threshold']} hard steps below it "
                f"(smallest {cut['smallest'][0]:.2g}, median {cut['median']:.2g}); supported {cut['hard_steps_before']} before, "
                f"{cut['hard_steps_after']} after."
            )
        if "search" in d:
            s = d["search"]
            told.append(f"    - Search found {s['found']} steps, {s['right']} of them among the {s['true']} hard ones.")
        for stage, kept in d.get("hard_steps_supported", {}).items():
            told.append(f"    - Hard steps supported after {stage}: {kept}.")
        for stage, found in d.get("stages", {}).items():
            last = found["last"]
            if "hard_step_min" in last:
                peak = f", peak memory {found['peak_gib']:.1f} GiB" if found.get("peak_gib") else ""
                span = f"{last['hard_step_min']:.3g} and {last['hard_step_max']:.3g}"
                told.append(f"    - Hard steps after {stage} lie between {span}{peak}.")
    return told


def rows(results: Sequence[Result]) -> list[str]:
    """Benchmark rows with their shares of the measured peaks."""
    lines, notes = [], []
    for result in results:
        peak = data(result, "peaks")
        if peak:
            notes.append(
                f"- {label(result)}: copies {peak['copy_bytes_per_second'] / 1e12:.3g} TB/s, float32 products "
                f"{peak['float32_flops'] / 1e12:.3g} TFLOP/s, bfloat16 products {peak['bfloat16_flops'] / 1e12:.3g} TFLOP/s."
            )
        for name in ROWS:
            d = data(result, name)
            entries = d.get("entries", [])
            first = next((e for e in entries if e["ours"]), None)
            for e in entries:
                share = "–"
                if e is first and d.get("flops") and peak:
                    share = f"{d['flops'] / e['median'] / peak['float32_flops']:.2g}"
                ratio = "–" if first is None or e["ours"] else f"{first['rate'] / e['rate']:.3g} x"
                lines.append(
                    f"| `{name}` | {e['name']} | {label(result)} | {1e3 * e['median']:.3g} ms | {rate(e['rate'])} {d['unit']}/s | "
                    f"{ratio} | {share} |"
                )
    if not lines and not notes:
        return []
    told = [
        "Medians of 5. The share is that of the row's matrix products in the measured peak of float32 products.",
        "",
    ]
    head = ["| row | entry | result | time | rate | ours to it | share of peak |", "|" + "---|" * 7]
    return [*told, *notes, *([""] if notes else []), *(head + lines if lines else [])]


def rate(x: float) -> str:
    """Three digits with a letter."""
    for limit, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if x >= limit:
            return f"{x / limit:.3g}{letter}"
    return f"{x:.3g} "


def profiles(results: Sequence[Result]) -> list[str]:
    """The most expensive kernels of each stage, and where the host waits."""
    told = []
    for result in results:
        for stage in STAGES:
            d = data(result, "profile").get(stage)
            if not d:
                continue
            waits = "host waits not counted" if d["waits"] is None else f"the host waits {d['waits']} times"
            told += [
                f"{stage}, {label(result)}: {d['seconds']:g} s under the profiler, {d['launches']:,} kernels busy for "
                f"{d['busy_seconds']:g} s; {waits}.",
                "",
                "| kernel | launches | ms | share |",
                "|---|---|---|---|",
                *(
                    f"| `{name[:70].replace('|', ' ')}` | {n} | {ms:g} | {share:.0%} |"
                    for name, n, ms, share in d["top"]
                ),
                "",
                *(f"- {n} waits at `{place}`" for place, n in d["waits_at"]),
                "",
            ]
    return told


def failures(results: Sequence[Result]) -> list[str]:
    """Names of the tests that failed, of each result."""
    told = []
    for result in results:
        for name in ("pytest", "torch_floor"):
            p, d = part(result, name), data(result, name)
            if p and "counts" in d:
                counts = ", ".join(f"{n} {kind}" for kind, n in d["counts"].items())
                told.append(f"- {label(result)}, {name}: {counts}.")
                told += [f"    - `{test}`" for test in d["failed"]]
    return told


# ---- the report of one result ---------------------------------------------------------------------------------------


def report(result: Result) -> str:
    """One result as Markdown: the parts with their seconds, what they found, and the output of those that did not pass."""
    small = " Sizes are small: no figure here is worth quoting." if result["small"] else ""
    told = [
        f"# Check of a GPU, {result['date']}",
        "",
        f"{machine(result)}; {software(result)}; version {version(result)}. `--device {result['device']}`, "
        f"{result['minutes']:g} minutes allowed, {result.get('seconds', 0):g} s used.{small}",
        "",
        "| part | status | seconds | limit | |",
        "|---|---|---|---|---|",
    ]
    for p in result["parts"]:
        status = f"{p['status']} ({p['why']})" if p["status"] == "not run" else p["status"]
        why = p.get("why", "") if p["status"] in ("failed", "overran") else ""
        limits = f"{cell(p.get('seconds'))} | {cell(p.get('limit'))}"
        told.append(f"| {p['name']} | {status} | {limits} | {why[:400].replace('|', ' ')} |")
    for title, section in (
        ("Seconds of the runs", stage_seconds([result])),
        ("Smoke run", run_figures([result], "smoke")),
        ("Default run", run_figures([result], "default")),
        ("configs/gpu.yaml", hard_steps([result])),
        ("Table of configs/gpu.yaml", run_figures([result], "gpu_yaml")),
        ("Benchmark rows", rows([result])),
        ("Kernels and waits", profiles([result])),
        ("Tests", failures([result])),
    ):
        told += ["", f"## {title}", "", *section] if section else []
    for p in result["parts"]:
        for test, why in p.get("data", {}).get("why", {}).items():
            told += ["", f"### {test}", "", "```", *why.splitlines()[-15:], "```"]
    for p in result["parts"]:
        if p.get("output"):
            told += ["", f"## Output of {p['name']}", "", "```", *p["output"], "```"]
    return "\n".join(told).rstrip() + "\n"

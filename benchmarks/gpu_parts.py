"""The parts of `python -m benchmarks.on_gpu`, each run in a process of its own: python -m benchmarks.gpu_parts NAME ...

A part tells what it found by writing JSON as it goes (`tell`), so that a part that is ended at its limit leaves what it had.
A part fails by raising or by returning a reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CPU_FIGURES = Path(__file__).with_name("gpu_results") / "cpu_figures.json"
STAGES = ("pretrain", "search", "ppo", "distill", "evaluate")
ROWS = {
    "pretrain_window_1": "pretrain",
    "pretrain_sequences": "pretrain",
    "rollout_table": "rollout",
    "rollout_cached": "rollout",
    "ppo_round": "ppo",
    "distill": "distill",
}
_TIMES, _HARD = 0.05, 0.15  # largest relative distance from the CPU's hitting times and hard steps


class Told:
    """What a part has found so far; `tell` writes it down, whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path, self.data = path, {}

    def tell(self, **found: Any) -> None:
        """Add what was found and write everything."""
        self.data: dict[str, Any] = {**self.data, **found}
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text(json.dumps(self.data))
        temporary.replace(self.path)


def environment(told: Told, device: str) -> str | None:
    """The machine and its software."""
    told.tell(
        python=platform.python_version(), cores=os.cpu_count(), system=f"{platform.system()} {platform.release()}"
    )
    line = _printed("nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader")
    told.tell(nvidia_smi=line, commit=_printed("git", "rev-parse", "--short", "HEAD"))
    begin = time.perf_counter()
    import torch

    told.tell(torch=torch.__version__, cuda=torch.version.cuda, import_torch=round(time.perf_counter() - begin, 2))
    if torch.cuda.is_available():
        begin = time.perf_counter()
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
        told.tell(start_cuda=round(time.perf_counter() - begin, 2), gpu=torch.cuda.get_device_name())
        told.tell(gpu_memory_gib=round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1))
    from mcot_torch.version import __version__

    told.tell(version=__version__, triton=find_spec("triton") is not None, numba=find_spec("numba") is not None)
    print(json.dumps(told.data, indent=1))
    return "torch sees no CUDA device" if device == "cuda" and not torch.cuda.is_available() else None


def _printed(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


# ---- tests ----------------------------------------------------------------------------------------------------------


def tests(told: Told, device: str) -> str | None:
    """The tests marked gpu, in one process."""
    words = ["-m", "gpu", "tests/gpu", "-n", "0", "-p", "no:cacheprovider", "--durations=5"]
    if device == "cpu":  # the compiler and the slow ones take longer than all others together
        words += ["-k", "not compiled and not bf16 and not resumes and not rare and not deterministic"]
    return _pytest(told, words, {"MCOT_GPU_TESTS_ON": device})


def torch_floor(told: Told, device: str) -> str | None:
    """The CPU tests on this machine's torch; a small choice of them in a rehearsal."""
    words = ["-n", "8", "--maxprocesses", "8", "-p", "no:cacheprovider", "--maxfail", "20", "--durations=5"]
    if device == "cpu":
        words = ["-n", "0", "-p", "no:cacheprovider", "tests/sampling/test_datasets.py"]
    return _pytest(told, words, {"CUDA_VISIBLE_DEVICES": ""})


def _pytest(told: Told, words: list[str], variables: dict[str, str]) -> str | None:
    from benchmarks.gpu_outcomes import read

    log = told.path.with_suffix(".outcomes")
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu_outcomes", "--tb=short", *words]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables, "MCOT_OUTCOMES": str(log)})
    while process.poll() is None:
        time.sleep(0.5)
        told.tell(**read(log))
    told.tell(**read(log), status=process.returncode)
    return f"pytest ended with status {process.returncode}" if process.returncode else None


# ---- runs of train.py -----------------------------------------------------------------------------------------------

_SMALL = {
    "smoke": "--pretrain.steps 60 --pretrain.steps_after_cut 40 --ppo.rounds 3 --distill.steps 50",
    "default": "--graph.n_clusters 4 --graph.cluster_size 8 --graph.epsilon 0.02 --pretrain.steps 100 "
    "--pretrain.steps_after_cut 50 --pretrain.transitions 10000000 --ppo.rounds 3 --distill.transitions 1000000 "
    "--distill.steps 50 --evaluation.walks 100",
    "gpu_yaml": "--graph.n_clusters 4 --graph.cluster_size 32 --graph.epsilon 0.001 --reasoner.width 32 --pretrain.steps 150 "
    "--pretrain.steps_after_cut 50 --pretrain.transitions 100000000 --pretrain.path_length 256 --search.rounds 20 "
    "--ppo.rounds 3 --ppo.transitions 1000000 --distill.transitions 10000000 --distill.steps 50",
}


def smoke(told: Told, device: str) -> str | None:
    """configs/smoke.yaml."""
    return _run(told, device, "smoke", ["--config", "configs/smoke.yaml"])


def default(told: Told, device: str) -> str | None:
    """The default run."""
    return _run(told, device, "default", [])


def gpu_yaml(told: Told, device: str) -> str | None:
    """configs/gpu.yaml from pretraining to the table, and what becomes of its hard steps on the way.

    Evaluation takes no sampled walks to their end and no times without the cut: a walk of the base chain takes 10^8 steps one
    after the other, which is hours, and N^3 operations of one CPU core are minutes.
    """
    import mcot_torch.evaluation.subjects as subjects

    subjects._MOST_RAW = 1000
    words = ["--config", "configs/gpu.yaml", "--evaluation.walks", "20", "--evaluation.horizon_factor", "1e-6"]
    with _watching_hard_steps(told):
        reason = _run(told, device, "gpu_yaml", words, compare=False)
    n = told.data.get("data", {}).get("hard_steps", 0)
    lost = {stage: n - kept for stage, kept in told.data.get("hard_steps_supported", {}).items() if kept < n}
    if lost and device == "cuda":
        reason = reason or "hard steps were cut: " + ", ".join(f"{k} of {n} after {stage}" for stage, k in lost.items())
    return reason


def _run(told: Told, device: str, name: str, words: list[str], compare: bool = True) -> str | None:
    begun = float(os.environ.get("MCOT_PART_BEGAN", time.time()))
    seconds = {"python": round(time.time() - begun, 2)}
    begin = time.perf_counter()
    import torch

    from mcot_torch.cli import train
    from mcot_torch.runs.folder import RunFolder

    seconds["imports"] = round(time.perf_counter() - begin, 2)
    told.tell(seconds=seconds)
    small = device == "cpu"
    finish, log = RunFolder.finish, RunFolder.log

    def finished(self: RunFolder, stage: str, history: Any, **summary: Any) -> None:
        """Note the last line of a finished stage, and the memory that it took."""
        finish(self, stage, history, **summary)
        stages = told.data.get("stages", {})
        peak = round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else None
        stages[stage] = {"last": history[-1] if history else {}, **summary, "peak_gib": peak}
        told.tell(stages=stages, seconds={**seconds, **self.manifest()["seconds"]})

    def logged(self: RunFolder, stage: str, line: Any) -> None:
        """Keep the newest line of each stage: what is known of one that does not finish."""
        log(self, stage, line)
        told.tell(newest={**told.data.get("newest", {}), stage: line})

    RunFolder.finish, RunFolder.log = finished, logged  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / name
        words = [*words, "--run_dir", str(run), "--trainer.accelerator", device, "--evaluation.figures", "false"]
        words += _SMALL[name].split() if small else []
        status = train(words)
        if status:
            return f"train.py ended with status {status}"
        seconds |= json.loads((run / "manifest.json").read_text())["seconds"]
        seconds["whole"] = round(time.time() - begun, 2)  # the start of Python included
        found = figures(json.loads((run / "evaluation.json").read_text()))
    told.tell(seconds=seconds, figures=found, small=small)
    print("seconds", json.dumps(seconds))
    if small or not compare:
        return None
    stored = json.loads(CPU_FIGURES.read_text())[name]
    apart = differences(found, stored)
    told.tell(cpu=stored, apart=apart)
    return "; ".join(apart) or None


def figures(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The figures of evaluation.json that two devices must share: exact times, hard steps, precision and recall."""
    models = evaluation["models"]
    lifted = models.get("student", {})
    out: dict[str, Any] = {
        "exact": {name: m["hitting_time_exact"] for name, m in models.items()},
        "hard_steps": {name: list(m["hard_step_probability"].values()) for name, m in models.items()},
        "precision": models["tuned"]["hard_step_precision"] if "tuned" in models else None,
        "recall": models["tuned"]["hard_step_recall"] if "tuned" in models else None,
    }
    if lifted.get("lifted_steps") is not None:
        half = (lifted["lifted_steps_high"] - lifted["lifted_steps_low"]) / 2
        out["lifted"] = [lifted["lifted_steps"], half, lifted["lifted_valid"]]
    return out


def differences(found: dict[str, Any], cpu: dict[str, Any]) -> list[str]:
    """What lies further from the CPU's figures than sampling explains, in words."""
    told = []
    for name, exact in cpu["exact"].items():
        here = found["exact"].get(name)
        if here is None or abs(here / exact - 1) > _TIMES:
            told.append(f"{name} takes {here} and on the CPU {exact:.6g}")
        for low, high in zip(found["hard_steps"].get(name, []), cpu["hard_steps"][name], strict=False):
            if abs(low / high - 1) > _HARD:
                told.append(f"a hard step of {name} is {low:.3g} and on the CPU {high:.3g}")
    for key in ("precision", "recall"):
        if found[key] != cpu[key]:
            told.append(f"{key} of search is {found[key]} and on the CPU {cpu[key]}")
    return told


@contextmanager
def _watching_hard_steps(told: Told) -> Iterator[None]:
    """Tell what the data show of the hard steps, what the reasoner makes of them before each cut, and what each stage keeps.

    A sampler that loses hard steps shows too few in the data; settings that lose them show a reasoner below the threshold.
    """
    import numpy as np
    import torch

    import mcot_torch.algorithms.pretrain as home
    import mcot_torch.runs.pipeline as pipeline
    from mcot_torch.runs.folder import RunFolder
    from mcot_torch.sampling.datasets import CountData

    known: dict[str, Any] = {}
    sample, cut, keep = home.training_data, home.cut, RunFolder.keep

    def support(model: Any) -> int:
        source, target = known["edges"]
        return int(model.support.mask[source.to(model.device), target.to(model.device)].sum())

    def sampled(reasoner: Any, graph: Any, *rest: Any) -> Any:
        begin = time.perf_counter()
        data = sample(reasoner, graph, *rest)
        known["edges"] = torch.as_tensor(graph.sparse_edges).T
        if isinstance(data, CountData):
            source, target = (x.to(data.counts.device) for x in known["edges"])
            hit = data.after[source] == target[:, None]
            counts = torch.where(hit, data.counts[source], 0.0).sum(1).cpu().numpy()
            visits = data.counts.sum(1)[source].cpu().numpy()
            p = graph.kernel()[graph.sparse_edges[:, 0], graph.sparse_edges[:, 1]]
            expected = visits * p
            z = (counts - expected) / np.sqrt(expected * (1 - p))
            told.tell(
                data={
                    "hard_steps": len(counts),
                    "never_seen": int((counts == 0).sum()),
                    "smallest_counts": sorted(counts.tolist())[:8],
                    "expected": [float(expected.min()), float(expected.max())],
                    "seen_to_expected": float(counts.sum() / expected.sum()),
                    "z_min": float(z.min()),
                    "z_max": float(z.max()),
                    "seconds": round(time.perf_counter() - begin, 2),
                }
            )
            print("data", json.dumps(told.data["data"]), flush=True)
        return data

    def cutting(reasoner: Any, data: Any, threshold: float, loop: Any) -> None:
        source, target = known["edges"]
        p = reasoner.kernel()[source.to(reasoner.device), target.to(reasoner.device)].cpu()
        before = support(reasoner)
        cut(reasoner, data, threshold, loop)
        line = {
            "step": loop.step,
            "threshold": threshold,
            "smallest": sorted(p.tolist())[:8],
            "median": float(p.median()),
            "below_threshold": int((p < threshold).sum()),
            "hard_steps_before": before,
            "hard_steps_after": support(reasoner),
            "steps_left": int(reasoner.support.mask.sum()),
        }
        told.tell(cuts=[*told.data.get("cuts", []), line])
        print("cut", json.dumps(line), flush=True)

    def keeping(self: RunFolder, stage: str, model: Any) -> None:
        keep(self, stage, model)
        if stage in ("pretrain", "ppo"):
            kept = {**told.data.get("hard_steps_supported", {}), stage: support(model)}
            told.tell(hard_steps_supported=kept)

    searching = pipeline.search

    @wraps(searching)
    def searched(*arguments: Any, **named: Any) -> Any:
        result = searching(*arguments, **named)
        found = set(map(tuple, result.model.edges.tolist()))
        true = set(map(tuple, known["edges"].T.tolist())) if known else set()
        told.tell(search={"found": len(found), "right": len(found & true), "true": len(true)})
        return result

    home.training_data, home.cut, pipeline.search = sampled, cutting, searched
    RunFolder.keep = keeping  # type: ignore[method-assign]
    try:
        yield
    finally:
        home.training_data, home.cut, pipeline.search = sample, cut, searching
        RunFolder.keep = keep  # type: ignore[method-assign]


# ---- benchmark rows -------------------------------------------------------------------------------------------------


def peaks(told: Told, device: str) -> str | None:
    """Measured copy bandwidth and matrix products: the peaks that shares of rows are given of."""
    import torch

    from benchmarks.timing import copy_bandwidth, synchronise

    bandwidth = copy_bandwidth(device, 1.0 if device == "cuda" else 1 / 64)
    told.tell(copy_bytes_per_second=bandwidth)
    n = 8192 if device == "cuda" else 128
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        times = []
        for _ in range(6):
            synchronise(device)
            begin = time.perf_counter()
            _ = a @ b
            synchronise(device)
            times.append(time.perf_counter() - begin)
        told.tell(**{f"{name}_flops": 2 * n**3 / sorted(times[1:])[2]})
    print(json.dumps(told.data))
    return None


def row_of(name: str) -> Callable[[Told, str], str | None]:
    """The part of one row of `python -m benchmarks.run`."""

    def part(told: Told, device: str) -> str | None:
        from dataclasses import asdict

        from benchmarks.timing import Settings, machine, number
        from mcot_torch.system.machine import settle

        settle(1)
        settings = Settings(device, quick=device == "cpu", runs=2 if device == "cpu" else 5)
        row = import_module(f"benchmarks.{ROWS[name]}").ROWS[name](settings)
        entries = [{k: v for k, v in e.items() if k not in ("note", "quartiles")} for e in row.entries]
        flops = None if settings.quick else products(name)
        told.tell(
            setup=row.setup, unit=row.unit, entries=entries, skipped=row.skipped, flops=flops, load=machine()["load"]
        )
        told.tell(marks=[{**asdict(mark), "met": mark.met} for mark in row.marks])
        for e in entries:
            print(f"{e['name']:<48} {1e3 * e['median']:10.3f} ms  {number(e['rate']):>8} {row.unit}/s")
        return None

    return part


def products(name: str) -> float | None:
    """Floating-point operations of the matrix products of one call of our entry of a row, at its full size."""
    from benchmarks.models import LAYERS, WIDTH, default_graph

    n = default_graph(False).n_states
    one_pass = 2 * (12 * WIDTH**2 * LAYERS + WIDTH * n)  # of one context; backward costs two more
    return {
        "pretrain_window_1": 3.0 * one_pass * n,
        "pretrain_sequences": 3.0 * one_pass * 1024,
        "rollout_table": 1.0 * one_pass * n,
        "rollout_cached": 1.0 * one_pass * 256 * 64,
        "ppo_round": 5.0 * one_pass * n * (3 + 3 * 10),
    }.get(name)


# ---- asked for ------------------------------------------------------------------------------------------------------


def laboratory(told: Told, device: str) -> str | None:
    """Rows of the laboratory, once the package has one."""
    there = find_spec("mcot_torch.methods") is not None
    told.tell(there=there)
    print(
        "the laboratory is there, and has no row here yet"
        if there
        else "the laboratory is not there yet: nothing to measure"
    )
    return None


def profile(told: Told, device: str) -> str | None:
    """The 15 most expensive kernels of each stage of a short default run, and where the host waits for the device."""
    import torch
    from torch.profiler import ProfilerActivity

    import mcot_torch.runs.pipeline as pipeline
    from mcot_torch.cli import train

    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]

    def watch(stage: str) -> None:
        function = getattr(pipeline, stage)

        @wraps(function)
        def watched(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            with (
                warnings.catch_warnings(record=True) as seen,
                torch.profiler.profile(activities=activities) as profiler,
            ):
                warnings.simplefilter("always")
                if cuda:
                    torch.cuda.set_sync_debug_mode("warn")
                try:
                    result = function(*arguments, **named)
                finally:
                    if cuda:
                        torch.cuda.set_sync_debug_mode("default")
            seconds = time.perf_counter() - begin
            places = Counter(_place(w) for w in seen if "synchroniz" in str(w.message))
            told.tell(**{stage: {"seconds": round(seconds, 2), **_kernels(profiler, cuda), **_waits(places, cuda)}})
            print(stage, json.dumps(told.data[stage], indent=1), flush=True)
            return result

        setattr(pipeline, stage, watched)

    for stage in STAGES[:-1]:
        watch(stage)
    short = (
        "--pretrain.steps 40 --pretrain.steps_after_cut 20 --pretrain.transitions 20000000 --pretrain.path_length 64 "
        "--pretrain.threshold 1e-6 --search.rounds 10 --search.min_votes 1 --ppo.rounds 3 --ppo.path_length 64 "
        "--distill.label_walks 3 --distill.transitions 5000000 --distill.path_length 64 --distill.steps 50 --evaluation.walks 10 "
        "--evaluation.figures false --graph.epsilon 0.01 --graph.epsilon_max 0.03"
    )
    with tempfile.TemporaryDirectory() as folder:
        words = ["--run_dir", f"{folder}/run", "--trainer.accelerator", device, *short.split()]
        status = train(words)
    return f"train.py ended with status {status}" if status else None


def _place(warning: warnings.WarningMessage) -> str:
    path = Path(warning.filename)
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}:{warning.lineno}"


def _kernels(profiler: Any, cuda: bool) -> dict[str, Any]:
    def own(event: Any) -> float:
        return float(event.self_device_time_total if cuda else event.self_cpu_time_total)

    events = sorted(profiler.key_averages(), key=own, reverse=True)
    if cuda:
        events = [e for e in events if "cuda" in str(e.device_type).lower()]
    total = sum(map(own, events)) or 1.0
    top = [[e.key[:100], e.count, round(own(e) / 1e3, 3), round(own(e) / total, 3)] for e in events[:15]]
    return {"launches": sum(e.count for e in events), "busy_seconds": round(total / 1e6, 3), "top": top}


def _waits(places: Counter[str], cuda: bool) -> dict[str, Any]:
    return {"waits": sum(places.values()) if cuda else None, "waits_at": places.most_common(10)}


PARTS: dict[str, Callable[[Told, str], str | None]] = {
    "environment": environment,
    "pytest": tests,
    "smoke": smoke,
    "default": default,
    "gpu_yaml": gpu_yaml,
    "peaks": peaks,
    **{name: row_of(name) for name in ROWS},
    "laboratory": laboratory,
    "profile": profile,
    "torch_floor": torch_floor,
}


def main() -> int:
    """Run one part; the exit status is 0 where it passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_parts")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    told = Told(options.data)
    reason = PARTS[options.part](told, options.device)
    if reason:
        told.tell(reason=reason)
        print(f"{options.part}: {reason}")
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())

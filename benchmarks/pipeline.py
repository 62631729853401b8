"""`python train.py` as a user runs it: seconds in all, and where they go."""

from __future__ import annotations

import json
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import ROOT, Benchmark, Mark, Settings, Work, process, summary

_IMPORTS = "import mcot_torch.runs.config, mcot_torch.runs.pipeline, mcot_torch.report"


def call(words: list[str], threads: int) -> float:
    """Seconds of a Python process; its last words if it fails."""
    begin = time.perf_counter()
    process(*words, OMP_NUM_THREADS=str(threads))
    return time.perf_counter() - begin


def package(file: str, name: str) -> str:
    """Whose function it is: a library's, ours by folder or file, or Python's."""
    if file == "~":  # built in, and named by what it belongs to
        return "torch" if "torch" in name else "numpy" if "numpy" in name else "Python"
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].removesuffix(".py")
    if Path(file).is_relative_to(ROOT):
        return "/".join(Path(file).relative_to(ROOT).parts[:2])
    return "Python"


def own_times(profile: Path, most: int = 12) -> dict[str, list[dict[str, Any]]]:
    """Where the seconds of a profile went, own time only, so that they add up: by package, and the first functions."""
    packages: dict[str, float] = {}
    functions = []
    for (file, _, name), (_, calls, own, _, _) in pstats.Stats(str(profile)).stats.items():  # type: ignore[attr-defined]
        whose = package(file, name)
        packages[whose] = packages.get(whose, 0.0) + own
        functions.append({"where": f"{whose}: {name.strip('{}')}", "calls": calls, "own": own})
    shares = [{"where": whose, "own": own} for whose, own in packages.items()]
    first = {"packages": shares, "functions": functions}
    return {key: sorted(rows, key=lambda row: -row["own"])[:most] for key, rows in first.items()}


def default_run(settings: Settings) -> Benchmark:
    """The default configuration, or configs/smoke.yaml under --quick."""
    words = ["--config", "configs/smoke.yaml"] if settings.quick else []
    words += ["--trainer.accelerator", settings.device, "--trainer.threads", str(settings.threads)]
    seconds, parts, imports = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(1 if settings.quick else settings.runs):
            folder = Path(scratch) / f"run{turn}"
            seconds.append(call(["train.py", *words, "--run_dir", str(folder)], settings.threads))
            parts.append(json.loads((folder / "manifest.json").read_text())["seconds"])
            imports.append(call(["-c", _IMPORTS], settings.threads))
        profile = Path(scratch) / "profile"
        call(
            ["-m", "cProfile", "-o", str(profile), "train.py", *words, "--run_dir", f"{scratch}/run"], settings.threads
        )
        spots = own_times(profile)
    names = list(parts[0])
    entries = [summary(Work("python train.py", lambda: None, ours=True), seconds)]
    entries += [summary(Work(f"of which {name}", lambda: None, ours=True), [p[name] for p in parts]) for name in names]
    entries.append(summary(Work("of which starting Python and importing", lambda: None, ours=True), imports))
    rest = [max(0.0, s - sum(p.values()) - i) for s, p, i in zip(seconds, parts, imports, strict=True)]
    entries.append(summary(Work("of which the rest", lambda: None, ours=True, note="graph, checks, files"), rest))
    row = Benchmark("pipeline", "pipeline", f"python train.py {' '.join(words)}", "runs", entries)
    row.marks = [Mark("≤ 45 s", entries[0]["median"], 45.0, at_least=False)]
    row.data = {"profile": spots}
    return row


ROWS = {"pipeline": default_run}

"""`python train.py` as a user runs it: seconds in all, and where they go."""

from __future__ import annotations

import json
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.timing import ROOT, Mark, Row, Settings, Work, process, summary

_IMPORTS = "import mcot_torch.config, mcot_torch.pipeline, mcot_torch.report"


def call(words: list[str], threads: int) -> float:
    """Seconds of a Python process; its last words if it fails."""
    begin = time.perf_counter()
    process(*words, OMP_NUM_THREADS=str(threads))
    return time.perf_counter() - begin


def hot_spots(profile: Path, most: int = 14) -> list[dict[str, Any]]:
    """The package's functions in which most time passes, with all that they call."""
    found = []
    for (file, _, name), (_, calls, own, total, _) in pstats.Stats(str(profile)).stats.items():  # type: ignore[attr-defined]
        if "mcot_torch" in file and not name.startswith("<"):
            where = f"{Path(file).relative_to(ROOT)}: {name}" if Path(file).is_relative_to(ROOT) else f"{file}: {name}"
            found.append({"where": where, "calls": calls, "own": own, "total": total})
    return sorted(found, key=lambda spot: -spot["total"])[:most]


def default_run(settings: Settings) -> Row:
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
        spots = hot_spots(profile)
    names = list(parts[0])
    entries = [summary(Work("python train.py", lambda: None, ours=True), seconds)]
    entries += [summary(Work(f"of which {name}", lambda: None, ours=True), [p[name] for p in parts]) for name in names]
    entries.append(summary(Work("of which starting Python and importing", lambda: None, ours=True), imports))
    rest = [max(0.0, s - sum(p.values()) - i) for s, p, i in zip(seconds, parts, imports, strict=True)]
    entries.append(summary(Work("of which the rest", lambda: None, ours=True, note="graph, checks, files"), rest))
    row = Row("pipeline", "pipeline", f"python train.py {' '.join(words)}", "runs", entries)
    row.marks = [Mark("≤ 45 s", entries[0]["median"], 45.0, at_least=False)]
    row.data = {"hot_spots": spots}
    return row


ROWS = {"pipeline": default_run}

"""How a row is measured: peers and ours interleaved in one process, warm-up apart, medians and quartiles, JSON.

A row is a function `Settings -> Benchmark`. Its entries are `Work`s: calls that do a known amount of work each. `race` runs them
in turn, so that whatever disturbs the machine disturbs them all, and synchronises a GPU around each call.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from mcot_torch.errors import InputError
from mcot_torch.system.machine import settle

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Settings:
    """What every row is told."""

    device: str = "cpu"
    quick: bool = False
    threads: int = 1
    runs: int = 7
    nanogpt: Path | None = None

    def size(self, full: int, tiny: int) -> int:
        """A size, or its tiny stand-in under --quick."""
        return tiny if self.quick else full


@dataclass
class Work:
    """One entry of a row: `call` does `amount` units of work; `check` adds numbers of its own (an error, a share)."""

    name: str
    call: Callable[[], object]
    amount: float = 1.0
    ours: bool = False
    note: str = ""
    extra: dict[str, float] = field(default_factory=dict)


@dataclass
class Mark:
    """What the row must show: `value` against `limit`; a missing peer leaves `value` None."""

    text: str
    value: float | None
    limit: float
    at_least: bool = True

    @property
    def met(self) -> bool | None:
        """None where it was not measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Benchmark:
    """A table: one line an entry."""

    stage: str
    name: str
    setup: str
    unit: str  # of an entry's amount
    entries: list[dict[str, Any]]
    marks: list[Mark] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def entry(self, name: str) -> dict[str, Any] | None:
        """The entry of that name, if it was measured."""
        return next((e for e in self.entries if e["name"] == name), None)

    def ratio(self, ours: str, peer: str) -> float | None:
        """How many times more work a second ours does; None where either was not measured."""
        a, b = self.entry(ours), self.entry(peer)
        return a["rate"] / b["rate"] if a and b else None


def process(*words: str, **environment: str) -> str:
    """What a Python process prints; `RuntimeError` with its last words if it fails."""
    told = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {told.returncode}: {told.stderr.strip()[-300:]}")
    return told.stdout


def peak_gib() -> float:
    """Peak memory of this process."""
    unit = 2**20 if sys.platform != "darwin" else 2**30  # ru_maxrss counts KiB on Linux and bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def synchronise(device: str) -> None:
    """Wait for the GPU, so that the clock sees finished work."""
    if device == "cuda":
        torch.cuda.synchronize()


def race(works: list[Work], settings: Settings, warm_up: bool = True) -> list[dict[str, Any]]:
    """Seconds of each work, `settings.runs` times in turn, after one turn that does not count.

    As in `timeit`, no garbage is collected meanwhile: what one peer leaves behind is not charged to the next.
    """
    settle(settings.threads)  # importing QuantEcon starts numba's threads, and torch's pool grows with them
    gc.collect()
    gc.disable()
    try:
        return _race(works, settings, warm_up)
    finally:
        gc.enable()


def _race(works: list[Work], settings: Settings, warm_up: bool) -> list[dict[str, Any]]:
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(settings.runs + warm_up):
        for times, work in zip(seconds, works, strict=True):
            synchronise(settings.device)
            begin = time.perf_counter()
            work.call()
            synchronise(settings.device)
            if turn >= warm_up:
                times.append(time.perf_counter() - begin)
            gc.collect()  # a stage and its trainer hold each other, and with them every model that was trained
    return [summary(work, times) for work, times in zip(works, seconds, strict=True)]


def summary(work: Work, seconds: list[float]) -> dict[str, Any]:
    """An entry of a row: median, quartiles, rate."""
    low, median, high = (float(q) for q in np.quantile(seconds, [0.25, 0.5, 0.75]))
    return {
        "name": work.name,
        "ours": work.ours,
        "amount": work.amount,
        "seconds": seconds,
        "median": median,
        "quartiles": [low, high],
        "rate": work.amount / median,
        "note": work.note,
        **work.extra,
    }


def peer(name: str, skipped: list[str]) -> ModuleType | None:
    """A peer's module, or None and a word about it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        skipped.append(f'{name.split(".")[0]}: {error} (pip install "mcot_torch[bench]")')
        return None


def load_nanogpt(settings: Settings, skipped: list[str]) -> ModuleType | None:
    """nanoGPT's model.py from the path that the user gives; None and a word without one."""
    if settings.nanogpt is None:
        skipped.append("nanoGPT: give the path of its model.py (or of its checkout) with --nanogpt")
        return None
    path = settings.nanogpt / "model.py" if settings.nanogpt.is_dir() else settings.nanogpt
    if not path.is_file():
        raise InputError(f"--nanogpt {settings.nanogpt}: no model.py there; give nanoGPT's checkout or its model.py")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_bandwidth(device: str, gib: float = 1.0) -> float:
    """Bytes a second that a copy moves on this device (read + written): the peak that shares are given of."""
    source = torch.empty(int(gib * 2**30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        synchronise(device)
        begin = time.perf_counter()
        target.copy_(source)
        synchronise(device)
        times.append(time.perf_counter() - begin)
    return 2 * len(source) / statistics.median(times)


def machine() -> dict[str, Any]:
    """What was measured on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "memory_gib": round(pages, 1),
        "gpu": gpu,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


def save(row: Benchmark, settings: Settings, folder: Path) -> Path:
    """Write the row as JSON, whole or not at all."""
    told = {
        **asdict(row),
        "marks": [{**asdict(mark), "met": mark.met} for mark in row.marks],
        "machine": machine(),
        "settings": {**asdict(settings), "nanogpt": settings.nanogpt is not None},
        "date": time.strftime("%Y-%m-%d"),
    }
    path = folder / settings.device / f"{row.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(told, indent=1))
    temporary.replace(path)
    return path


def load(folder: Path) -> list[dict[str, Any]]:
    """Every row that was written under `folder`."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"))]


def number(x: float) -> str:
    """Three digits, with the letter that a reader expects: 1.53 ms, 27.1 M."""
    for limit, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(x) >= limit:
            return f"{x / limit:.3g}{letter}"
    return f"{x:.3g}"


def duration(seconds: float) -> str:
    """Three digits of a time."""
    for limit, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= 0.9995 * limit:  # what would read 1e+03 of the next unit
            return f"{seconds / limit:.3g} {unit}"
    return f"{seconds:.3g} s"


def extras(entry: dict[str, Any]) -> str:
    """What an entry tells beside its time."""
    told = [entry["note"]] if entry["note"] else []
    if "error" in entry:
        told.append(f"largest relative error {entry['error']:.1e}")
    if "peak_gib" in entry:
        told.append(f"peak memory {entry['peak_gib']:.1f} GiB")
    if "bandwidth_share" in entry:
        told.append(f"{entry['bandwidth_share']:.0%} of the copy bandwidth")
    return "; ".join(told)


def verdict(mark: dict[str, Any]) -> str:
    """What became of a mark, in words."""
    if mark["met"] is None:
        return "not measured"
    return "met" if mark["met"] else "**missed**"


def lines(row: dict[str, Any]) -> list[str]:
    """A row as text, for the terminal."""
    told = [f"{row['name']}: {row['setup']}"]
    first = next((e["rate"] for e in row["entries"] if e["ours"]), None)
    for e in row["entries"]:
        low, high = e["quartiles"]
        ratio = f"{first / e['rate']:10.3g} x" if first and not e["ours"] else " " * 12
        told.append(
            f"  {'*' if e['ours'] else ' '} {e['name']:<44} {duration(e['median']):>9} "
            f"[{duration(low)} – {duration(high)}] {number(e['rate']):>8} {row['unit']}/s {ratio}  {extras(e)}".rstrip()
        )
    for e in row["data"].get("exponents", []):
        told.append(f"    {e['stage']:<28} ~ {e['axis']}^{e['exponent']:.2f} ± {e['half_width']:.2f}")
    if row["settings"]["quick"]:
        return [
            *told,
            "    --quick: sizes too small for the marks",
            *(f"    skipped: {word}" for word in row["skipped"]),
        ]
    told += [f"    mark: {m['text']}: {value(m)} {verdict(m).replace('*', '')}" for m in row["marks"]]
    return told + [f"    skipped: {word}" for word in row["skipped"]]


def value(mark: dict[str, Any]) -> str:
    """What was measured for a mark."""
    return "–" if mark["value"] is None else f"{mark['value']:.3g}"

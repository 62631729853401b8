"""python -m benchmarks.on_gpu [--minutes 7] [--device cuda|cpu] [--part NAME ...] [--out results/gpu]: everything that is to
be known about this machine's GPU, in a strict time.

Each part runs in a process of its own, which is ended at its limit; the rest goes on. Results are written after each part, as
on_gpu.json and on_gpu.md. --device cpu rehearses the same parts at small sizes. `python -m benchmarks.on_gpu docs` writes
docs/gpu.md from the results that are kept in benchmarks/gpu_results.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import gpu_page

ROOT = Path(__file__).resolve().parent.parent
_LINES, _WIDTH = 40, 240  # of a failed part's output
_LEAST = 8.0  # seconds: with less left, a part is not begun


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        name: what --part calls it.
        limit: most seconds on a GPU.
        group: --part takes this name for all parts that share it.
        asked: run only where --part names it.
        command: what runs, for tests; None runs `benchmarks.gpu_parts`.
    """

    name: str
    limit: float
    group: str = ""
    asked: bool = False
    command: tuple[str, ...] | None = None


PARTS = (
    Part("environment", 30),
    Part("pytest", 90),
    Part("smoke", 60),
    Part("default", 100),
    Part("gpu_yaml", 200),
    Part("peaks", 25, "rows"),
    Part("pretrain_window_1", 25, "rows"),
    Part("pretrain_sequences", 25, "rows"),
    Part("rollout_table", 25, "rows"),
    Part("rollout_cached", 25, "rows"),
    Part("ppo_round", 25, "rows"),
    Part("distill", 25, "rows"),
    Part("laboratory", 20, asked=True),
    Part("profile", 90, asked=True),
    Part("torch_floor", 150, asked=True),
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    names = sorted({name for part in PARTS for name in (part.name, part.group) if name})
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.on_gpu",
        allow_abbrev=False,
        description="Check and measure this machine's GPU in a strict time.",
    )
    parser.add_argument(
        "what", nargs="?", choices=("docs",), help="docs: write docs/gpu.md from the results that are kept"
    )
    parser.add_argument("--minutes", type=float, default=7.0, help="for all parts together")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses the parts at small sizes"
    )
    parser.add_argument("--part", nargs="+", choices=names, metavar="NAME", help=f"only these: {', '.join(names)}")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), help="folder of on_gpu.json and on_gpu.md")
    options = parser.parse_args(argv)
    if options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes:g}; it must be above 0")
    return options


def chosen(names: Sequence[str] | None) -> list[Part]:
    """The parts of some names, in the order of their value; all that need not be asked for by default."""
    return [p for p in PARTS if (not p.asked if names is None else p.name in names or p.group in names)]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 if every part that ran passed, 1 if not."""
    options = parse(argv)
    if options.what == "docs":
        print(gpu_page.write())
        return 0
    begun = time.monotonic()
    deadline = begun + 60 * options.minutes
    parts = chosen(options.part)
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "device": options.device,
        "minutes": options.minutes,
        "small": options.device == "cpu",
        "parts": [{"name": part.name, "status": "not run", "why": "no time left"} for part in parts],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate(parts):
            left = deadline - time.monotonic()
            if left >= min(_LEAST, part.limit):
                result["parts"][number] = measure(part, min(part.limit, left), options.device, Path(folder))
            told = result["parts"][number]
            result["seconds"] = round(time.monotonic() - begun, 1)
            save(result, options.out)
            print(f"{part.name:<20} {told['status']:<10} {told.get('seconds', 0):6.1f} s", flush=True)
    return int(any(told["status"] in ("failed", "overran") for told in result["parts"]))


def measure(part: Part, limit: float, device: str, folder: Path) -> dict[str, Any]:
    """Run a part in a session of its own, and end all of it at its limit."""
    data, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    words = ("-m", "benchmarks.gpu_parts", part.name, "--device", device, "--data", str(data))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "MCOT_PART_BEGAN": str(time.time())}
    environment.setdefault("OMP_NUM_THREADS", "1")
    begin = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            part.command or (sys.executable, *words),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end(process)
    told: dict[str, Any] = {
        "name": part.name,
        "status": "overran" if status is None else "failed" if status else "passed",
        "seconds": round(time.monotonic() - begin, 1),
        "limit": round(limit, 1),
        "data": json.loads(data.read_text()) if data.exists() else {},
    }
    if status:
        told["why"] = told["data"].get("reason", f"ended with status {status}")
    if status is None:
        told["why"] = f"ended at its limit of {limit:.0f} s"
    if status != 0 or part.name == "gpu_yaml":
        told["output"] = last_lines(log.read_text(errors="replace"), _LINES * (1 + (status is None)))
    return told


def end(process: subprocess.Popen[bytes]) -> None:
    """End a part and everything that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_lines(text: str, n: int) -> list[str]:
    """The last lines of some output, as a terminal would show them, none of them long."""
    lines = [line.rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").splitlines()]
    return [line[:_WIDTH] for line in lines if line][-n:]


def save(result: dict[str, Any], folder: Path) -> None:
    """Write both files, each whole or not at all."""
    for name, text in (("on_gpu.json", json.dumps(result, indent=1)), ("on_gpu.md", gpu_page.report(result))):
        temporary = folder / f"{name}.tmp"
        temporary.write_text(text)
        temporary.replace(folder / name)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the part that runs is ended too
    sys.exit(main())

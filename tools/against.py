"""Time benchmark rows of this checkout against another one, interleaved, so that whatever disturbs the machine disturbs both.

    git worktree add /somewhere/old COMMIT
    python tools/against.py /somewhere/old pretrain_window_1 ppo_round pipeline [--turns 5]

Each turn runs every row once in each checkout, in a process of its own, the order alternating. The ratio is old time over
new time, of the medians over the turns: above 1 this checkout is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
STAGE_OF = {"pretrain_window_1": "pretrain", "pretrain_sequences": "pretrain", "ppo_round": "ppo"}


def seconds(checkout: Path, row: str, runs: int) -> float:
    """Median seconds of our first entry in a row, measured in `checkout` with one thread."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.run", STAGE_OF.get(row, row), "--runs", str(runs), "--out", folder]
        subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)
        entries = json.loads((Path(folder) / "cpu" / f"{row}.json").read_text())["entries"]
    return float(next(entry["median"] for entry in entries if entry["ours"]))


def main() -> None:
    """Print a line for each row: both medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("old", type=Path, help="checkout to compare with")
    parser.add_argument("rows", nargs="+", help="names of benchmark rows")
    parser.add_argument("--turns", type=int, default=5, help="how often each row is run in each checkout")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each entry inside a turn, at least 5")
    options = parser.parse_args()
    for row in options.rows:
        times: dict[Path, list[float]] = {options.old.resolve(): [], HERE: []}
        for turn in range(options.turns):
            for checkout in list(times)[:: 1 if turn % 2 else -1]:
                times[checkout].append(seconds(checkout, row, options.runs))
        old, new = (statistics.median(values) for values in times.values())
        print(f"{row}: old {old:.4g} s, new {new:.4g} s, old / new {old / new:.3f}, {options.turns} turns", flush=True)


if __name__ == "__main__":
    main()

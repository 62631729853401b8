"""Kill train.py at random moments of every stage, continue with the same command, compare with a run left alone.

    python tools/kills.py --kills 36 --seed 0

A process is forked for each start, from one that has imported everything and computed nothing: starting costs
milliseconds, so that kills can be many. The run that is compared with is `python train.py`, a process of its own. Each
kill names a stage; it comes a random share of that stage's measured time after the stage began. What is compared: every
model, metrics.json, the hard steps, evaluation.json and evaluation.csv bit for bit, every TensorBoard scalar with its
steps. Left out: seconds, rates and time/*.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mcot_torch.report  # noqa: F401  all that is heavy, before any fork
from mcot_torch import cli
from mcot_torch.runs.config import STAGES

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("setup", *STAGES, "evaluate")
SMALL = """\
graph: {n_clusters: 4, cluster_size: 5, epsilon: 0.02, epsilon_max: 0.1}
reasoner: {width: 16, n_layers: 1, n_heads: 2}
pretrain: {steps: 200, steps_after_cut: 100, transitions: 2000000, log_every: 10}
search: {rounds: 120}
ppo: {rounds: 40, epochs: 4, transitions: 2000, path_length: 16, log_every: 4}
distill: {transitions: 200000, path_length: 64, steps: 200, log_every: 20}
evaluation: {walks: 2000, figures: false}
trainer: {accelerator: cpu, save_every: 0.02}
"""
RUNS = {  # name -> (settings beside those above, share of the kills)
    "window 1": ([], 0.5),
    "RL mode": (["--search.mode", "rl", "--search.rounds", "40"], 0.25),
    "sequence": (
        [
            *(
                "--reasoner.window",
                "2",
                "--pretrain.batch_size",
                "512",
                "--pretrain.steps",
                "400",
                "--ppo.minibatches",
                "2",
                "--ppo.gamma",
                "0.5",
            ),
            *("--search.rounds", "40", "--distill.transitions", "200000"),
        ],
        0.25,
    ),
}


class Failure(AssertionError):
    """A run that did not survive."""


def command(folder: Path, extra: list[str]) -> list[str]:
    """The arguments of train.py, the same for every start of a run."""
    return ["--config", str(folder.parent / "small.yaml"), "--run_dir", str(folder), *extra]


def start(words: list[str], log: Path) -> int:
    """train.py with `words` in a forked process; returns its id."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train.py", *words]
    status = 99
    try:
        status = cli.train()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def under_way(folder: Path) -> str:
    """The stage that a process works at, by what lies in the folder."""
    if not (folder / "graph.npz").exists():
        return "setup"
    return next((stage for stage in STAGES if not (folder / stage / "metrics.json").exists()), "evaluate")


def ended(child: int) -> int | None:
    """The status of a process if it has ended, else None."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def strike(folder: Path, words: list[str], log: Path, place: str, delay: float, number: int) -> tuple[str, int] | None:
    """Start the run and send it signal `number`, `delay` seconds after the stage `place` began; None if it ended before.

    Returns where it was and the status it ended with.
    """
    child = start(words, log)
    while PLACES.index(under_way(folder)) < PLACES.index(place):
        if (status := ended(child)) is not None:
            raise Failure(f"{folder.name} ended with status {status} before {place}:\n{log.read_text()[-2000:]}")
        time.sleep(0.001)
    time.sleep(delay)
    if (status := ended(child)) is not None:
        if status:
            raise Failure(f"{folder.name} ended with status {status}:\n{log.read_text()[-2000:]}")
        return None
    where = under_way(folder)
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if number == signal.SIGKILL and code == 0:  # nobody survives it: the run had ended between the look and the signal
        return None
    return where, code


def result(folder: Path) -> dict[str, object]:
    """All that must come out the same, by name."""
    names = ("model.safetensors", "model.json", "metrics.json", "edges.csv", "graph.npz")
    found: dict[str, object] = {
        str(p.relative_to(folder)): p.read_bytes() for name in names for p in folder.rglob(name)
    }
    evaluation = json.loads((folder / "evaluation.json").read_text())
    del evaluation["seconds"]
    for row in evaluation["models"].values():
        del row["steps_per_second"]
    found["evaluation.json"] = evaluation
    lines = (folder / "evaluation.csv").read_text().splitlines()
    rate = lines[0].split(",").index("steps_per_second")
    found["evaluation.csv"] = [[x for i, x in enumerate(line.split(",")) if i != rate] for line in lines]
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    for tag in events.Tags()["scalars"]:
        if not tag.startswith("time/"):
            found[f"TensorBoard {tag}"] = [(e.step, np.float32(e.value).tobytes()) for e in events.Scalars(tag)]
    found["left behind"] = sorted(p.name for p in folder.rglob("*") if ".tmp" in p.name)
    return found


def compare(found: dict[str, object], expected: dict[str, object], name: str) -> None:
    """`Failure` that names the first thing that differs."""
    if found.keys() != expected.keys():
        raise Failure(f"{name}: {sorted(found.keys() ^ expected.keys())} only on one side")
    for key, value in expected.items():
        if found[key] != value:
            raise Failure(f"{name}: {key} differs from that of the run left alone")


def reference(folder: Path, extra: list[str]) -> dict[str, float]:
    """Run to the end in a process of its own; returns the seconds of each stage."""
    words = [sys.executable, "train.py", *command(folder, extra)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"{folder.name} ended with status {done.returncode}: {done.stderr}")
    return {"setup": 0.04, **json.loads((folder / "manifest.json").read_text())["seconds"]}


def campaign(kills: int, seed: int, number: int, home: Path, tell=print) -> Counter[tuple[str, str]]:
    """Kill and continue until `kills` are reached; returns how many struck each (run, stage).

    Raises:
        Failure: a run that ends otherwise than the one left alone.
    """
    draw = random.Random(seed)
    (home / "small.yaml").write_text(SMALL)
    struck: Counter[tuple[str, str]] = Counter()
    for name, (extra, share) in RUNS.items():
        whole = home / name.replace(" ", "-")
        seconds = reference(whole, extra)
        expected, runs = result(whole), 0
        while sum(n for (run, _), n in struck.items() if run == name) < round(kills * share):
            runs += 1
            folder, log = home / f"{whole.name}-{runs}", home / f"{whole.name}-{runs}.log"
            words, first = command(folder, extra), PLACES.index(draw.choice(PLACES[:3])) if runs > 1 else 0
            for place in PLACES[first:]:
                for _ in range(draw.choice((1, 1, 2))):
                    if PLACES.index(under_way(folder)) > PLACES.index(place):
                        continue
                    hit = strike(folder, words, log, place, draw.random() * seconds[place], number)
                    if hit is not None:
                        struck[name, hit[0]] += 1
                        check_end(*hit, log, number)
            child = start(words, log)
            _, status = os.waitpid(child, 0)
            if os.waitstatus_to_exitcode(status):
                raise Failure(f"{folder.name} does not continue:\n{log.read_text()[-2000:]}")
            compare(result(folder), expected, folder.name)
        mine = {place: struck[name, place] for place in PLACES}
        tell(f"{name:<9} {sum(mine.values())} kills in {runs} runs, all ended as the run left alone: {mine}")
    return struck


def check_end(where: str, status: int, log: Path, number: int) -> None:
    """A process that can, says how to go on."""
    if number == signal.SIGKILL or (where == "setup" and status == -number):  # before train.py had its first word
        assert status == -number, status
    else:
        line = log.read_text().splitlines()[-1]
        if status != 130 or line != "train.py: interrupted; the same command continues where this one stopped":
            raise Failure(f"in {where}, status {status}: {log.read_text()[-3000:]}")


def main() -> int:
    """Run, kill and compare as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=36)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        struck = campaign(options.kills, options.seed, signal.Signals[f"SIG{options.signal}"], Path(home))
    spared = [place for place in PLACES if not any(hit == place for _, hit in struck)]
    print(
        f"{sum(struck.values())} of {sum(struck.values())} SIG{options.signal} survived, spared: {', '.join(spared) or 'nothing'}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

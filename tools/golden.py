"""Record what the package does, and compare it later, bit for bit: a safety net for changes that must not change behaviour.

    python tools/golden.py record FILE.json [--only NAME ...] [--jobs 2]     # before the change
    python tools/golden.py compare FILE.json [--only NAME ...] [--jobs 2]    # after it; exit status 1 if anything differs

It sees the package from outside: the programs, the folders that they leave, the public names and the pages of docs/. No
module inside mcot_torch is imported, so modules can be moved freely. Of each run it keeps the hash of every tensor, the
metrics, the evaluation, every TensorBoard scalar, the names of the files and what is printed, without times, rates and
paths. With --only, `record` renews the named cases of FILE.json and leaves the others as they are.

Hashes of floating-point results differ between machines and between versions of torch. This is therefore a tool, not a
test, and FILE.json is not for the repository: record it from the old commit, on the machine where you compare.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]
Record = dict[str, Any]  # item -> what was seen, as JSON

TINY = """\
graph: {n_clusters: 4, cluster_size: 5, epsilon: 0.02, epsilon_max: 0.1}
reasoner: {kind: linear, width: 16}
pretrain: {steps: 200, steps_after_cut: 100, transitions: 2000000}
search: {rounds: 40}
ppo: {rounds: 6, epochs: 2, transitions: 4000, path_length: 16, log_every: 2}
distill: {transitions: 200000, path_length: 64, steps: 60}
evaluation: {walks: 20, figures: false}
"""
SWEEP = "{name: little, config: tiny.yaml, set: {trainer.accelerator: cpu}, grid: {seed: [0, 1]}}"
PLAIN = "--evaluation.figures false"
SHORT = f"{PLAIN} --pretrain.steps 200 --pretrain.steps_after_cut 100 --ppo.rounds 15 --distill.transitions 10000000"
WINDOW = (
    "--config tiny.yaml --reasoner.kind transformer --reasoner.window 4 --pretrain.batch_size 5 --pretrain.steps 40 "
    "--pretrain.steps_after_cut 20 --pretrain.threshold 0.0001 --ppo.gamma 0.5 --ppo.minibatches 2 --ppo.transitions 404 "
    "--search.min_votes 1 --search.max_steps 200 --search.rounds 12 --stages pretrain,search,ppo"
)
LISTS = f"{SHORT} --graph.n_clusters 16 --graph.epsilon 0.01 --pretrain.transitions 1000000000"

RUNS = {  # arguments of train.py
    "smoke": "--config configs/smoke.yaml",
    "default": PLAIN,
    "rooms": f"--config configs/rooms.yaml {SHORT}",
    "logic": f"--config configs/logic.yaml {SHORT}",
    "edge_list": f"--config configs/edge_list.yaml {SHORT}",
    "rl": "--config tiny.yaml --search.mode rl",
    "rl_transformer": "--config tiny.yaml --search.mode rl --search.rounds 12 --reasoner.kind transformer",
    "rl_sign": "--config tiny.yaml --search.mode rl --ppo.form sign",
    "window": WINDOW,
    "window_rl": f"{WINDOW} --search.mode rl",
    "outcome": "--config tiny.yaml --ppo.reward outcome",
    "outcome_stop": "--config tiny.yaml --ppo.reward outcome --ppo.target_kl 0.01 --ppo.transitions 4016",
    "sign": "--config tiny.yaml --ppo.form sign",
    "pairs": "--config tiny.yaml --reasoner.kind transformer --pretrain.data pairs --pretrain.transitions 20000",
    "gd": "--config tiny.yaml --pretrain.optimizer gd",
    "lists": f"{LISTS} --reasoner.kind linear",
    "lists_transformer": f"{LISTS} --reasoner.width 32 --stages pretrain,search,ppo",
    "student": "--config tiny.yaml --distill.student transformer",
    "two_ranks": "--config tiny.yaml --trainer.devices 2",
    "two_ranks_window": f"{WINDOW} --trainer.devices 2",
}

ERRORS = [  # programs and arguments that end with status 2 and one line
    *(
        f"train.py {words}"
        for words in (
            "--graph.n_cluster 8",
            "--learning_rate 1",
            "--confg a.yaml",
            "--graph 3",
            "ppo",
            "--graph.epsilon",
            "--seed 1.5",
            "--graph.jumps 1,x",
            "--overwrite perhaps",
            "--ppo.form clipped",
            "--reasoner.window 0",
            "--pretrain.threshold 1",
            "--evaluation.walks 1",
            "--trainer.save_every .inf",
            "--name a/b",
            "--stages=[]",
            "--stages pretrain,serach",
            "--stages pretrain,ppo",
            "--reasoner.kind linear --reasoner.window 2",
            "--pretrain.data pairs --reasoner.window 4",
            "--ppo.form sign",
            "--search.rounds 1",
            "--config none.yaml",
            "--config bad.yaml",
            "--config twice.yaml",
            "--graph.family edge_list --graph.path none.csv",
            "--graph.n_clusters 1",
            "--graph.epsilon 0.9",
            "--task.target cluster:99",
            "--task.start state:nowhere",
            "--run_dir full",
            "--trainer.accelerator cuda --json",
        )
    ),
    "evaluate.py",
    "evaluate.py nowhere",
    "evaluate.py full",
    "evaluate.py nowhere --wals 3",
    "evaluate.py nowhere --walks 1",
    "-m mcot_torch.assumptions none.csv",
    "-m mcot_torch.graphs convert none.csv out.npz",
    "-m mcot_torch.estimation traces none.jsonl",
    "-m mcot_torch.experiments nothing",
    "-m mcot_torch.sweep bad.yaml",
]
MODULES = ("experiments", "estimation", "graphs", "sweep", "assumptions")
HELPS = ["train.py --help", "evaluate.py --help", *(f"-m mcot_torch.{name} --help" for name in MODULES)]

PROGRAMS = [  # one after the other in one folder
    "-m mcot_torch.experiments list",
    "-m mcot_torch.graphs puzzles",
    "-m mcot_torch.assumptions examples/olympiad_steps.csv",
    "-m mcot_torch.graphs convert examples/olympiad_steps.csv graph.npz",
    "-m mcot_torch.graphs convert graph.npz graph.graphml",
    "-m mcot_torch.sweep sweep.yaml --jobs 1",
    "examples/puzzle_traces.py rooms traces.jsonl --traces 100",
    "-m mcot_torch.estimation traces traces.jsonl --out estimate",
]

TIMED = re.compile(r"(^|[._])(seconds|per_second)$|^(time|created|calls|git_commit|packages|versions|python|pieces)$")
SECONDS = re.compile(r" *\b[\d,]+(\.\d+)? ?(s|min|ms)\b")
CODE = re.compile(r"^```.*?^```", re.M | re.S)


# ---- seeing ------------------------------------------------------------------------------------------------------------


def untimed(value: Any) -> Any:
    """The same JSON value without the keys that hold times, rates, dates or facts of the machine."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if not TIMED.search(key)}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def masked(text: str, folder: Path) -> str:
    """A program's output with places and times replaced by words."""
    text = text.replace(str(folder), "FOLDER").replace(str(ROOT), "ROOT").replace(sys.prefix, "PYTHON")
    text = re.sub(r"\bline \d+, in (?=\w|<)", "line #, in ", text)
    return SECONDS.sub(" # s", text)


def digest(array: Any) -> str:
    """Type, shape and SHA-256 of an array."""
    return f"{array.dtype} {list(array.shape)} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


def seen_curves(folder: Path) -> Record:
    """TensorBoard tags of each kind, each with its number of points, and the values of what is no time."""
    events = EventAccumulator(
        str(folder), size_guidance=dict.fromkeys(("scalars", "images", "tensors", "histograms"), 0)
    )
    events.Reload()
    kinds = {"scalars": events.Scalars, "images": events.Images, "tensors": events.Tensors}
    tags = {kind: {tag: len(points(tag)) for tag in events.Tags()[kind]} for kind, points in kinds.items()}
    values = {
        tag: [[point.step, point.value] for point in events.Scalars(tag)]
        for tag in tags["scalars"]
        if not tag.startswith("time/")
    }
    return {"tags": tags, "values": values}


def seen_run(run: Path, curves: bool = True) -> Record:
    """What lies in the folder of a run."""
    seen: Record = {}
    files = sorted(path for path in run.rglob("*") if path.is_file())
    seen["files"] = [re.sub(r"tfevents\..*", "tfevents", str(path.relative_to(run))) for path in files]
    for path in files:
        name = str(path.relative_to(run))
        if path.suffix == ".safetensors":
            seen[name] = {key: digest(tensor.numpy()) for key, tensor in sorted(load_file(path).items())}
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                seen[name] = {key: digest(arrays[key]) for key in sorted(arrays)}
        elif path.suffix == ".json":
            seen[name] = untimed(json.loads(path.read_text()))
        elif name == "evaluation.csv":
            seen[name] = [untimed(row) for row in csv.DictReader(path.open(newline=""))]
        elif path.suffix in (".csv", ".png"):
            seen[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".yaml":
            seen[name] = path.read_text()
    if curves:
        seen["curves"] = seen_curves(run)
    return seen


class Folder:
    """A temporary working directory in which the programs of one case run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("configs", "examples"):
            (path / name).symlink_to(ROOT / name)
        (path / "full").mkdir()
        for name, text in {
            "tiny.yaml": TINY,
            "sweep.yaml": SWEEP,
            "bad.yaml": "graph:\n  n_cluster: 4\n",
            "twice.yaml": "seed: 1\nseed: 2\n",
            "full/notes.txt": "no run\n",
        }.items():
            (path / name).write_text(text)

    def start(self, words: str) -> subprocess.Popen[str]:
        """Start a program of the repository, with the arguments behind it."""
        first, *rest = words.split()
        program = [first] if first == "-m" else [str(ROOT / first)]
        variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120", "MPLBACKEND": "agg"}
        return subprocess.Popen(
            [sys.executable, *program, *rest],
            cwd=self.path,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, words: str) -> Record:
        """Run a program to its end: exit status and what it says."""
        process = self.start(words)
        out, err = process.communicate(timeout=600)
        return {"status": process.returncode, "stdout": masked(out, self.path), "stderr": masked(err, self.path)}

    def train(self, words: str, run_dir: str = "run") -> Record:
        """Run train.py into a folder."""
        return self.run(train_words(words, run_dir))


def train_words(words: str, run_dir: str = "run") -> str:
    """A command line of train.py for the CPU, without progress bars."""
    return f"train.py {words} --trainer.accelerator cpu --trainer.progress false --run_dir {run_dir}"


# ---- cases -------------------------------------------------------------------------------------------------------------


def one_run(words: str) -> Callable[[Folder], Record]:
    """The case of one run of train.py."""
    return lambda folder: folder.train(words) | seen_run(folder.path / "run")


def resume(folder: Folder) -> Record:
    """A run that SIGTERM stops in the middle of pretraining and that goes on ends where an undisturbed one does."""
    words = "--config tiny.yaml --pretrain.steps 3000 --trainer.save_every 0.05"
    folder.train(words, "whole")
    process = folder.start(train_words(words))
    while process.poll() is None and not (folder.path / "run/pretrain/state.safetensors").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    unfinished = not (folder.path / "run/pretrain/metrics.json").exists()
    told = {"status": process.returncode, "stderr": masked(err, folder.path), "unfinished": unfinished}
    continued = folder.train(words)
    whole, run = seen_run(folder.path / "whole", curves=False), seen_run(folder.path / "run", curves=False)
    names = sorted(name for name in {*whole, *run} - {"files", "config.yaml"} if whole.get(name) != run.get(name))
    return {"stopped": told, "continued": continued["status"], "differs from undisturbed": names, **run}


def evaluate(folder: Folder) -> Record:
    """evaluate.py on a run gives its evaluation.json again, and compares two runs."""
    words = f"--config configs/smoke.yaml {SHORT}"
    folder.train(words)
    folder.train(f"{words} --seed 1", "other")
    path = folder.path / "run/evaluation.json"
    before = untimed(json.loads(path.read_text()))
    again = folder.run("evaluate.py run")
    after = untimed(json.loads(path.read_text()))
    compared = folder.run("evaluate.py run other --json --out compared")
    compared["stdout"] = untimed(json.loads(compared["stdout"] or "null"))
    files = sorted(str(path.relative_to(folder.path)) for path in (folder.path / "compared").rglob("*"))
    return {"again": again, "same": before == after, "evaluation": after, "compared": compared, "files": files}


def programs(folder: Folder) -> Record:
    """The other programs, and the names of the files that they leave."""
    seen: Record = {words: folder.run(words) for words in PROGRAMS}
    for words in PROGRAMS:
        if "sweep" in words:  # prints a column of seconds, and lines when some time has passed
            del seen[words]["stdout"]
    with (folder.path / "runs/little/sweep.csv").open(newline="") as file:
        seen["sweep.csv"] = [untimed(row) for row in csv.DictReader(file)]
    seen["files"] = sorted(
        re.sub(r"tfevents\..*", "tfevents", str(path.relative_to(folder.path))) for path in folder.path.rglob("*")
    )
    return seen


def configurations(folder: Folder) -> Record:
    """What each YAML file of configs/ says with all defaults filled in."""
    files = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
    return {name: folder.run(f"train.py --config configs/{name} --print_config") for name in files}


def public_names(_: Folder) -> Record:
    """The names that `import mcot_torch` offers."""
    import mcot_torch

    assert Path(mcot_torch.__file__).is_relative_to(ROOT), f"{mcot_torch.__file__} is not of {ROOT}; set PYTHONPATH"
    return {
        "names": sorted(mcot_torch.__all__),
        "missing": [n for n in mcot_torch.__all__ if not hasattr(mcot_torch, n)],
    }


def anchors(_: Folder) -> Record:
    """The anchors of the headings of each page, to which links may point."""
    seen: Record = {}
    for page in sorted((ROOT / "docs").rglob("*.md")):
        headings = re.findall(r"^#+ +(.*)$", CODE.sub("", page.read_text()), re.M)
        slugs = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
        seen[str(page.relative_to(ROOT))] = [re.sub(r"[\s-]+", "-", slug) for slug in slugs]
    return seen


CASES: dict[str, Callable[[Folder], Record]] = {
    **{name: one_run(words) for name, words in RUNS.items()},
    "resume": resume,
    "evaluate": evaluate,
    "programs": programs,
    "errors": lambda folder: {words: folder.run(words) for words in ERRORS},
    "helps": lambda folder: {words: folder.run(words) for words in HELPS},
    "configurations": configurations,
    "public_names": public_names,
    "anchors": anchors,
}


def see(name: str) -> Record:
    """Run one case in a folder of its own, and tell on stderr how long it took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="golden-") as place:
        record = CASES[name](Folder(Path(place).resolve()))
    print(
        f"{name:18} {time.monotonic() - began:6.1f} s  status {record.get('status', '-')}", file=sys.stderr, flush=True
    )
    return json.loads(json.dumps(record))  # as it will be read back


# ---- comparing ---------------------------------------------------------------------------------------------------------


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ: the item, the old and the new value; texts line by line."""
    if isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        old, new = old.split("\n"), new.split("\n")
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key, "(none)"), new.get(key, "(none)"), f"{where} / {key}" if where else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{where} [{index}]")
    elif isinstance(old, list) and isinstance(new, list) and all(isinstance(value, str) for value in old + new):
        gone, come = [value for value in old if value not in new], [value for value in new if value not in old]
        yield where, gone or f"{len(old)} entries", come or f"{len(new)} entries"
    elif json.dumps(old) != json.dumps(new):  # NaN equals NaN here
        yield where, old, new


def main() -> int:
    """Record or compare; 0 if nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help=f"some of: {', '.join(CASES)}")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (2)")
    parser.add_argument("--most", type=int, default=8, help="differences of a case that are printed (8)")
    options = parser.parse_args()
    names = options.only or list(CASES)
    if options.action == "compare" and not options.file.exists():
        parser.error(f"{options.file} does not exist; record it first, from the old commit")
    known = options.file.exists() and (options.action == "compare" or options.only)
    old: Record = json.loads(options.file.read_text()) if known else {}
    differing = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for name, seen in zip(names, pool.map(see, names), strict=True):
            if options.action == "record":
                old[name] = seen
                options.file.write_text(json.dumps(old, indent=1) + "\n")
                continue
            found = list(differences(old.get(name, "(none)"), seen))
            differing += bool(found)
            for where, before, after in found[: options.most]:
                print(f"{name}: {where}\n  old: {str(before)[:300]}\n  new: {str(after)[:300]}", flush=True)
            if len(found) > options.most:
                print(f"{name}: {len(found) - options.most} more", flush=True)
    if options.action == "compare":
        print(f"{differing} of {len(names)} cases differ" if differing else f"{len(names)} cases, nothing differs")
    return int(differing > 0)


if __name__ == "__main__":
    raise SystemExit(main())

"""The folder of a run: configuration, manifest, finished stages, TensorBoard. Written whole or not at all.

A stage is finished when its metrics.json is there, which is written last. Until then the stage's own state file lets it
go on. TensorBoard's events are a view of the logged lines: they are rewritten from them whenever a run is taken up
again, so that a killed run leaves neither gaps nor doubles.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from mcot_torch.errors import InputError
from mcot_torch.reasoners import Reasoner, save_reasoner
from mcot_torch.runs.config import STAGES, Config, config_hash, differences, load_config, to_yaml
from mcot_torch.runs.events import start_events
from mcot_torch.system.files import digest, read_json, refuse_links, write_text
from mcot_torch.system.ranks import is_first
from mcot_torch.training.loop import Context
from mcot_torch.training.result import Metrics
from mcot_torch.training.state import check_history, load_state
from mcot_torch.version import __version__

__all__ = ["RunFolder"]

_MANIFEST = {
    "mcot_torch": str,
    "python": str,
    "packages": dict,
    "seed": int,
    "config_hash": str,
    "graph": str,
    "device": str,
    "threads": int,
    "created": str,
    "calls": list,
    "seconds": dict,
    "pieces": dict,
}
_PIECES = ("model.json", "model.safetensors", "edges.csv", "graph.npz", "metrics.json")  # of a finished stage


class RunFolder:
    """runs/<name>, opened for one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: SummaryWriter | None = None

    # ---- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path, config: Config, command: list[str], graph: str, device: str) -> RunFolder:
        """Make the folder or take it up again, `graph` being its fingerprint.

        Raises:
            InputError: it holds another configuration (unless `config.overwrite`), or something that is no run.
        """
        folder = cls(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; give another --run_dir")
        foreign = path.is_dir() and any(not file.name.endswith(".tmp") for file in path.iterdir())
        if foreign and not (path / "config.yaml").exists():
            raise InputError(f"{path} is not empty and not a run folder; give another --run_dir")
        refuse_links(path)
        for half in path.rglob("*.tmp*"):  # what a killed process was writing; safetensors calls it .tmpXXXXXX
            half.unlink()
        if (path / "config.yaml").exists():
            folder._compare(config, graph)
        write_text(path / "config.yaml", to_yaml(config))
        folder._write_manifest(config, command, graph, device)
        return folder

    def _compare(self, config: Config, graph: str) -> None:
        """Refuse what is not the same run, or with `config.overwrite` delete it."""
        cure = "use --overwrite true to replace it, or another --name"
        try:
            for key, (there, here) in differences(self.config(), config).items():
                raise InputError(f"{self.path} holds a run with {key} = {there!r}, not {here!r}; {cure}")
            if (self.path / "manifest.json").exists() and (old := self.manifest()["graph"]) != graph:
                raise InputError(
                    f"{self.path} holds a run on the graph {old}, and {_source(config)} is {graph}; {cure}"
                )
        except InputError:
            if not config.overwrite:
                raise
            self._clear()

    def config(self) -> Config:
        """The configuration that the run was made with."""
        path = self.path / "config.yaml"
        if not path.exists():
            raise InputError(f"{self.path} holds no run: config.yaml is missing; train.py makes one")
        return load_config(path)

    def _clear(self) -> None:
        """Delete what a run writes, and nothing else."""
        patterns = [
            "manifest.json",  # first: what is left of a run without one is no run
            *(f"{stage}/*" for stage in STAGES),
            *("events.out.tfevents*", "evaluation.*", "report.html", "graph.npz", "figures/*"),
        ]
        for pattern in patterns:
            for file in self.path.glob(pattern):
                file.unlink()

    def _write_manifest(self, config: Config, command: list[str], graph: str, device: str) -> None:
        old = self.manifest() if (self.path / "manifest.json").exists() else {}
        packages = ("torch", "numpy", "scipy", "lightning", "safetensors", "jsonargparse")
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        machine = {
            "mcot_torch": __version__,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in packages},
            "device": device,
            "threads": torch.get_num_threads(),
            "git_commit": _git_commit(),
        }
        manifest = {
            **machine,
            "seed": config.seed,
            "config_hash": config_hash(config),
            "graph": graph,
            "created": old.get("created", now),
            "calls": [*old.get("calls", []), {"command": command, "time": now}],
            "seconds": old.get("seconds", {}),
            "pieces": old.get("pieces", {}),
        }
        for key, value in machine.items():  # a run that went on elsewhere says so
            if old and old.get(key) != value:
                manifest["calls"][-1].setdefault("before", {})[key] = old.get(key)
        self._save_manifest(manifest)

    def _save_manifest(self, manifest: dict[str, Any]) -> None:
        write_text(self.path / "manifest.json", json.dumps(manifest, indent=2))

    def manifest(self) -> dict[str, Any]:
        """manifest.json, with every field of its type."""
        path = self.path / "manifest.json"
        manifest = read_json(path)
        for key, kind in _MANIFEST.items():
            if not isinstance(manifest.get(key), kind):
                raise InputError(
                    f"{path}: {key} is {str(manifest.get(key))[:40]!r}, not a {kind.__name__}; the run is damaged or of an "
                    "older version: train it again under another --name"
                )
        if not all(isinstance(x, (int, float)) for x in manifest["seconds"].values()):
            raise InputError(f"{path}: seconds holds what is no number")
        if not all(isinstance(x, dict) for x in manifest["pieces"].values()):
            raise InputError(f"{path}: pieces holds what is no list of files")
        return manifest

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Note how long a stage took in this process, the first of its ranks."""
        if not is_first():
            return
        manifest = self.manifest()
        manifest["seconds"][stage] = round(manifest["seconds"].get(stage, 0.0) + seconds, 2)
        self._save_manifest(manifest)

    def check_configuration(self, config: Config) -> None:
        """`InputError` unless `config`, read from config.yaml, decides the same numbers as when the run was made."""
        made, found = self.manifest()["config_hash"], config_hash(config)
        if made != found:
            raise InputError(
                f"{self.path / 'config.yaml'} is not the configuration of this run: its hash is {found}, the manifest's {made}; "
                f"put the values back that it was made with"
            )

    def check_graph(self, fingerprint: str) -> None:
        """`InputError` unless graph.npz is the graph that the run was made on."""
        made = self.manifest()["graph"]
        if made != fingerprint:
            raise InputError(
                f"{self.path / 'graph.npz'} is not the graph of this run: its fingerprint is {fingerprint}, the manifest's "
                f"{made}; the train.py command of manifest.json writes it again"
            )

    # ---- stages -------------------------------------------------------------------------------------------------

    def stage(self, name: str) -> Path:
        """The folder of a stage."""
        return self.path / name

    def is_finished(self, name: str) -> bool:
        """Whether a stage has run to its end."""
        return (self.stage(name) / "metrics.json").exists()

    def keep(self, name: str, model: Reasoner) -> None:
        """Save a stage's model; of several ranks, which hold the same one, the first does."""
        if is_first():
            save_reasoner(model, self.stage(name))

    def finish(self, name: str, history: list[Metrics], **summary: Any) -> None:
        """Mark a stage finished; its models must be saved before. The manifest notes the digest of each of its files."""
        path = self.stage(name) / "metrics.json"
        text = json.dumps({**summary, "history": history}, indent=1)
        pieces = {file: digest(self.stage(name) / file) for file in _PIECES if (self.stage(name) / file).exists()}
        manifest = self.manifest()
        manifest["pieces"][name] = {**pieces, path.name: hashlib.sha256(text.encode()).hexdigest()}
        self._save_manifest(manifest)
        write_text(path, text)
        (self.stage(name) / "state.safetensors").unlink(missing_ok=True)

    def check_pieces(self, name: str) -> None:
        """`InputError` unless each file of a finished stage is the one that this run wrote."""
        noted = self.manifest()["pieces"].get(name, {})
        for file in _PIECES:
            path = self.stage(name) / file
            if digest(path) != noted.get(file, ""):
                raise InputError(
                    f"{path} is not the file that this run wrote there: its digest is not the manifest's; put that one "
                    f"back, or delete {self.stage(name)} and let the train.py command of manifest.json make it again"
                )

    def metrics(self, name: str) -> dict[str, Any]:
        """What `finish` wrote."""
        path = self.stage(name) / "metrics.json"
        metrics = read_json(path)
        try:
            check_history(metrics.get("history"))
            if name == "search" and not isinstance(metrics.get("transitions"), int):
                raise ValueError("it does not say how many transitions search took")
        except ValueError as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
        return metrics

    def history(self, name: str) -> list[Metrics]:
        """The lines a stage has logged: all of a finished one, those up to the last state of an unfinished one."""
        if self.is_finished(name):
            return self.metrics(name)["history"]
        state = load_state(self.stage(name) / "state.safetensors")
        return state[1].get("history", []) if state else []

    def context(self, name: str, config: Config, probe: Callable | None = None) -> Context:
        """What a stage function needs to know of this run."""
        report = (lambda line: self.log(name, line)) if is_first() else None
        return Context(config.seed, self.stage(name), config.trainer, probe, report)

    # ---- TensorBoard --------------------------------------------------------------------------------------------

    @property
    def writer(self) -> SummaryWriter:
        """The one event file, made anew from the logged lines when a process first asks for it."""
        if self._writer is None:
            for file in self.path.glob("events.out.tfevents*"):
                file.unlink()
            self._writer = SummaryWriter(str(self.path))
            start_events(self._writer, self.config(), self.manifest())
            for stage in STAGES:
                for line in self.history(stage):
                    self.log(stage, line)
        return self._writer

    def log(self, stage: str, line: Metrics) -> None:
        """Show one logged line in TensorBoard as `stage/name`, a rate as `time/stage_name`."""
        for key, value in line.items():
            if key != "step":
                tag = f"time/{stage}_{key.removeprefix('time/')}" if key.startswith("time/") else f"{stage}/{key}"
                self.writer.add_scalar(tag, value, int(line["step"]))

    def close(self) -> None:
        """Flush TensorBoard's events."""
        if self._writer is not None:
            self._writer.close()


def _source(config: Config) -> str:
    """Where the graph comes from, for people."""
    return f"that of {config.graph.path} now" if config.graph.path else "that of this version"


def _git_commit() -> str | None:
    """The commit of the checkout that the package runs from, if it runs from one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    result = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or None

"""The folder of a run: configuration, manifest, finished stages, TensorBoard. Written whole or not at all.

A stage is finished when its metrics.json is there, which is written last. Until then the stage's own state file lets it
go on. TensorBoard's events are a view of the logged lines: they are rewritten from them whenever a run is taken up
again, so that a killed run leaves neither gaps nor doubles.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mcot_torch.config import STAGES, Config, config_hash, differences, load_config, to_yaml
from mcot_torch.distributed import is_first
from mcot_torch.errors import InputError
from mcot_torch.reasoners import Reasoner
from mcot_torch.training import Context, Metrics, load_state
from mcot_torch.version import __version__

__all__ = ["RunFolder", "read_json", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """The JSON in a file; `InputError` names the file and what is wrong."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


class RunFolder:
    """runs/<name>, opened for one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: SummaryWriter | None = None

    # ---- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path, config: Config, command: list[str], graph_fingerprint: str) -> RunFolder:
        """Make the folder or take it up again.

        Raises:
            InputError: it holds another configuration (unless `config.overwrite`), or something that is no run.
        """
        folder = cls(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; give another --run_dir")
        if path.is_dir() and any(path.iterdir()) and not (path / "config.yaml").exists():
            raise InputError(f"{path} is not empty and not a run folder; give another --run_dir")
        if (path / "config.yaml").exists() and not config.overwrite:
            folder._compare(config)
        if config.overwrite:
            folder._clear()
        write_text(path / "config.yaml", to_yaml(config))
        folder._write_manifest(config, command, graph_fingerprint)
        return folder

    def _compare(self, config: Config) -> None:
        for key, (there, here) in differences(self.config(), config).items():
            raise InputError(
                f"{self.path} holds a run with {key} = {there!r}, not {here!r}; "
                f"use --overwrite true to replace it, or another --name"
            )

    def config(self) -> Config:
        """The configuration that the run was made with."""
        path = self.path / "config.yaml"
        if not path.exists():
            raise InputError(f"{self.path} holds no run: config.yaml is missing; train.py makes one")
        return load_config(path)

    def _clear(self) -> None:
        """Delete what a run writes, and nothing else."""
        patterns = [f"{stage}/*" for stage in STAGES] + [
            "events.out.tfevents*",
            "evaluation.*",
            "graph.npz",
            "figures/*",
        ]
        for pattern in patterns:
            for file in self.path.glob(pattern):
                file.unlink()

    def _write_manifest(self, config: Config, command: list[str], graph_fingerprint: str) -> None:
        path = self.path / "manifest.json"
        old = read_json(path) if path.exists() and not config.overwrite else {}
        packages = ("torch", "numpy", "scipy", "lightning", "safetensors", "jsonargparse")
        manifest = {
            "mcot_torch": __version__,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in packages},
            "seed": config.seed,
            "config_hash": config_hash(config),
            "graph": graph_fingerprint,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
            "git_commit": _git_commit(),
            "created": old.get("created", time.strftime("%Y-%m-%dT%H:%M:%S%z")),
            "calls": [*old.get("calls", []), {"command": command, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}],
            "seconds": old.get("seconds", {}),
        }
        write_text(path, json.dumps(manifest, indent=2))

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Note how long a stage took in this process, the first of its ranks."""
        if not is_first():
            return
        manifest = read_json(self.path / "manifest.json")
        manifest["seconds"][stage] = round(manifest["seconds"].get(stage, 0.0) + seconds, 2)
        write_text(self.path / "manifest.json", json.dumps(manifest, indent=2))

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
            model.save(self.stage(name))

    def finish(self, name: str, history: list[Metrics], **summary: Any) -> None:
        """Mark a stage finished; its models must be saved before."""
        write_text(self.stage(name) / "metrics.json", json.dumps({**summary, "history": history}, indent=1))
        (self.stage(name) / "state.safetensors").unlink(missing_ok=True)

    def metrics(self, name: str) -> dict[str, Any]:
        """What `finish` wrote."""
        return read_json(self.stage(name) / "metrics.json")

    def history(self, name: str) -> list[Metrics]:
        """The lines a stage has logged: all of a finished one, those up to the last state of an unfinished one."""
        if self.is_finished(name):
            return self.metrics(name)["history"]
        state = load_state(self.stage(name) / "state.safetensors")
        return state[1]["history"] if state else []

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

    def log_result(self, config: Config, metrics: Metrics) -> None:
        """The final metrics beside the configuration, for TensorBoard's HPARAMS tab."""
        parts = {key: value if isinstance(value, dict) else {"": value} for key, value in asdict(config).items()}
        flat = {f"{key}.{inner}".strip("."): value for key, part in parts.items() for inner, value in part.items()}
        flat = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in flat.items()}
        events = self.writer._get_file_writer()
        for summary in hparams(flat, metrics):
            events.add_summary(summary)
        for key, value in metrics.items():
            self.writer.add_scalar(key, value, 0)

    def close(self) -> None:
        """Flush TensorBoard's events."""
        if self._writer is not None:
            self._writer.close()


def _git_commit() -> str | None:
    """The commit of the checkout that the package runs from, if it runs from one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    result = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or None

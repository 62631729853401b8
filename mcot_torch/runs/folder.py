"""The folder of a run: paths, ownership, finished stages. Files are written whole or not at all.

A stage is finished when its metrics.json is there, which is written last. Until then the stage's own state file lets it
go on. `manifest.py` holds what manifest.json says, `digests.py` checks the files of a stage, `events.py` writes TensorBoard's
events.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mcot_torch.errors import InputError
from mcot_torch.reasoners import Reasoner, save_reasoner
from mcot_torch.runs.config import STAGES, Config, config_hash, differences, load_config, to_yaml
from mcot_torch.runs.digests import check_digests, stage_digests
from mcot_torch.runs.events import fresh_writer, log_line, start_events
from mcot_torch.runs.manifest import check_format, new_manifest, read_manifest, write_manifest
from mcot_torch.system.files import read_json, refuse_links, write_text
from mcot_torch.system.ranks import is_first
from mcot_torch.training.loop import Context
from mcot_torch.training.result import Cost, Metrics
from mcot_torch.training.state import check_history, load_state

__all__ = ["RunFolder"]


class RunFolder:
    """The folder of one run, opened for one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: SummaryWriter | None = None

    # ---- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: Path, config: Config, command: list[str], graph: str, device: str) -> RunFolder:
        """Make the folder of a new run, or open that of an earlier one to continue it; `graph` is the fingerprint of its graph.

        Raises:
            InputError: it holds another configuration (unless `config.overwrite`), a run of a newer format, or something
                that is no run.
        """
        folder = cls(path)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; give another --run_dir")
        foreign = path.is_dir() and any(not file.name.endswith(".tmp") for file in path.iterdir())
        if foreign and not (path / "config.yaml").exists():
            raise InputError(f"{path} is not empty and not a run folder; give another --run_dir")
        refuse_links(path)
        folder.check_format()
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
        self._save_manifest(new_manifest(old, config, command, graph, device))

    def _save_manifest(self, manifest: dict[str, Any]) -> None:
        write_manifest(self.path / "manifest.json", manifest)

    def manifest(self) -> dict[str, Any]:
        """manifest.json, with every field of its type."""
        return read_manifest(self.path / "manifest.json")

    def check_format(self) -> None:
        """Raise `InputError` if the run is of a format that this version does not know."""
        check_format(self.path / "manifest.json")

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
        """Mark a stage finished; its models must be saved before. The manifest notes the digest of each of its files.

        Args:
            name: the stage.
            history: its logged lines.
            summary: more entries of metrics.json, among them `cost`, the fields of the stage's `Cost`.
        """
        text = json.dumps({**summary, "history": history}, indent=1)
        manifest = self.manifest()
        manifest["pieces"][name] = stage_digests(self.stage(name), text)
        self._save_manifest(manifest)
        write_text(self.stage(name) / "metrics.json", text)
        (self.stage(name) / "state.safetensors").unlink(missing_ok=True)

    def check_files(self, name: str) -> None:
        """`InputError` unless each file of a finished stage is the one that this run wrote."""
        check_digests(self.stage(name), self.manifest()["pieces"].get(name, {}))

    def metrics(self, name: str) -> dict[str, Any]:
        """What `finish` wrote."""
        path = self.stage(name) / "metrics.json"
        metrics = read_json(path)
        try:
            check_history(metrics.get("history"))
            if name == "search" and not isinstance(metrics.get("transitions"), int):
                raise ValueError("it does not say how many transitions search took")
            if "cost" in metrics:  # runs of version 0.1 have none
                _check_cost(metrics["cost"])
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
            self._writer = fresh_writer(self.path)
            start_events(self._writer, self.config(), self.manifest())
            for stage in STAGES:
                for line in self.history(stage):
                    self.log(stage, line)
        return self._writer

    def log(self, stage: str, line: Metrics) -> None:
        """Show one logged line in TensorBoard as `stage/name`, a rate as `time/stage_name`."""
        log_line(self.writer, stage, line)

    def close(self) -> None:
        """Flush TensorBoard's events."""
        if self._writer is not None:
            self._writer.close()


def _check_cost(cost: object) -> None:
    """Raise `ValueError` unless `cost` holds the fields of a `Cost`, each a count."""
    names = {field.name for field in fields(Cost)}
    if not isinstance(cost, dict) or set(cost) != names:
        raise ValueError(f"its cost must hold {', '.join(sorted(names))}")
    for name, value in cost.items():
        if type(value) is not int or not 0 <= value < 2**63:
            raise ValueError(f"its cost.{name} is no whole number from 0 to 2^63")


def _source(config: Config) -> str:
    """Where the graph comes from, for people."""
    return f"that of {config.graph.path} now" if config.graph.path else "that of this version"

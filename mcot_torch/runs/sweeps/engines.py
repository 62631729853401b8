"""Carrying out a sweep's runs, several at a time: local processes, or Ray Tune on this machine or a cluster.

A run is a train.py process of its own in both, with as many CPU threads as its configuration says. What it prints goes to
logs/<run>.txt. A run that fails is told and does not stop the others; when this process ends, its runs save and end.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcot_torch.errors import InputError
from mcot_torch.runs.config import Config, differences, resolve_run_dir, to_yaml
from mcot_torch.runs.folder import RunFolder
from mcot_torch.runs.sweeps.spec import Sweep, SweepPoint
from mcot_torch.system.files import write_text
from mcot_torch.system.launch import child_command, child_environment

__all__ = ["ENGINES", "default_jobs", "is_done", "local", "ray"]

_TRAIN = "mcot_torch.cli:train"  # entry point of a run's process

Tell = Callable[[SweepPoint, int], None]
"""Called with a run that has ended and its exit status."""


def cpus_of(config: Config) -> int:
    """CPU threads that a run keeps busy."""
    return config.trainer.threads * config.trainer.devices


def default_jobs(runs: Sequence[SweepPoint]) -> int:
    """As many runs at a time as this machine has CPUs for."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // max(cpus_of(run.config) for run in runs))


def is_done(run: SweepPoint) -> bool:
    """Whether a run's folder holds the end of this very run."""
    folder = RunFolder(resolve_run_dir(run.config))
    return (
        (folder.path / "evaluation.json").exists()
        and all(folder.is_finished(stage) for stage in run.config.stages)
        and not differences(folder.config(), run.config)
    )


def _start(
    folder: Path, name: str, config: str, cpus: int, variables: dict[str, str], cwd: str | None = None
) -> subprocess.Popen[bytes]:
    """train.py on one run of the sweep in `folder`, in a session of its own: Ctrl-C comes once, through this process."""
    file, log = folder / "configs" / f"{name}.yaml", folder / "logs" / f"{name}.txt"
    write_text(file, config)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as out:
        return subprocess.Popen(
            child_command("train.py", ["--config", str(file)], _TRAIN),
            env={**child_environment(), "OMP_NUM_THREADS": str(cpus), **variables},
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def local(sweep: Sweep, runs: Sequence[SweepPoint], jobs: int, tell: Tell) -> None:
    """`jobs` processes at a time on this machine; several GPUs are taken in turn."""
    import torch

    gpus = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    waiting, running = list(runs), dict[int, tuple[SweepPoint, subprocess.Popen[bytes]]]()
    try:
        while waiting or running:
            for slot in sorted(set(range(jobs)) - set(running)):
                if waiting:
                    run = waiting.pop(0)
                    gpu = (
                        {"CUDA_VISIBLE_DEVICES": names[slot % gpus]} if gpus and run.config.trainer.devices == 1 else {}
                    )
                    running[slot] = (run, _start(sweep.folder, run.name, to_yaml(run.config), cpus_of(run.config), gpu))
            time.sleep(0.05)
            for slot, (run, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    tell(run, process.returncode)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def ray(sweep: Sweep, runs: Sequence[SweepPoint], jobs: int, tell: Tell) -> None:
    """Ray Tune: a trial a run. RAY_ADDRESS names a cluster, whose machines must share the folder; else Ray starts here."""
    try:
        import ray as engine
        from ray import tune
    except ImportError:
        raise InputError('--engine ray needs Ray; pip install "mcot_torch[sweep]", or use --engine local') from None
    by_name, cpus = {run.name: run for run in runs}, max(cpus_of(run.config) for run in runs)
    folder = sweep.folder.resolve()  # a trial runs in a folder of its own
    texts = {run.name: to_yaml(run.config) for run in runs}

    def trial(parameters: dict[str, Any]) -> None:
        name = parameters["run"]
        process = _start(folder, name, texts[name], cpus, {}, parameters["cwd"])
        try:
            status = process.wait()
        finally:
            process.terminate()
        tune.report({"status": status})

    class Watch(tune.Callback):
        """Passes on which trials have ended. Ray saves its callbacks by pickling them, and a progress bar cannot be."""

        def __init__(self, ended: Callable[[str, int], None]) -> None:
            self.ended = ended

        def __getstate__(self) -> dict[str, Any]:
            return {}

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.ended(trial.config["run"], trial.last_result["status"])

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.ended(trial.config["run"], 1)

    own = "RAY_ADDRESS" not in os.environ
    size: dict[str, Any] = {"num_cpus": jobs * cpus, "include_dashboard": False} if own else {}
    with _environment(_QUIET_RAY):
        engine.init(logging_level=logging.ERROR, log_to_driver=False, **size)
        try:
            gpus = engine.cluster_resources().get("GPU", 0.0)
            space = {"run": tune.grid_search([run.name for run in runs]), "cwd": os.getcwd()}
            tune.Tuner(
                tune.with_resources(trial, {"cpu": cpus, "gpu": min(1.0, gpus / jobs)}),
                param_space=space,
                tune_config=tune.TuneConfig(max_concurrent_trials=jobs),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(folder / "ray"),
                    verbose=0,
                    callbacks=[Watch(lambda name, code: tell(by_name[name], code))],
                ),
            ).fit()
        finally:
            engine.shutdown()


_QUIET_RAY = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run logs to TensorBoard itself
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Ray's own table and boxes
}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in variables}
    os.environ |= variables
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


ENGINES = {"local": local, "ray": ray}

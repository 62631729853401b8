"""The rim around the algorithms: Lightning drives the device and the precision; this file does the rest.

A stage is a `Stage` (a LightningModule with manual optimisation) over a dataset addressed by step. `fit` runs it, shows
its bar, saves its state every few seconds and continues from the last state it finds. A state is one safetensors file
(weights, optimiser, and JSON in its header), renamed into place: nothing is ever unpickled, and a killed stage ends
with the numbers of one that was left alone.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mcot_torch.errors import InputError, NonFiniteError
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.system.blocks import rows_at_once
from mcot_torch.system.files import READ_ERRORS, read_tensors, save_tensors
from mcot_torch.system.progress import Bar, progress_bar
from mcot_torch.system.ranks import any_of, is_first, local_world_size, mean, world_size
from mcot_torch.training.config import TrainerConfig

__all__ = ["Context", "Stage", "cosine", "fit", "interruptible", "load_state", "save_state"]

Metrics = dict[str, float]


@dataclass
class Context:
    """Around a stage: where its randomness comes from, where its state goes, who watches it.

    Attributes:
        seed: of the run.
        folder: where the stage keeps its state; None keeps nothing.
        trainer: device, precision, how often to save.
        probe: exact comparisons with the truth, supplied by evaluation; called with the reasoner when metrics are logged.
        report: receives each logged line, `{"step": ..., name: value}`.
    """

    seed: int = 0
    folder: Path | None = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    probe: Callable[[Reasoner], Metrics] | None = None
    report: Callable[[Metrics], None] | None = None


def save_state(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Tensors and JSON as one safetensors file that appears whole or not at all."""
    save_tensors(path, tensors, {"json": json.dumps(meta)})


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save_state` wrote, or None where there is nothing; `InputError` names the file and what is wrong."""
    if not path.exists():
        return None
    try:
        tensors, metadata = read_tensors(path)
        meta = json.loads(metadata["json"])
        if not isinstance(meta, dict):
            raise ValueError("its JSON is no object")
        check_history(meta.get("history", []))
        return tensors, meta
    except READ_ERRORS as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: object) -> InputError:
    """What to say about a state that cannot be taken up."""
    return InputError(f"{path}: the saved state cannot be read ({error}); delete it to begin the stage again")


def check_history(history: object) -> None:
    """`ValueError` unless `history` is a list of lines of numbers, each with the whole number of its step."""
    if not isinstance(history, list):
        raise ValueError("its history is no list")
    for line in history:
        if not (isinstance(line, dict) and isinstance(line.get("step"), int)):
            raise ValueError("its history holds a line without a step")
        if not all(isinstance(x, float) or (isinstance(x, int) and 0 <= x < 2**63) for x in line.values()):
            raise ValueError("its history holds what is no number")


class Stage(L.LightningModule):
    """One training stage: subclasses give `training_step`, which ends by calling `finish_step`.

    Attributes:
        reasoner: the model in training.
        context: see `Context`.
        step: batches finished so far, also over restarts.
        history: the logged lines, also over restarts.
    """

    name = "stage"

    def __init__(self, reasoner: Reasoner, context: Context, log_every: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.reasoner = reasoner
        self.context = context
        self.log_every = log_every
        self.total = 0
        self.step = 0
        self.history: list[Metrics] = []
        self.bar: Bar | None = None
        self.stop_requested = False
        self._pending: dict[str, Tensor] | None = None
        self._saved_at = self._logged_at = time.monotonic()
        self._samples = 0
        self._bad: Tensor | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser; its learning rate is set at every step by `learning_rate`."""
        raise NotImplementedError

    def _optimizer(self, wrapped: bool = True) -> torch.optim.Optimizer:
        """The one optimiser, as Lightning wraps it or plain."""
        optimizer = self.optimizers(use_pl_optimizer=wrapped)
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def in_blocks(self, rows: Tensor, cells: int) -> tuple[Tensor, ...]:
        """`rows` (n, ...) in the blocks whose losses `update` adds up, a row being `cells` predictions.

        Several ranks take theirs at once: DDP exchanges gradients once a step.
        """
        return rows.split(len(rows) if world_size() > 1 else rows_at_once(cells, rows.device))

    def update(self, losses: Iterable[Tensor], learning_rate: float, clip_norm: float | None = None) -> Tensor:
        """One optimiser step on the sum of `losses`, which must be finite and have finite gradients.

        Args:
            losses: parts of the loss; the graph of one is freed before the next is asked for.
            learning_rate: of this step.
            clip_norm: largest norm of the gradient.

        Returns:
            The mean of the ranks' losses, without a graph: the loss itself where there is one rank.
        """
        optimizer = self._optimizer()
        optimizer.zero_grad()
        parts = []
        for part in losses:
            self.manual_backward(part)
            parts.append(part.detach())
        loss = mean(torch.stack(parts).sum())
        norm = torch.nn.utils.clip_grad_norm_(self.reasoner.parameters(), clip_norm or torch.inf)
        self._note_if_not_finite(loss, norm)
        if loss.device.type == "cpu":
            self.check_finite()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        return loss

    def _note_if_not_finite(self, loss: Tensor, norm: Tensor) -> None:
        """Keep (step, loss, norm) of the first bad step on the device: to look at every step would stall a GPU."""
        now = torch.stack([torch.full_like(norm, self.step), loss, norm]).double()  # (3,)
        if self._bad is None:
            self._bad = torch.zeros_like(now)
        self._bad = torch.where(self._bad.isfinite().all() & ~now.isfinite().all(), now, self._bad)

    def check_finite(self) -> None:
        """Raise `NonFiniteError` if a step's loss or gradient was not finite; called before anything is logged or saved."""
        if self._bad is None or bool(self._bad.isfinite().all()):
            return
        step, loss, norm = self._bad.tolist()
        where = f"the last good state is {self.state_path}" if self.state_path else "no state was kept"
        raise NonFiniteError(
            f"{self.name}: loss {loss:g} with gradient norm {norm:g} at step {step:.0f}; {where}; "
            f"try a smaller {self.name}.learning_rate"
        )

    def finish_step(self, metrics: Callable[[], Metrics], note: str = "", n_samples: int = 1) -> None:
        """Count the step; log when it is due; save when it is due.

        `n_samples` were worked through in it; their rate is reported, and kept out of the history, which is the same in
        every run of the same seed.
        """
        self.step += 1
        self._samples += n_samples
        if self.step % self.log_every == 0 or self.step == self.total:
            self.check_finite()
            line = {"step": self.step, **metrics()}
            if self.context.probe is not None:
                line |= self.context.probe(self.reasoner)
            self.history.append(line)
            now = time.monotonic()
            if self.context.report is not None:
                self.context.report({**line, "time/steps_per_second": self._samples / (now - self._logged_at)})
            self._samples, self._logged_at = 0, now
        if self.bar is not None:
            self.bar.update(self.step, note)
        # the last step always: a signal from here on finds nobody who looks at stop_requested but `fit`
        due = self.step == self.total or time.monotonic() - self._saved_at > self.context.trainer.save_every
        stop, due = any_of(self.stop_requested, due)
        if stop or due:
            self.save()
        if stop:
            raise KeyboardInterrupt

    # ---- state --------------------------------------------------------------------------------------------------

    @property
    def state_path(self) -> Path | None:
        """Where the state lies while the stage is under way."""
        return self.context.folder / "state.safetensors" if self.context.folder else None

    def extra_state(self) -> dict[str, Tensor]:
        """Tensors beside weights and optimiser that the stage needs to go on; asked on all ranks, the first one's count."""
        return {}

    def load_extra_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `extra_state` gave."""

    def save(self) -> None:
        """Write the state, if the stage has a folder; called on all ranks."""
        self.check_finite()
        if self.state_path is None:
            return
        tensors = {f"model.{key}": value for key, value in self.reasoner.state_dict().items()}
        for index, slots in self._optimizer(wrapped=False).state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in slots.items()}
        tensors |= {f"extra.{key}": value for key, value in self.extra_state().items()}
        if is_first():
            save_state(self.state_path, tensors, {"step": self.step, "total": self.total, "history": self.history})
        self._saved_at = time.monotonic()

    def restore(self) -> None:
        """Take up the last state, if there is one."""
        state = load_state(self.state_path) if self.state_path else None
        if state is None:
            return
        assert self.state_path is not None
        self._pending, meta = state
        if meta.get("total") != self.total:
            raise InputError(
                f"{self.state_path} is of a stage of {meta.get('total')} steps, not {self.total}; delete it"
            )
        try:
            self.step, self.history = int(meta["step"]), meta["history"]
            if not 0 <= self.step <= self.total:
                raise ValueError(f"it stands at step {self.step} of {self.total}")
            _check_tensors(self._pending, self.reasoner)
            self.reasoner.load_state_dict(_part(self._pending, "model."))
            self.load_extra_state(_part(self._pending, "extra."))
        except (*READ_ERRORS, RuntimeError) as error:
            raise unreadable(self.state_path, " ".join(str(error).split())[:200]) from None

    def on_train_start(self) -> None:
        """Signals are ours again; the optimiser exists only now: give it its state back."""
        if threading.current_thread() is threading.main_thread():
            # `interruptible` set both; Lightning has put a handler of its own before the one of SIGTERM, which broadcasts among
            # the ranks while each may stand at another exchange: they would wait for each other for ever
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
        if self._pending is None:
            return
        # not Lightning's wrapper: state loaded into that stays in it and never reaches the optimiser
        optimizer = self._optimizer(wrapped=False)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _part(self._pending, "optimizer.").items():
            index, slot = key.split(".", 1)
            state.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self._pending = None


def _check_tensors(tensors: dict[str, Tensor], reasoner: Reasoner) -> None:
    """`ValueError` unless every number is finite and the optimiser's have the shapes of the weights."""
    shapes = [p.shape for p in reasoner.parameters()]
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{key} holds a number that is not finite")
        if key.startswith("optimizer."):
            index = int(key.split(".")[1])
            if not 0 <= index < len(shapes) or value.shape not in ((), shapes[index]):
                raise ValueError(f"{key} does not fit the weights")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def fit(stage: Stage, data: Dataset[Any]) -> list[Metrics]:
    """Run `stage` over `data` from where it stopped last; returns its history."""
    config = stage.context.trainer
    stage.total = len(data)  # type: ignore[arg-type]
    stage.restore()
    if stage.step >= stage.total:
        return stage.history
    trainer = _trainer(config, stage.reasoner.device)
    loader = DataLoader(data, sampler=range(stage.step, stage.total), batch_size=None)
    with progress_bar(stage.name, stage.total, config.progress) as stage.bar:
        stage.bar.update(stage.step)
        device = stage.reasoner.device
        try:
            with interruptible(stage):
                trainer.fit(stage, loader)
            if stage.stop_requested:
                raise KeyboardInterrupt
        except SystemExit:  # what Lightning makes of a KeyboardInterrupt
            raise KeyboardInterrupt from None
        stage.reasoner.to(device)
    stage.bar = None
    return stage.history


@contextmanager
def interruptible(stage: Any) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stage.stop_requested`, which the body looks at after each step; a second one ends it at once.

    An exception out of a handler could be swallowed by whatever is running, such as a compiler; a flag cannot.
    """

    def request(number: int, frame: object) -> None:
        if stage.stop_requested:
            raise KeyboardInterrupt
        stage.stop_requested = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _trainer(config: TrainerConfig, device: torch.device) -> L.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*GPU available but not used.*")
    warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated.*")  # its successor needs torch 2.13
    alone = world_size() == 1
    return L.Trainer(
        accelerator=device.type,  # where the reasoner lies; "auto" would move it to MPS, which lacks float64
        devices=1 if alone else local_world_size(),
        num_nodes=1 if alone else world_size() // local_world_size(),
        strategy="auto" if alone else DDPStrategy(broadcast_buffers=False),  # the support changes on all ranks alike
        plugins=None if alone else TorchElasticEnvironment(),  # the ranks run already
        precision=config.precision,
        deterministic=config.deterministic,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def cosine(step: int, total: int) -> float:
    """Decay from 1 at step 0 to 0 at `total`."""
    return 0.5 * (1.0 + math.cos(math.pi * min(step, total) / total))

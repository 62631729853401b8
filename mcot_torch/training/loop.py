"""The loop that all training shares: checkpoints, resume, signals, logging, devices and precision.

An algorithm writes its loop itself:

    with TrainingLoop("name", n_steps, context, model=model, optimizer=optimizer) as loop:
        for step in loop:
            loss = loop.backward(losses)
            optimizer.step()
            loop.finish(step, {"loss": loss})

`for step in loop` begins where the last checkpoint ended, and `finish` logs, saves and stops. Checkpoints are saved every
few seconds, after the last step, and when the loop is left by `break` or by a signal, so that a stopped run continues with
the numbers of a run that was left alone.
"""

from __future__ import annotations

import inspect
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar

import torch
from torch import Tensor

from mcot_torch.errors import InputError, NonFiniteError
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.system.files import READ_ERRORS
from mcot_torch.system.machine import torch_settings
from mcot_torch.system.progress import Bar, progress_bar
from mcot_torch.system.ranks import (
    any_of,
    average_gradients,
    barrier,
    broadcast,
    from_first,
    is_first,
    largest,
    mean,
    rank_generator,
    total,
    world_size,
)
from mcot_torch.training.config import TrainerConfig
from mcot_torch.training.precision import autocast_of
from mcot_torch.training.result import Metrics
from mcot_torch.training.state import check_tensors, load_state, save_state, unreadable, with_prefix

__all__ = ["Checkpointed", "Context", "TrainingLoop", "cosine", "with_trainer_settings"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Context:
    """What surrounds an algorithm: the seed, where checkpoints go, who watches.

    Attributes:
        seed: seed of the run.
        folder: folder of the checkpoint; None keeps no checkpoint.
        trainer: device, precision, how often to save.
        probe: exact comparisons with the truth, supplied by evaluation; called with the model when metrics are logged.
        report: receives each logged line, `{"step": ..., name: value}`.
    """

    seed: int = 0
    folder: Path | None = None
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    probe: Callable[[Reasoner], Metrics] | None = None
    report: Callable[[Metrics], None] | None = None


def with_trainer_settings(algorithm: Callable[P, T]) -> Callable[P, T]:
    """Decorate an algorithm so that all of it, sampling too, runs with the threads and determinism of its `context`.

    They are restored when the algorithm ends.
    """
    signature = inspect.signature(algorithm)

    @wraps(algorithm)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        context = signature.bind(*args, **kwargs).arguments.get("context") or Context()
        with torch_settings(context.trainer.threads, context.trainer.deterministic):
            return algorithm(*args, **kwargs)

    return wrapper


class Checkpointed(Protocol):
    """State beside weights and optimiser that a loop needs to go on."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors; called on all ranks, the first one's is saved."""

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave; `ValueError` says what does not fit."""


class TrainingLoop:
    """Steps of a training algorithm, with checkpoints, resume, signals and logging. See the module's example.

    Args:
        name: name of the stage, such as "pretrain": in checkpoints, messages and names of generators.
        total: number of steps.
        context: seed, folder, trainer, watchers.
        log_every: steps between two logged lines; the last step is always logged.
        model: the model in training, saved with each checkpoint; None trains nothing.
        optimizer: its optimiser, saved with each checkpoint.
        extra: further state that belongs into a checkpoint.
        stride: steps that one pass of the loop does.
        always_save: save a checkpoint after every pass of the loop, because a pass is long.

    Attributes:
        step: steps finished so far, also before a restart.
        total: number of steps.
        history: logged lines, also from before a restart.
        forward_passes: contexts predicted so far, as told to `count_passes`; also from before a restart.
    """

    def __init__(
        self,
        name: str,
        total: int,
        context: Context,
        log_every: int = 1,
        *,
        model: Reasoner | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        extra: Checkpointed | None = None,
        stride: int = 1,
        always_save: bool = False,
    ) -> None:
        self.name, self.total, self.context, self.log_every = name, total, context, log_every
        self.model, self.optimizer, self.extra = model, optimizer, extra
        self.stride, self.always_save = stride, always_save
        self.step = self.forward_passes = 0
        self.history: list[Metrics] = []
        self._saved_step = -1
        self._saved_at = self._logged_at = time.monotonic()
        self._samples = 0
        self._first_bad: Tensor | None = None
        self._stop_requested = self._in_step = False
        self._bar: Bar | None = None
        self._autocast: Callable[[], AbstractContextManager[Any]] | None = None
        self._exit = ExitStack()

    # ---- entering, iterating, leaving ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        trainer = self.context.trainer
        with ExitStack() as stack:
            stack.enter_context(torch_settings(trainer.threads, trainer.deterministic))
            if self.model is not None:
                broadcast(list(self.model.parameters()))
            self._restore()
            self._bar = stack.enter_context(progress_bar(self.name, self.total, trainer.progress))
            self._bar.update(self.step)
            stack.enter_context(_signals(self._request_stop))
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._exit:
            if kind is not None:
                return
            if self._in_step:
                raise self._unfinished()
            if self.step != self._saved_step:  # left by `break`, on all ranks
                self._save()
            (stop,) = any_of(self._stop_requested)  # a signal after the last look for one
        if stop:
            raise KeyboardInterrupt

    def __iter__(self) -> Iterator[int]:
        """Step numbers from the last checkpoint on; the body ends with `finish`."""
        while self.step < self.total:
            self._in_step = True
            yield self.step
            if self._in_step:
                raise self._unfinished()

    def _unfinished(self) -> RuntimeError:
        return RuntimeError(f"step {self.step} of {self.name} ended without loop.finish({self.step}, ...)")

    def _request_stop(self) -> None:
        if self._stop_requested:
            raise KeyboardInterrupt
        self._stop_requested = True

    # ---- inside a step ------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the model; the CPU where there is none."""
        return torch.device("cpu") if self.model is None else self.model.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Context manager in which predictions are made in the precision of the trainer; `backward` enters it itself."""
        if self._autocast is None:
            self._autocast = autocast_of(self.context.trainer.precision, self.device)
        return self._autocast()

    def generator(self, *name: str | int) -> torch.Generator:
        """The generator of (seed, stage, *name) on the model's device; each rank has a stream of its own."""
        return rank_generator(self.context.seed, self.name, *name, device=self.device)

    def once(self, function: Callable[..., T], *arguments: Any) -> T:
        """The result of `function(*arguments)`, computed on the first rank and given to all."""
        return from_first(lambda: function(*arguments), self.device)

    def backward(self, losses: Iterable[Tensor], clip_norm: float | None = None) -> Tensor:
        """Put the gradient of the sum of `losses`, averaged over the ranks, into the parameters.

        Args:
            losses: scalar parts of the loss; the graph of one is freed before the next is computed.
            clip_norm: largest norm of the gradient; None does not clip.

        Returns:
            () the sum of the losses, averaged over the ranks, without a graph.

        Raises:
            NonFiniteError: the loss or the gradient is not finite. On a GPU the error is raised when the next line is
                logged or the next checkpoint saved, because a look at every step would stall the device.
        """
        assert self.model is not None
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        parts = []
        remaining = iter(losses)
        while True:
            with self.autocast():
                part = next(remaining, None)
            if part is None:
                break
            part.backward()
            parts.append(part.detach())
        average_gradients(self.model.parameters())
        loss = mean(torch.stack(parts).sum())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm or torch.inf)
        self._note_non_finite(loss, norm)
        if loss.device.type == "cpu":
            self.check_finite()
        return loss

    def sum(self, x: Tensor) -> Tensor:
        """Sum of a tensor over the ranks; the tensor itself where there is one rank."""
        return total(x)

    def mean(self, x: Tensor) -> Tensor:
        """Mean of a tensor over the ranks; the tensor itself where there is one rank."""
        return mean(x)

    def largest(self, x: Tensor) -> Tensor:
        """Elementwise maximum of a tensor over the ranks; the tensor itself where there is one rank."""
        return largest(x)

    @property
    def n_ranks(self) -> int:
        """Number of processes that train together."""
        return world_size()

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of all parameter groups."""
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _note_non_finite(self, loss: Tensor, norm: Tensor) -> None:
        """Keep (step, loss, norm) of the first step that is not finite on the device."""
        now = torch.stack([torch.full_like(norm, self.step), loss, norm]).double()  # (3,)
        if self._first_bad is None:
            self._first_bad = torch.zeros_like(now)
        self._first_bad = torch.where(self._first_bad.isfinite().all() & ~now.isfinite().all(), now, self._first_bad)

    def count_passes(self, contexts: int) -> None:
        """Add contexts for which a model computed its predictions, on all ranks together; see `Cost.forward_passes`."""
        self.forward_passes += contexts

    def check_finite(self) -> None:
        """Raise `NonFiniteError` if the loss or the gradient of a step so far was not finite."""
        if self._first_bad is None or bool(self._first_bad.isfinite().all()):
            return
        step, loss, norm = self._first_bad.tolist()
        where = f"the last good state is {self.checkpoint}" if self.checkpoint else "no state was kept"
        raise NonFiniteError(
            f"{self.name}: loss {loss:g} with gradient norm {norm:g} at step {step:.0f}; {where}; "
            f"try a smaller {self.name}.learning_rate"
        )

    def logs(self, step: int) -> bool:
        """Whether `finish(step, ...)` will log its metrics, for metrics that are expensive to compute."""
        done = min(step + self.stride, self.total)
        return done == self.total or done // self.log_every > step // self.log_every

    def finish(
        self, step: int, metrics: Mapping[str, float | Tensor], note: str = "", n_samples: int | None = 1
    ) -> None:
        """End a step: count it, log and save when due, stop when a signal asks for it.

        Args:
            step: number of the step.
            metrics: scalars, converted to numbers only when they are logged.
            note: short text behind the progress bar.
            n_samples: samples worked through in the step. Their rate is reported, but not part of the history, so that
                the history is the same in every run of a seed; None reports no rate.

        Raises:
            KeyboardInterrupt: SIGINT or SIGTERM came on any rank; the checkpoint has been saved.
        """
        if step != self.step:
            raise RuntimeError(f"loop.finish({step}, ...) in step {self.step} of {self.name}")
        due_log = self.logs(step)
        self.step, self._in_step = min(step + self.stride, self.total), False
        self._samples += n_samples or 0
        if due_log:
            self._log(metrics, rate=n_samples is not None)
        if self._bar is not None:
            self._bar.update(self.step, note)
        # The last step is always saved, because no later step looks for a signal.
        due = (
            self.step == self.total
            or self.always_save
            or time.monotonic() - self._saved_at > self.context.trainer.save_every
        )
        stop, due = any_of(self._stop_requested, due)
        if stop or due:
            self._save()
        if stop:
            raise KeyboardInterrupt

    def _log(self, metrics: Mapping[str, float | Tensor], rate: bool) -> None:
        self.check_finite()
        line: Metrics = {"step": self.step}
        line |= {key: x.item() if isinstance(x, Tensor) else x for key, x in metrics.items()}
        if self.context.probe is not None and self.model is not None:
            with self.autocast():
                line |= self.context.probe(self.model)
        self.history.append(line)
        now = time.monotonic()
        if self.context.report is not None:
            speed = {"time/steps_per_second": self._samples / (now - self._logged_at)} if rate else {}
            self.context.report({**line, **speed})
        self._samples, self._logged_at = 0, now

    # ---- checkpoints --------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path | None:
        """Path of the checkpoint; None where the context has no folder."""
        return self.context.folder / "state.safetensors" if self.context.folder else None

    def _save(self) -> None:
        """Write the checkpoint; called on all ranks."""
        self.check_finite()
        self._saved_step, self._saved_at = self.step, time.monotonic()
        if self.checkpoint is None:
            return
        tensors: dict[str, Tensor] = {}
        if self.model is not None:
            tensors |= {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.optimizer is not None:
            for index, slots in self.optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in slots.items()}
        if self.extra is not None:
            tensors |= {f"extra.{key}": value for key, value in self.extra.state_dict().items()}
        if is_first():
            names = ("step", "total", "forward_passes", "history")
            save_state(self.checkpoint, tensors, {name: getattr(self, name) for name in names})
        self._saved_at = time.monotonic()

    def _restore(self) -> None:
        """Load the checkpoint, if there is one, on all ranks; `InputError` names the file and what is wrong."""
        path = self.checkpoint
        state = load_state(path) if path else None
        if path is not None and state is not None:
            tensors, meta = state
            total = meta.get("total")
            if total != self.total:
                found = f"a stage of {total} steps, not {self.total}" if isinstance(total, int) else "another version"
                raise InputError(f"{path} is of {found}; delete it")
            try:
                self._load(tensors, meta)
            except (*READ_ERRORS, RuntimeError) as error:
                raise unreadable(path, error) from None
        barrier()  # no rank may overwrite the checkpoint before all have read it

    def _load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        step = meta["step"]
        if not (isinstance(step, int) and 0 <= step <= self.total):
            raise ValueError(f"it stands at step {step} of {self.total}")
        passes = meta.get("forward_passes", 0)
        if not (isinstance(passes, int) and passes >= 0):
            raise ValueError("its number of forward passes is none")
        self.step, self.history, self.forward_passes = step, meta["history"], passes
        self._saved_step = self.step
        check_tensors(tensors, self.model)
        if self.model is not None:
            self.model.load_state_dict(with_prefix(tensors, "model."))
        if self.extra is not None:
            self.extra.load_state_dict(with_prefix(tensors, "extra."))
        if self.optimizer is not None:
            slots: dict[int, dict[str, Tensor]] = {}
            for key, value in with_prefix(tensors, "optimizer.").items():
                index, slot = key.split(".", 1)
                slots.setdefault(int(index), {})[slot] = value
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": slots, "param_groups": groups})


@contextmanager
def _signals(request: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `request` instead of raising inside whatever is running, such as a compiler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: request()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def cosine(step: int, total: int) -> float:
    """Decay from 1 at step 0 to 0 at `total`.

    Examples:
        >>> cosine(0, 10), round(cosine(5, 10), 6), cosine(10, 10)
        (1.0, 0.5, 0.0)
    """
    return 0.5 * (1.0 + math.cos(math.pi * min(step, total) / total))

"""One progress bar for every stage: what runs, how far it is, the time left; in a file a line a minute tells the same."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bar", "console", "progress_bar", "say"]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let `cli/status.py` tell that nobody reads any more; rich would end the program without a word."""
        raise


console = _Console(width=None if sys.stdout.isatty() else 100)


_LINE_EVERY = 60.0  # seconds between two lines where no bar can be drawn


class Bar:
    """What a stage holds while it tells how far it is."""

    def __init__(self, show: Callable[[int, str], None]) -> None:
        self._show = show

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of the steps are done, and a short note behind."""
        self._show(done, note)


@contextmanager
def progress_bar(description: str, total: int, enabled: bool = True) -> Iterator[Bar]:
    """A bar of `total` steps on a terminal, a line a minute elsewhere; nothing unless `enabled`."""
    if not (enabled and _watched()):
        yield Bar(_lines(description, total) if enabled else lambda done, note: None)
        return
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total, note="")
        yield Bar(lambda done, note: progress.update(task, completed=done, note=note))


def _lines(description: str, total: int) -> Callable[[int, str], None]:
    """Tells of each minute that passes, so that a log shows a long stage to be alive and when it will end."""
    began: tuple[float, int] | None = None  # the time of the first call, and what was done by then
    told = time.monotonic()

    def show(done: int, note: str) -> None:
        nonlocal began, told
        now = time.monotonic()
        began = began or (now, done)
        if now - told < _LINE_EVERY:
            return
        told = now
        here = done - began[1]
        left = f", some {timedelta(seconds=round((now - began[0]) / here * (total - done)))} left" if here else ""
        say(f"{description:>10} {done:,}/{total:,}{left}  {note}".rstrip())

    return show


def _watched() -> bool:
    """Whether the output is a terminal that can redraw a line: FORCE_COLOR in a log file asks for colours, not for bars."""
    return console.file.isatty() and not console.is_dumb_terminal


def say(text: str) -> None:
    """Print a line as it is: no markup, no colours, no breaks but the terminal's own."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)

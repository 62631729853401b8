"""One progress bar for every stage: what runs, how far it is, the time left. Silent where nobody watches a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bar", "console", "progress_bar", "say"]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let cli.py tell that nobody reads any more; rich would end the program without a word."""
        raise


console = _Console(width=None if sys.stdout.isatty() else 100)


class Bar:
    """What a stage holds while its bar is on screen."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of the steps are done, and a short note behind the bar."""
        self._progress.update(self._task, completed=done, note=note)


@contextmanager
def progress_bar(description: str, total: int, enabled: bool = True) -> Iterator[Bar]:
    """A bar of `total` steps; it draws only on a terminal and only if `enabled`."""
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not (enabled and _watched())) as progress:
        yield Bar(progress, progress.add_task(description, total=total, note=""))


def _watched() -> bool:
    """Whether the output is a terminal that can redraw a line: FORCE_COLOR in a log file asks for colours, not for bars."""
    return console.file.isatty() and not console.is_dumb_terminal


def say(text: str) -> None:
    """Print a line as it is: no markup, no colours, no breaks but the terminal's own."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)

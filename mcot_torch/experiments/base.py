"""What an experiment is: settings, points, a measurement, a summary with its verdict, a figure.

A verdict is computed: every `Number` carries the bounds within which the claim counts as confirmed, and `judge` turns
numbers into one of three words. Questions beyond the paper have no claim to confirm: `beyond_common.answer` calls them
answered or not answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from matplotlib.figure import Figure

__all__ = [
    "ANSWERED",
    "CONSTANTS",
    "FAILS",
    "HOLDS",
    "UNANSWERED",
    "Experiment",
    "Measurement",
    "Number",
    "Point",
    "Summary",
    "judge",
]

Point = dict[str, Any]
"""What one measurement depends on, its seed included; JSON-able."""
Measurement = dict[str, Any]
"""A point and what was measured there, in one flat dict."""

HOLDS, CONSTANTS, FAILS = "holds", "holds with these constants", "does not hold"
ANSWERED, UNANSWERED = "answered", "not answered"


@dataclass
class Number:
    """A fitted or measured number, its 95 % interval, and the bounds that decide.

    Attributes:
        name: what it is.
        value: None where it could not be measured, which decides against the claim.
        low: lower end of the 95 % interval; None where the number is exact or an extreme.
        high: upper end.
        at_least: the claim needs value >= this; None for no such bound.
        at_most: the claim needs value <= this.
        expected: the theory's value in words.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    expected: str = ""

    @property
    def decides(self) -> bool:
        """Whether the verdict depends on it."""
        return self.at_least is not None or self.at_most is not None

    @property
    def ok(self) -> bool:
        """Whether it lies within its bounds."""
        if not self.decides:
            return True
        if self.value is None:
            return False
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    def bounds(self) -> str:
        """The bounds in words."""
        if self.at_least is not None and self.at_most is not None:
            return f"in [{self.at_least:g}, {self.at_most:g}]"
        if self.at_least is not None:
            return f"at least {self.at_least:g}"
        return f"at most {self.at_most:g}" if self.at_most is not None else ""

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.4g}"
        interval = f" [{self.low:.4g}, {self.high:.4g}]" if self.low is not None and self.high is not None else ""
        return value + interval


@dataclass
class Summary:
    """What came out.

    Attributes:
        numbers: the fitted numbers.
        verdict: HOLDS, CONSTANTS or FAILS of a claim, ANSWERED or UNANSWERED of a question.
        why: one sentence.
        notes: what else a reader should know, from the data.
        table: cells that docs/results.md shows in place of the numbers, the heading first; empty where it shows them.
    """

    numbers: list[Number]
    verdict: str
    why: str
    notes: list[str] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)


def judge(numbers: Sequence[Number], why: str, constants: bool = False, notes: Sequence[str] = ()) -> Summary:
    """The verdict that the numbers give: every one that decides must lie within its bounds.

    Args:
        numbers: at least one that decides.
        why: one sentence for the case that all do; else the sentence names those that do not.
        constants: the claim is an O(.) or Θ(.) whose constants are among the numbers.
        notes: see `Summary`.
    """
    if not any(number.decides for number in numbers):
        raise ValueError("no number decides: give one of them bounds")
    wrong = [f"{n.name} is {n}, not {n.bounds()}" for n in numbers if not n.ok]
    if wrong:
        return Summary(list(numbers), FAILS, "; ".join(wrong) + ".", list(notes))
    return Summary(list(numbers), CONSTANTS if constants else HOLDS, why, list(notes))


S = TypeVar("S")


@dataclass(frozen=True)
class Experiment(Generic[S]):
    """One claim and how it is measured.

    Attributes:
        name: of the module, the command and the results folder.
        title: a heading.
        claim: the statement in one sentence.
        settings: the class of its settings; its defaults are the full size.
        quick: settings that take seconds.
        points: settings -> independent points.
        measure: point -> numbers and lists of numbers; runs in a worker process, with one thread.
        summarise: settings, rows -> fits and verdict.
        figure: settings, rows, summary -> what to look at, one figure or several.
    """

    name: str
    title: str
    claim: str
    settings: type[S]
    quick: Callable[[], S]
    points: Callable[[S], list[Point]]
    measure: Callable[[Point], Measurement]
    summarise: Callable[[S, list[Measurement]], Summary]
    figure: Callable[[S, list[Measurement], Summary], Figure | list[Figure]]

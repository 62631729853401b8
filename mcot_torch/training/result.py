"""What every algorithm returns: a model, the logged lines, and what it cost to get there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Cost", "Metrics", "Result"]

Metrics = dict[str, float]
"""One logged line: name -> number, with the step under `step`."""

Model = TypeVar("Model", covariant=True)


@dataclass(frozen=True)
class Cost:
    """Resources that an algorithm used, summed over all ranks; costs of parts add up.

    Attributes:
        transitions: steps sampled, of the chain or of a model.
        forward_passes: contexts for which a model computed its next-state distribution, to sample or to train. Passes for
            logging are not counted.
        rounds: sequential rounds: optimiser steps of Algorithms 1 and 4, rounds of Algorithms 2 and 3.

    Examples:
        >>> Cost(100, 10, 1) + Cost(5, 0, 2)
        Cost(transitions=105, forward_passes=10, rounds=3)
    """

    transitions: int = 0
    forward_passes: int = 0
    rounds: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.transitions + other.transitions,
            self.forward_passes + other.forward_passes,
            self.rounds + other.rounds,
        )


@dataclass(frozen=True)
class Result(Generic[Model]):
    """The outcome of an algorithm.

    Attributes:
        model: the model that the algorithm made or changed: a `Reasoner`, a `Student`, or the `PRM` of search.
        history: logged lines, each `{"step": ..., name: value}`.
        cost: transitions sampled, forward passes and sequential rounds.
    """

    model: Model
    history: list[Metrics]
    cost: Cost

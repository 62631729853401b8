"""From the rows of learned models to the table claim | exact | linear | transformer of `beyond_transformer_vs_linear`.

An exact value is that of p^ε on the same sizes: solved, or fitted by the same regression to the solved values. The bounds
say how far from it a model may lie and still count as keeping the claim; where the paper's own experiments have bounds
they are as wide as those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mcot_torch.experiments.base import Measurement, Number
from mcot_torch.experiments.fits import mean_number, power_laws, select, straight_line

__all__ = ["Claim", "Groups", "claims"]

_COLUMNS = {"ε": "epsilon", "M": "M", "K": "K", "T": "T", "T_dist": "T"}


@dataclass(frozen=True)
class Groups:
    """Rows by what they are for; the first row is a model of the grid at the first size.

    Attributes:
        grid: models that went through all stages.
        first: those at the first size.
        arm: those at its K and M, where only ε varies.
        law: those along ε = c/M from the first size.
        one_stage: models of one stage, a sample size T each.
        exact: models trained on exact gradients.
        students: T_dist, the rms error of the student of so many transitions, its rms distance from its teacher.
    """

    grid: list[Measurement]
    first: list[Measurement]
    arm: list[Measurement]
    law: list[Measurement]
    one_stage: list[Measurement]
    exact: list[Measurement]
    students: list[Measurement]

    @classmethod
    def of(cls, rows: list[Measurement]) -> Groups:
        """The groups of rows of one kind, or of all."""
        grid = [r for r in rows if r["ppo_rounds"]]
        k, m, epsilon = (rows[0][key] for key in ("K", "M", "epsilon"))
        first = select(grid, K=k, M=m, epsilon=epsilon)
        return cls(
            grid,
            first,
            select(grid, K=k, M=m),
            [r for r in grid if r["K"] == k and math.isclose(r["epsilon"] * r["M"], epsilon * m)],
            [r for r in rows if not r["ppo_rounds"] and r["T"] is not None],
            [r for r in rows if r["T"] is None],
            [
                {"kind": r["kind"], "T": t, "error": e, "distance": d}
                for r in first
                for t, e, d in zip(r["dist"], r["dist_errors"], r["dist_distances"], strict=True)
            ],
        )


@dataclass(frozen=True)
class Claim:
    """A line of the table.

    Attributes:
        name: proposition or theorem, and what is measured.
        exact: its exact value.
        models: kind -> the number of the learned models.
    """

    name: str
    exact: str
    models: dict[str, Number]


def claims(rows: list[Measurement]) -> list[Claim]:
    """Every claim of the paper in the order of docs/specification.md#measurements-of-the-claims.

    Exponents that the grid cannot tell apart are left out.
    """
    everything = Groups.of(rows)
    parts = {kind: Groups.of(select(rows, kind=kind)) for kind in dict.fromkeys(r["kind"] for r in rows)}
    table: list[Claim] = []

    def add(name: str, exact: str, measured: Callable[[Groups], Number], **bounds: float) -> None:
        models = {kind: replace(measured(part), name=f"{name}, {kind}", expected=exact) for kind, part in parts.items()}
        table.append(Claim(name, exact, {kind: replace(n, **bounds) for kind, n in models.items()}))  # type: ignore[arg-type]

    def exponents(what: str, group: str, key: str, exact_key: str, **tolerances: float) -> None:
        """One regression for all letters, the same one for the exact values."""
        source, what = what.split(": ")
        exact = _exponents(getattr(everything, group), exact_key, tolerances)
        fitted = {kind: _exponents(getattr(part, group), key, tolerances) for kind, part in parts.items()}
        for letter, tolerance in tolerances.items() if exact else ():
            middle = round(exact[letter].value or 0.0, 3)
            models = {}
            for kind, numbers in fitted.items():
                name = f"{source}: exponent of {letter} in {what}"
                number = numbers.get(letter, Number("", None))
                bounds = {"at_least": middle - tolerance, "at_most": middle + tolerance}
                models[kind] = replace(number, name=f"{name}, {kind}", expected=f"{middle:.3f}", **bounds)  # type: ignore[arg-type]
            table.append(Claim(name, f"{middle:.3f}", models))

    def ratio(name: str, key: str, exact_key: str, tolerance: float = math.inf) -> None:
        bounds = {"at_least": 1 - tolerance, "at_most": 1 + tolerance} if tolerance < math.inf else {}
        add(name, "1", lambda g: _mean([_over(r[key], r[exact_key]) for r in g.grid]), **bounds)

    exponents("Prop. 2.1: metastability ratio along ε = c/M", "law", "ratio", "ratio_exact", M=0.1)
    ratio("Prop. 2.1: metastability ratio / exact", "ratio", "ratio_exact", 0.1)

    exponents("Thm. 3.1: sup-error before the cut", "one_stage", "sup_before", "sup_sample", T=0.1)
    exponents("Thm. 3.1: sup-error after the cut", "one_stage", "sup_after", "sup_sample", T=0.1)
    add("Thm. 3.1: sup-error at the cut, exact gradients", "0", lambda g: Number("", g.exact[0]["sup_before"]))
    end = "Thm. 3.1: sup-error at the end of the second stage, exact gradients"
    add(end, "0", lambda g: Number("", g.exact[0]["sup_after"]), at_most=1e-4)
    support = "Thm. 3.1: share of models whose support is exact after the cut"
    add(
        support, "1", lambda g: _mean([float(r["support_exact"]) for r in g.grid + g.one_stage + g.exact]), at_least=1.0
    )

    exponents("Thm. 3.2: E[τ] with the cut", "grid", "time", "time_exact", ε=0.01, M=0.02, K=0.05)
    ratio("Thm. 3.2: E[τ] with the cut / exact", "time", "time_exact", 0.03)
    ratio("Thm. 3.2: E[τ] without the cut / exact", "time_raw", "time_exact")

    add("Prop. 3.3: smallest recall of search", "1", lambda g: _extreme(min, g, "recall"), at_least=1.0)
    add("Prop. 3.3: smallest precision of search", "1", lambda g: _extreme(min, g, "precision"), at_least=1.0)
    add("Prop. 3.3: cost of search in KM/ε transitions", "Õ(1)", lambda g: _mean([r["cost"] for r in g.grid]))
    ratio("Prop. 3.3: E[τ] guided / at ε_max", "guided", "ideal", 0.03)

    add("Prop. 3.4: smallest hard step / ε_max", "1", lambda g: _extreme(min, g, "hard_min"), at_least=0.9)
    add("Prop. 3.4: largest hard step / ε_max", "1", lambda g: _extreme(max, g, "hard_max"), at_most=1.1)
    add("Prop. 3.4: largest TV of an easy row by PPO", "0", lambda g: _extreme(max, g, "forgotten"), at_most=0.02)
    ratio("Prop. 3.4: E[τ] tuned / at ε_max", "tuned", "ideal", 0.03)
    if len({r["gain"] for r in everything.arm}) > 2:
        add("Prop. 3.4: rounds per unit of log(ε_max/ε)", "Θ(1)", lambda g: _rounds(g)[0])
        add("Prop. 3.4: R² of rounds against log(ε_max/ε)", "1", lambda g: _rounds(g)[1])

    escape = round(float(np.mean([r["escape_exact"] for r in everything.grid])), 3)
    near = {"at_least": escape - 0.03, "at_most": escape + 0.03}
    name = "Prop. 4.1: escape probabilities of the student / q*"
    add(name, f"{escape:.3f}", lambda g: _mean([r["escape"] for r in g.grid]), **near)
    name, letter = "Prop. 4.2: exponent of T_dist in the distance of student and teacher", {"T_dist": 0.1}
    add(name, "-0.5", lambda g: _exponents(g.students, "distance", letter)["T_dist"], at_least=-0.6, at_most=-0.4)
    exponents("Thm. 4.3: E[τ⁺] of the student", "grid", "hops", "hops_exact", ε=0.02, M=0.02, K=0.1)
    ratio("Thm. 4.3: E[τ⁺] / exact, pretrained teacher", "hops", "hops_exact", 0.05)
    ratio("Thm. 4.3: E[τ⁺] / exact, tuned teacher", "hops_tuned", "hops_tuned_exact", 0.05)
    return table


# ---- numbers --------------------------------------------------------------------------------------------------------


def _exponents(rows: list[Measurement], key: str, letters: dict[str, Any]) -> dict[str, Number]:
    """Exponents of one column in others by one regression; none where the rows cannot tell them apart."""
    rows = [r for r in rows if r[key] is not None]
    x = {letter: [r[_COLUMNS[letter]] for r in rows] for letter in letters}
    design = np.column_stack([np.ones(len(rows)), *(np.log(values) for values in x.values())])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return {}
    fitted = power_laws(x, [r[key] for r in rows])
    return {letter: Number("", b, b - half, b + half) for letter, (b, half) in fitted.items()}


def _over(value: float | None, exact: float) -> float | None:
    return None if value is None else value / exact


def _mean(values: list[float | None]) -> Number:
    """Mean over models with its t interval; not measured as soon as one of them was not."""
    known = [value for value in values if value is not None]
    return mean_number("", known) if len(known) == len(values) else Number("", None)


def _extreme(pick: Callable[[list[float]], float], group: Groups, key: str) -> Number:
    return Number("", pick([r[key] for r in group.grid]))


def _rounds(group: Groups) -> tuple[Number, Number]:
    """Slope and R² of the rounds after which the mean hard step stays within 10 % of ε_max."""
    if any(r["rounds"] is None for r in group.arm):
        return Number("", None), Number("", None)
    b, half, _, r2 = straight_line([math.log(r["gain"]) for r in group.arm], [r["rounds"] for r in group.arm])
    return Number("", b, b - half, b + half), Number("", r2)

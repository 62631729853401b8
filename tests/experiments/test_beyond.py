"""The questions beyond the paper at their quick size: answered, by numbers that the mathematics can vouch for."""

import json

import numpy as np
import pytest

from mcot_torch.experiments import BEYOND, load
from mcot_torch.experiments.base import Number
from mcot_torch.experiments.beyond_common import ANSWERED, UNANSWERED, answer, make_problem
from mcot_torch.experiments.runner import run

LARGEST_FIGURE = 120_000  # bytes; they are copied into docs/
QUICK = ("beyond_imperfect_prm", "beyond_past_epsilon_max")
POINT = {"K": 4, "M": 8, "epsilon": 0.02, "seed": 0}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in BEYOND])
def test_quick(name, tmp_path):
    experiment = load(name)
    result = run(experiment, experiment.quick(), tmp_path / name)
    assert result["quick"]
    assert result["verdict"] == ANSWERED, result["why"]
    assert json.loads((tmp_path / name / "result.json").read_text()) == result
    assert len((tmp_path / name / "points.csv").read_text().splitlines()) == result["points"] + 1
    figure = (tmp_path / name / "figure.png").read_bytes()
    assert figure.startswith(b"\x89PNG")
    assert len(figure) < LARGEST_FIGURE
    CHECKS[name](result, {entry["name"]: entry["value"] for entry in result["numbers"]})


def _transformer_vs_linear(result, numbers):
    for kind in ("linear", "transformer"):
        assert numbers[f"{kind}: share of graphs with exact support, recall and precision 1"] == 1
        assert numbers[f"{kind}: |E[τ] pretrained / exact − 1| (median; range)"] < 0.05
        assert numbers[f"{kind}: |E[τ] tuned / ideal − 1| (median; range)"] < 0.1
    assert numbers["linear: largest TV of an easy row by PPO (median; range)"] < 1e-6


def _imperfect_prm(result, numbers):
    base = numbers["E[τ] without a PRM / ideal"]
    assert numbers["worst E[τ] / ideal, at false-negative rate 1"] == pytest.approx(base, rel=1e-9)
    assert numbers["largest |E[τ] of PPO / closed form − 1|, without noise"] < 0.05


def _no_cap(result, numbers):
    capped, free = "linear, d_out = 1, λ at the cap: ", "linear, d_out = 1, λ = 0.001: "
    assert numbers[capped + "hard mass of a source / cap"] == pytest.approx(1, abs=0.1)
    assert numbers[capped + "E[τ] of the task / at ε_max"] == pytest.approx(1, abs=0.1)
    assert numbers[free + "hard mass of a source / cap"] > 4


def _outcome_reward(result, numbers):
    small = "K = 4, M = 6, ε = 0.05: "
    assert numbers[small + "gain in E[τ] by outcome reward at 20,000 transitions"] > 2
    silent = numbers.get("largest gain of an outcome run in which no walk arrived")
    assert silent is None or silent == pytest.approx(1, abs=0.3)


def _compute_matched(result, numbers):
    base = numbers["ε = 0.01: E[τ] of an unaided solve"]
    assert numbers["ε = 0.01: steps of a solve, PRM guidance, best budget"] < base / 8
    assert 1 < numbers["ε = 0.01: break-even number of solves, PRM guidance"] < 1000


def _past_epsilon_max(result, numbers):
    assert numbers["largest ε with metastability ratio < 1 (median)"] >= 0.1
    assert numbers["pseudo-spectral gap at ε = 0.95"] < numbers["pseudo-spectral gap at ε = 0.01"]


def _free_entries(result, numbers):
    assert numbers["single: heads of hard steps a cluster"] == 1
    assert numbers["free: heads of hard steps a cluster"] > 2
    assert numbers["free: mislabelled states, mean"] == 0
    assert numbers["free: share of students with exactly K clusters"] == 1


CHECKS = {
    "beyond_transformer_vs_linear": _transformer_vs_linear,
    "beyond_imperfect_prm": _imperfect_prm,
    "beyond_no_cap": _no_cap,
    "beyond_outcome_reward": _outcome_reward,
    "beyond_compute_matched": _compute_matched,
    "beyond_past_epsilon_max": _past_epsilon_max,
    "beyond_free_entries": _free_entries,
}


def test_an_answer_needs_its_numbers():
    assert answer([Number("a", 1.0)], "why").verdict == ANSWERED
    open_question = answer([Number("a", 1.0), Number("b", None)], "why")
    assert open_question.verdict == UNANSWERED
    assert "b" in open_question.why


@pytest.mark.parametrize(("errors", "kernel"), [((0.0, 0.0), "ideal"), ((0.0, 1.0), "base"), ((1.0, 0.0), "base")])
def test_the_extremes_of_a_prm_have_known_times(errors, kernel):
    """A perfect PRM gives ε_max; one that knows nothing, or takes every step for a hard one, the base chain."""
    point = {**POINT, "rounds": 0, "fp": errors[0], "fn": errors[1], "noise": 0.0}
    row = load("beyond_imperfect_prm").measure(point)
    assert row["ratio"] == pytest.approx(1.0 if kernel == "ideal" else row["base"], rel=1e-9)


def test_no_budget_beats_its_own_parts():
    """Break-even by hand: set-up 90 and 1 step a solve against 10 steps pays from the 11th solve on."""
    from mcot_torch.experiments.beyond_compute_matched import _break_even, _cheapest

    cheap = {"share": 1.0, "budget": 0, "base": 10.0, "setup": 90, "solve": 1.0}
    useless = {"share": 0.5, "budget": 0, "base": 10.0, "setup": 5, "solve": None}
    assert _cheapest([cheap, useless], 5) == 95
    assert _cheapest([useless], 5) == np.inf
    assert _break_even([cheap, useless]) == 11
    assert _break_even([useless]) is None


def test_spectral_clusters_are_right_where_they_are_metastable():
    from mcot_torch.experiments.beyond_past_epsilon_max import _matched, _spectral_accuracy

    graph = make_problem(POINT).graph
    assert _spectral_accuracy(graph) == 1.0
    assert _matched(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 0]), 2) == 0.75

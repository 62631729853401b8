"""The questions beyond the paper at their quick size: answered, by numbers that the mathematics can vouch for."""

import json

import numpy as np
import pytest

from mcot_torch.experiments import BEYOND, load
from mcot_torch.experiments.base import ANSWERED, UNANSWERED, Number
from mcot_torch.experiments.questions.beyond_common import answer, make_problem
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
        assert numbers[f"Thm. 3.1: share of models whose support is exact after the cut, {kind}"] == 1
        assert numbers[f"Thm. 3.1: exponent of T in sup-error before the cut, {kind}"] == pytest.approx(-0.5, abs=0.2)
        assert numbers[f"Thm. 3.2: E[τ] with the cut / exact, {kind}"] == pytest.approx(1, abs=0.05)
        assert numbers[f"Prop. 3.3: smallest recall of search, {kind}"] == 1
        assert numbers[f"Prop. 3.4: E[τ] tuned / at ε_max, {kind}"] == pytest.approx(1, abs=0.1)
        # a teacher of 250 steps is some hundredths off itself
        assert numbers[f"Thm. 4.3: E[τ⁺] / exact, pretrained teacher, {kind}"] == pytest.approx(1, abs=0.1)
    assert numbers["Prop. 3.4: largest TV of an easy row by PPO, linear"] < 1e-6
    assert result["table"][0] == ["claim", "exact", "linear", "transformer", "counts as kept"]


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


def _ideal_rows():
    """What models would give that are p^ε itself, with E[τ] = .3 KM/ε, a ratio of 2/M and E[τ⁺] = 1.4 K exactly."""
    experiment = load("beyond_transformer_vs_linear")
    rows = []
    for point in experiment.points(experiment.settings()):
        k, m, epsilon, t = point["K"], point["M"], point["epsilon"], point["T"]
        times = dict.fromkeys(("time", "time_raw", "time_sample", "time_exact"), 0.3 * k * m / epsilon)
        error = 0.0 if t is None else t**-0.5
        sup = dict.fromkeys(("sup_before", "sup_after", "sup_sample", "sup_before_possible"), error)
        row = {
            **point,
            **times,
            **sup,
            "sup_before_impossible": 0.0,
            "support_exact": True,
            "leak": 0.0,
            "parameters": 1,
        }
        row |= {"ratio": 2 / m, "ratio_exact": 2 / m, "pretrain_seconds": 1.0}
        if point["ppo_rounds"]:
            gain = 0.96 / m / epsilon
            row |= {
                "recall": 1.0,
                "precision": 1.0,
                "cost": 15.0,
                "guided": 9.0,
                "ideal": 9.0,
                "tuned": 9.0,
                "gain": gain,
            }
            row |= {
                "hard_min": 1.0,
                "hard_max": 1.0,
                "forgotten": 0.0,
                "few_hard_min": None,
                "rounds": 3 * np.log(gain),
            }
            row |= {"escape": 1.01, "escape_exact": 1.01, "teacher_error": 0.0}
            row |= {key: [t**-0.5 for t in point["dist"]] for key in ("dist_errors", "dist_distances")}
            row |= dict.fromkeys(("hops", "hops_exact", "hops_tuned", "hops_tuned_exact"), 1.4 * k)
        rows.append(row)
    return experiment, rows


def test_models_that_are_exact_keep_every_claim():
    experiment, rows = _ideal_rows()
    summary = experiment.summarise(experiment.settings(), rows)
    values = {number.name: number.value for number in summary.numbers}
    for name, expected in {
        "Prop. 2.1: exponent of M in metastability ratio along ε = c/M": -1,
        "Thm. 3.1: exponent of T in sup-error before the cut": -0.5,
        "Thm. 3.2: exponent of ε in E[τ] with the cut": -1,
        "Thm. 3.2: exponent of M in E[τ] with the cut": 1,
        "Thm. 3.2: exponent of K in E[τ] with the cut": 1,
        "Prop. 3.4: rounds per unit of log(ε_max/ε)": 3,
        "Prop. 4.2: exponent of T_dist in the distance of student and teacher": -0.5,
        "Thm. 4.3: exponent of ε in E[τ⁺] of the student": 0,
        "Thm. 4.3: exponent of M in E[τ⁺] of the student": 0,
        "Thm. 4.3: exponent of K in E[τ⁺] of the student": 1,
    }.items():
        assert values[f"{name}, transformer"] == pytest.approx(expected, abs=1e-9), name
    assert summary.verdict == ANSWERED
    assert all(number.ok for number in summary.numbers)
    assert "not:" not in summary.why


def test_a_model_that_leaves_a_claim_is_named():
    """E[τ] of the transformer grows as M^1.3 instead of M: the exponent is bold in the table and named, the table's is not."""
    experiment, rows = _ideal_rows()
    for row in rows:
        row["time"] *= (row["M"] / 16) ** 0.3 if row["kind"] == "transformer" else 1.0
    summary = experiment.summarise(experiment.settings(), rows)
    (line,) = [line for line in summary.table if line[0] == "Thm. 3.2: exponent of M in E[τ] with the cut"]
    assert line[1:3] == ["1.000", "1 [1, 1]"]
    assert line[3] == "**1.3 [1.3, 1.3]**"
    assert "exponent of M in E[τ] with the cut: 1.3 [1.3, 1.3] (exact 1.000)" in summary.why


def test_a_student_that_never_arrives_leaves_the_question_open():
    experiment, rows = _ideal_rows()
    rows[0]["hops"] = None
    summary = experiment.summarise(experiment.settings(), rows)
    assert summary.verdict == UNANSWERED
    assert "E[τ⁺] / exact, pretrained teacher, linear" in summary.why


def test_every_question_has_its_checks():
    """A question without checks would fail in slow tests only."""
    assert set(CHECKS) == set(BEYOND)


def test_escape_and_error_of_a_student_by_hand():
    """On a directed ring every hop p is the escape to every other cluster: a walk that left comes by all of them."""
    from mcot_torch.experiments.questions.beyond_learned import _escape_ratio, _rms

    p = np.array([0.1, 0.2, 0.4])
    ring = np.diag(1 - p) + np.diag(p[:2], 1)
    ring[2, 0] = p[2]
    star = np.repeat(p[:, None] / 2, 3, axis=1)
    assert _escape_ratio(ring, star) == pytest.approx(2)
    assert _escape_ratio(np.diag([1.0, 1.0, 1.0]), star) is None
    edges = np.array([[False, True], [True, False]])
    q = np.array([[0.9, 0.1], [0.2, 0.8]])
    learned = np.array([[0.87, 0.13], [0.12, 0.88]])  # relative errors .3 and -.4
    assert _rms(learned, q, edges) == pytest.approx(np.sqrt((0.09 + 0.16) / 2))


def test_a_table_stands_in_place_of_the_numbers():
    from mcot_torch.experiments.documentation import _section

    result = {"name": "n", "title": "T", "claim": "c", "verdict": "answered", "why": "w", "notes": [], "quick": False}
    result |= {"command": "x", "points": 1, "seconds": 1, "machine": "m", "versions": {"mcot_torch": "0", "torch": "2"}}
    number = {"name": "|a|", "value": 1.0}
    assert "| &#124;a&#124; | 1 |  |  |  |" in _section({**result, "numbers": [number], "table": []}, [])
    text = _section({**result, "numbers": [number], "table": [["claim", "exact"], ["b", "2"]]}, [])
    assert "| claim | exact |\n| --- | --- |\n| b | 2 |" in text
    assert "&#124;a" not in text


@pytest.mark.parametrize(("errors", "kernel"), [((0.0, 0.0), "ideal"), ((0.0, 1.0), "base"), ((1.0, 0.0), "base")])
def test_the_extremes_of_a_prm_have_known_times(errors, kernel):
    """A perfect PRM gives ε_max; one that knows nothing, or takes every step for a hard one, the base chain."""
    point = {**POINT, "rounds": 0, "fp": errors[0], "fn": errors[1], "noise": 0.0}
    row = load("beyond_imperfect_prm").measure(point)
    assert row["ratio"] == pytest.approx(1.0 if kernel == "ideal" else row["base"], rel=1e-9)


def test_no_budget_beats_its_own_parts():
    """Break-even by hand: set-up 90 and 1 step a solve against 10 steps pays from the 11th solve on."""
    from mcot_torch.experiments.questions.beyond_compute_matched import _break_even, _cheapest

    cheap = {"share": 1.0, "budget": 0, "base": 10.0, "setup": 90, "solve": 1.0}
    useless = {"share": 0.5, "budget": 0, "base": 10.0, "setup": 5, "solve": None}
    assert _cheapest([cheap, useless], 5) == 95
    assert _cheapest([useless], 5) == np.inf
    assert _break_even([cheap, useless]) == 11
    assert _break_even([useless]) is None


def test_spectral_clusters_are_right_where_they_are_metastable():
    from mcot_torch.experiments.questions.beyond_past_epsilon_max import _matched, _spectral_accuracy

    graph = make_problem(POINT).graph
    assert _spectral_accuracy(graph) == 1.0
    assert _matched(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 0]), 2) == 0.75

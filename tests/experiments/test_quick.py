"""Each of the paper's claims at its quick size: the files are there, the numbers are near the theory."""

import json

import pytest

from mcot_torch.experiments import PAPER, load
from mcot_torch.experiments.base import FAILS
from mcot_torch.experiments.runner import run

NEAR = {
    "prop_2_1": {"exponent of M along ε = c/M, expanders": (-1, 0.1), "exponent of n_out, expanders": (1, 0.15)},
    "thm_3_1": {"exponent of T, exact gradients": (-1, 0.15), "exponent of T, sampled pairs": (-0.5, 0.15)},
    "thm_3_2": {
        "exponent of ε, circulant": (-1, 0.01),
        "exponent of M, circulant": (1, 0.02),
        "exponent of K, circulant": (1, 0.05),
        "exponent of K, bidirectional ring": (2, 0.1),
    },
    "prop_3_3": {"smallest recall at the full budget": (1, 0), "exponent of ε_max/ε in E[τ] before / after": (1, 0.05)},
    "prop_3_4": {"R² of updates against log(ε_max/ε)": (1, 0.02), "smallest hard step / ε_max, linear": (1, 1e-9)},
    "prop_4_1_4_2": {
        "largest ratio at ε = 1e-05": (1, 1e-4),
        "exponent of T_dist in the error at ε = 0.03": (-0.5, 0.2),
    },
    "thm_4_3": {
        "exponent of ε, exact, circulant": (0, 0.02),
        "exponent of M, exact, circulant": (0, 0.02),
        "exponent of K, exact, circulant": (1, 0.1),
        "largest |distilled / exact − 1|": (0, 0.05),
    },
    "sda": {
        "largest |<h_p1, h_p2>|, all pairs": (0, 0),
        "slope of log2 SDA in K, path, ρ = 0 (Figure 2)": (1, 1e-9),
        "slope of log2 SDA in K, ball of radius 1, ρ = 1 (Figure 3)": (1, 1e-9),
        "slope of log2 SDA in K, ball of radius 2, ρ = 1 (Figure 3)": (0, 1e-9),
    },
    "logic_access": {
        "smallest accuracy of a searching mlp, all K": (1, 0.01),
        "hidden bits that search read off wrongly": (0, 0),
    },
    "logic_pipeline": {
        "tuned model: valid path and right value, least of all runs": (1, 0.01),
        "student: valid path and right value, least of all runs": (1, 0.01),
        "control, S3: right values, advantage over chance": (0, 0.15),
    },
    "figures_1_2_3": {
        "hard steps that search missed": (0, 0),
        "Figure 2: rows on the path that differ between the concepts": (0, 0),
        "Figure 3: product of the path's two values": (-1, 0),
    },
}
LARGEST_FIGURE = 120_000  # bytes; they are copied into docs/


def test_every_claim_has_its_numbers():
    """A claim without them would fail in slow tests only, if it trains."""
    assert set(NEAR) == set(PAPER)


LONG = ("prop_4_1_4_2", "thm_4_3", "logic_access")  # they train


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in PAPER])
def test_quick(name, tmp_path):
    experiment = load(name)
    result = run(experiment, experiment.quick(), tmp_path / name)
    assert result["quick"]
    assert json.loads((tmp_path / name / "result.json").read_text()) == result
    numbers = {entry["name"]: entry["value"] for entry in result["numbers"]}
    for key, (expected, tolerance) in NEAR[name].items():
        assert numbers[key] == pytest.approx(expected, abs=tolerance), key
    lines = (tmp_path / name / "points.csv").read_text().splitlines()
    assert len(lines) == result["points"] + 1
    figure = (tmp_path / name / "figure.png").read_bytes()
    assert figure.startswith(b"\x89PNG")
    assert len(figure) < LARGEST_FIGURE


def test_the_verdict_follows_the_numbers():
    """A hitting time that grows as K² on the circulant must not pass."""
    experiment = load("thm_3_2")
    settings = experiment.quick()
    rows = [
        {**point, "hitting_time": point["K"] ** 2 * point["M"] / point["epsilon"], "constant": point["K"]}
        for point in experiment.points(settings)
    ]
    summary = experiment.summarise(settings, rows)
    assert summary.verdict == FAILS
    assert "exponent of K, circulant is 2" in summary.why

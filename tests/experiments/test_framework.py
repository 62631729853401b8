"""The framework: fits, verdicts, resuming point by point, the command line, the documentation."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from matplotlib.figure import Figure

from mcot_torch.cli.experiments import _deciding, main
from mcot_torch.errors import InputError
from mcot_torch.experiments import NAMES, load
from mcot_torch.experiments.base import CONSTANTS, FAILS, HOLDS, Experiment, Number, judge
from mcot_torch.experiments.documentation import write_docs
from mcot_torch.experiments.fits import mean_number, power_law, power_laws, slope, straight_line
from mcot_torch.experiments.runner import run, worker_pool


@dataclass
class Settings:
    xs: list[int] = field(default_factory=lambda: [1, 2, 3, 4])
    """Points."""


class Stop(Exception):
    pass


@pytest.fixture
def squares():
    """An experiment that measures x², counts its calls and can be stopped at a point."""
    calls, stop = [], []

    def measure(point):
        if point["x"] in stop:
            raise Stop
        calls.append(point["x"])
        return {"y": np.float64(point["x"] ** 2), "many": np.array([1.0, np.inf])}

    def summarise(settings, rows):
        return judge([slope("exponent", [r["x"] for r in rows], [r["y"] for r in rows], 2, 0.01)], "It is a square.")

    def points(settings):
        return [{"x": x} for x in settings.xs]

    experiment = Experiment(
        "prop_2_1", "Squares", "y = x².", Settings, Settings, points, measure, summarise, lambda *_: Figure()
    )
    return experiment, calls, stop


# ---- fits -----------------------------------------------------------------------------------------------------------


def test_line_against_hand_computation():
    b, half, a, r2 = straight_line([0, 1, 2], [0, 1, 3])
    # Sxx = 2, slope 1.5, residuals 1/6, -1/3, 1/6: s² = 1/6, se = sqrt(1/12); t(.975, 1) = 12.7062
    assert (b, a) == pytest.approx((1.5, -1 / 6))
    assert half == pytest.approx(12.7062 * (1 / 12) ** 0.5, rel=1e-5)
    assert r2 == pytest.approx(1 - (1 / 6) / (14 / 3))


def test_power_laws_recover_exponents():
    x, y = np.meshgrid([1.0, 2.0, 4.0], [3.0, 9.0, 27.0])
    fit = power_laws({"x": x.ravel(), "y": y.ravel()}, (5 * x**-1 * y**2).ravel())
    assert fit["x"][0] == pytest.approx(-1)
    assert fit["y"][0] == pytest.approx(2)
    assert fit["y"][1] < 1e-10
    assert power_law([1, 2, 4], [3, 6, 12])[::2] == pytest.approx((1, 3))


def test_power_laws_agree_with_a_line_in_one_variable():
    rng = np.random.default_rng(0)
    x = np.repeat([1.0, 2.0, 4.0, 8.0], 5)
    y = x**0.7 * np.exp(0.1 * rng.standard_normal(20))
    assert power_laws({"x": x}, y)["x"] == pytest.approx(power_law(x, y)[:2])


def test_intervals_cover():
    """95 % intervals of a slope miss the truth in about one case of twenty."""
    rng, x = np.random.default_rng(1), np.geomspace(1, 100, 8)
    hits = sum(
        n.low <= 1.5 <= n.high for n in (slope("", x, x**1.5 * np.exp(rng.standard_normal(8))) for _ in range(400))
    )
    assert 0.92 <= hits / 400 <= 0.98


def test_mean_has_a_t_interval():
    number = mean_number("mean", [1.0, 2.0, 3.0])
    assert number.value == 2
    assert number.high - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-5)


def test_the_numbers_decide():
    good, bad = Number("a", 1.0, at_least=0.9, at_most=1.1), Number("b", 2.0, at_most=1.5)
    assert judge([good], "Yes.").verdict == HOLDS
    assert judge([good], "Yes.", constants=True).verdict == CONSTANTS
    assert judge([good, bad], "Yes.").verdict == FAILS
    assert judge([good, bad], "Yes.").why == "b is 2, not at most 1.5."
    assert judge([Number("c", None, at_least=0)], "Yes.").verdict == FAILS
    with pytest.raises(ValueError, match="no number decides"):
        judge([Number("d", 1.0)], "Yes.")


# ---- the runner -----------------------------------------------------------------------------------------------------


def test_writes_everything(squares, tmp_path):
    result = run(squares[0], Settings(), tmp_path / "r")
    assert result["verdict"] == HOLDS
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "settings.json",
        "points.jsonl",
        "points.csv",
        "result.json",
        "figure.png",
    }
    assert json.loads((tmp_path / "r/result.json").read_text()) == result
    assert (tmp_path / "r/points.csv").read_text().splitlines()[:2] == ["x,y,many", '1,1.0,"[1.0, null]"']


def test_resumes_behind_the_last_finished_point(squares, tmp_path):
    experiment, calls, stop = squares
    stop.append(3)
    with pytest.raises(Stop):
        run(experiment, Settings(), tmp_path)
    assert calls == [1, 2]
    stop.clear()
    with open(tmp_path / "points.jsonl", "a") as file:
        file.write('{"point": {"x": 3}, "resu')  # killed in the middle of a line
    run(experiment, Settings(), tmp_path)
    assert calls == [1, 2, 3, 4]
    whole = [json.loads(line)["point"]["x"] for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    assert whole == [1, 2, 3, 4]
    run(experiment, Settings(), tmp_path)
    assert calls == [1, 2, 3, 4]


def test_other_settings_do_not_mix(squares, tmp_path):
    experiment, calls, _ = squares
    run(experiment, Settings(), tmp_path)
    with pytest.raises(InputError, match=r"other settings.*xs.*--overwrite"):
        run(experiment, Settings([1, 2, 5]), tmp_path)
    run(experiment, Settings([1, 2, 5]), tmp_path, overwrite=True)
    assert calls[4:] == [1, 2, 5]


def test_a_failure_names_the_point(squares, tmp_path):
    experiment, _, stop = squares
    stop.append(2)
    with pytest.raises(Stop) as caught:
        run(experiment, Settings(), tmp_path)
    assert "{'x': 2}" in caught.value.__notes__[0]


@pytest.mark.slow
def test_workers_give_the_same_rows(tmp_path):
    experiment = load("prop_2_1")
    run(experiment, experiment.quick(), tmp_path / "one")
    with worker_pool(2) as pool:
        run(experiment, experiment.quick(), tmp_path / "two", pool)
    assert (tmp_path / "one/points.csv").read_text() == (tmp_path / "two/points.csv").read_text()


# ---- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prop_2_2"], "did you mean prop_2_1?"),
        (["prop_2_1", "--settings.seed", "1"], "did you mean --settings.seeds?"),
        (["prop_2_1", "--jobs", "0"], "jobs is 0"),
        (["prop_2_1", "--settings.seeds", "many"], "settings.seeds is many"),
        (["prop_2_1", "thm_3_2", "--settings.seeds", "1"], "--settings needs one experiment"),
        (["prop_2_1", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["--quick"], "name an experiment"),
    ],
)
def test_mistakes_are_told_in_one_line(words, told, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_settings_from_file_and_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text("settings:\n  cluster_sizes: [16, 32, 64]\n  seeds: 1\n")
    words = ["prop_2_1", "--quick", "--jobs", "1", "--config", "small.yaml", "--settings.n_outs", "3"]
    assert main(words) == 0
    settings = json.loads((tmp_path / "results/quick/prop_2_1/settings.json").read_text())
    assert settings["cluster_sizes"] == [16, 32, 64]
    assert (settings["seeds"], settings["n_outs"], settings["n_clusters"]) == (1, [3], 10)


def test_list_names_all(tmp_path, capsys):
    assert main(["list", "--results_dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)


def test_every_experiment_is_complete():
    for name in NAMES:
        experiment = load(name)
        assert experiment.name == name
        points = experiment.points(experiment.settings())
        assert len({json.dumps(p, sort_keys=True) for p in points}) == len(points)
        assert 0 < len(experiment.points(experiment.quick())) <= len(points)


# ---- documentation --------------------------------------------------------------------------------------------------


def test_docs_show_results_and_name_what_is_missing(squares, tmp_path):
    run(squares[0], Settings(), tmp_path / "results/prop_2_1")
    text = write_docs(tmp_path / "results", tmp_path / "docs").read_text()
    assert "| exponent | 2 | 2 .. 2 | 2 ± 0.01 | in [1.99, 2.01]: yes |" in text
    assert "**Holds.** It is a square." in text
    assert "![Squares](figures/prop_2_1.png)" in text
    assert (tmp_path / "docs/figures/prop_2_1.png").exists()
    assert text.count("**Missing**") == len(NAMES) - 1


def test_docs_command(tmp_path, capsys):
    words = ["docs", "--results_dir", str(tmp_path / "results"), "--docs_dir", str(tmp_path / "docs")]
    assert main(words) == 0
    assert (tmp_path / "docs/results.md").exists()


def test_docs_keep_a_section_whose_result_lies_elsewhere(squares, tmp_path):
    run(squares[0], Settings(), tmp_path / "here/prop_2_1")
    first = write_docs(tmp_path / "here", tmp_path / "docs").read_text()
    again = write_docs(tmp_path / "elsewhere", tmp_path / "docs").read_text()
    assert again == first.replace("`here/`", "`elsewhere/`")


def test_the_noted_command_holds_what_decides_the_numbers_only():
    words = ["--jobs", "2", "--results_dir=elsewhere", "--quick", "--overwrite", "--settings.seeds", "3", "--jobs=1"]
    assert _deciding(words) == ["--quick", "--settings.seeds", "3"]
    assert _deciding(["--overwrite", "true", "--results_dir", "x", "--quick", "true"]) == ["--quick", "true"]

"""The SDA experiment judges what it measured; the figures of Section 5 carry the graphs that went in."""

from dataclasses import replace

import pytest
from matplotlib.collections import LineCollection

from mcot_torch.errors import InputError
from mcot_torch.experiments.base import CONSTANTS, FAILS
from mcot_torch.experiments.claims.sda import EXPERIMENT, Settings, measure, points, summarise
from mcot_torch.graphs.families.lifts import LiftedUnits
from mcot_torch.report.figures.logic import concept_figure

SMALL = Settings(n_units=[1, 2, 3], cluster_size=16, walked=5, seeds=1)


@pytest.fixture(scope="module")
def rows():
    return [{**point, **measure(point)} for point in points(SMALL)]


def test_sda_of_real_graphs(rows):
    for row in rows:
        many, few = 2 ** row["K"], 1
        radius = {"none": many, "path": many, "ball": many, "beyond": few, "global": few}
        assert {access: row[f"sda_{access}"] for access in radius} == radius
        assert row["paths_walked"] == many * min(5, many)
        assert (row["wrong"], row["invalid"], row["correlation"]) == (0, 0, 0.0)


def test_the_verdict_follows_the_rows(rows):
    assert summarise(SMALL, rows).verdict == CONSTANTS
    for key, value in (("wrong", 1), ("invalid", 2), ("correlation", 0.25), ("sda_ball", 1), ("sda_global", 2)):
        broken = [{**row, key: value} if row["K"] == 3 and row["rho"] == 1 else row for row in rows]
        assert summarise(SMALL, broken).verdict == FAILS, key


def test_the_table_shows_what_was_measured(rows):
    table = summarise(SMALL, rows).table
    assert len({len(cells) for cells in table}) == 1
    assert [cells[1] for cells in table] == ["none (ρ = 0)", "2", "4", "8", "1"]
    assert EXPERIMENT.figure(SMALL, rows, summarise(SMALL, rows)).axes


def test_sizes_beyond_a_full_enumeration_are_refused():
    with pytest.raises(InputError, match="n_units holds 13"):
        points(replace(SMALL, n_units=[13]))


@pytest.mark.parametrize(("rho", "size"), [(0, 14), (1, 20)])
def test_crossings_are_drawn_where_p_is_0(rho, size):
    """Two lanes of edges a unit: those that cross are the lines of their own colour, two for each crossed edge of H."""
    units = LiftedUnits(2, size, 0.01, rho, 15)
    figure = concept_figure(units, ["10", "01", "11"], [1, 0])
    crossed = []
    for axes in figure.axes:
        lines = [c for c in axes.collections if isinstance(c, LineCollection)]
        assert sum(len(c.get_segments()) for c in lines) == 5 * 2 * size  # 2M edges in each of 5 lanes
        (crossing,) = [c for c in lines if c.get_label() == "crossing"]
        crossed.append(len(crossing.get_segments()))
        assert all(s[:, 1].min() > rho + 0.5 for s in crossing.get_segments())  # above the horizon
    assert crossed == [2 * int(units.crossings[1].sum()), 2 * int(units.crossings[0].sum()), 0]
    values = [text.get_text() for axes in figure.axes for text in axes.texts if "value" in text.get_text()]
    assert [value[-2:] for value in values] == ["−1", "+1", "−1"]


def test_too_many_units_for_a_figure():
    with pytest.raises(InputError, match="n_units is 5; the figure shows at most 4"):
        concept_figure(LiftedUnits(5, 16), ["00000"], [0] * 5)

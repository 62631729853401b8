"""report.html in a real browser, offline: it loads, draws, fits a phone, follows light and dark, plays, prints."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_report import HOSTILE

from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.report.page.story import report_page


@pytest.fixture(scope="module")
def url(material, tmp_path_factory):
    graph = clustered_graph(5, 8, 0.01, seed=2)
    names = (HOSTILE, "<img src=x onerror=window.pwned=2>", *(f"a rather long name of state {i}" for i in range(38)))
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report_page(material(replace(graph, names=names))))
    return path.as_uri()


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (1200, False),
        (390, True),
        pytest.param(1200, True, marks=pytest.mark.slow),
        pytest.param(390, False, marks=pytest.mark.slow),
    ],
)
def test_it_loads_draws_and_fits(browser, url, width, dark):
    page = browser.open(url, width=width, dark=dark)
    assert page.errors() == []
    assert page.requests() == [url]
    places = page.run("document.querySelectorAll('.plot').length")
    assert places == 10  # kernel 6, times 1, costs 2, student 1
    assert (
        page.run(
            "[...document.querySelectorAll('.plot')].filter((p) => p.querySelector('.scatterlayer .trace, .heatmaplayer image')).length"
        )
        == places
    )
    assert page.run("[...document.querySelectorAll('svg.graph')].every((g) => g.getBoundingClientRect().height > 200)")
    assert page.run("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('body *')].filter((e) => !e.closest('.wide, pre, svg') && e.getBoundingClientRect().right > innerWidth + 1)"
    assert page.run(f"{wide}.map((e) => e.className + e.tagName)") == []
    assert page.run("window.pwned") is None


def test_light_and_dark(browser, url):
    page = browser.open(url)
    dark = browser.open(url, dark=True)
    paper = "getComputedStyle(document.body).backgroundColor"
    line = "getComputedStyle(document.querySelector('#times-1 .scatterlayer .trace:nth-child(3) path')).stroke"
    assert page.run(paper) == "rgb(252, 252, 250)"
    assert dark.run(paper) == "rgb(21, 24, 27)"
    assert page.run(line) == "rgb(107, 107, 107)"  # the base chain's grey in the figures
    assert dark.run(line) != page.run(line)
    page.run("document.getElementById('theme').click()")
    assert page.run(paper) == dark.run(paper)
    assert page.run(line) == dark.run(line)
    page.run("document.getElementById('theme').click()")
    assert page.run(paper) == "rgb(252, 252, 250)"
    assert page.errors() == []


def test_hovering_tells_names_and_probabilities(browser, url):
    page = browser.open(url)
    page.run("document.querySelector('.state[data-t]').scrollIntoView({block: 'center', behavior: 'instant'})")
    page.wait(300)  # scrolling hides the text
    x, y = page.run(
        "(() => { const b = document.querySelector('.state[data-t]').getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    told = page.run("document.getElementById('tip').hidden ? null : document.getElementById('tip').textContent")
    assert told.startswith(f"{HOSTILE}  (C_0")
    assert "easy: " in told
    assert page.run("document.querySelectorAll('#tip *').length") == 0
    arrow = page.run("document.querySelector('.arrow[data-t]').dataset.t")
    assert "probability a step: base 0.01" in arrow
    assert page.run("window.pwned") is None
    assert page.errors() == []


def test_the_player_plays_steps_and_pauses(browser, url):
    page = browser.open(url)
    now = "document.querySelector('.now').textContent"
    at = "Number(document.querySelector('#player input').value)"
    tabs = page.run("[...document.querySelectorAll('.tabs button')].map((b) => b.textContent)")
    assert tabs == ["Base chain", "Tuned model", "Student", "Lifted path"]
    assert page.run(now).startswith("Step 0 of ")
    page.run("document.querySelector('.forth').click()")
    assert page.run(at) == 1
    page.run("document.querySelector('.back').click()")
    assert page.run(at) == 0
    for i, unit in enumerate(("Step", "Step", "Hop", "Step")):
        page.run(f"document.querySelectorAll('.tabs button')[{i}].click()")
        assert page.run(now).startswith(f"{unit} 0 of ")
        last = page.run("Number(document.querySelector('#player input').max)")
        page.run(
            f"document.querySelector('#player input').value = {last}; document.querySelector('#player input').dispatchEvent(new Event('input'))"
        )
        assert "the goal" in page.run(now)
        page.run("document.querySelector('.play').click()")  # from the end it begins again
        page.wait(900)
        reached = page.run(at)
        assert 0 < reached <= last
        page.run("document.querySelector('.play').textContent === 'Pause' && document.querySelector('.play').click()")
        paused = page.run(at)
        page.wait(300)
        assert page.run(at) == paused
    assert page.errors() == []


def test_it_prints(browser, url, tmp_path):
    page = browser.open(url, dark=True)
    page.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert page.run("document.documentElement.dataset.theme") is None  # back to what it was
    assert page.errors() == []


@pytest.mark.parametrize("width", [500, 1600])
def test_charts_fit_the_sheet_whatever_the_window(browser, url, width):
    page = browser.open(url, width=width)
    widths = "[...document.querySelectorAll('.plot')].map((p) => [p.clientWidth, p.querySelector('.main-svg').width.baseVal.value])"
    before = page.run(widths)
    page.run("dispatchEvent(new Event('beforeprint'))")
    printed = page.run(widths)
    assert all(chart == place for place, chart in printed)
    assert max(place for place, _ in printed) == 760
    assert sorted(place for place, _ in printed)[-5] == pytest.approx(760 / 2, abs=32)  # pairs stay side by side
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run(widths) == before
    assert page.errors() == []

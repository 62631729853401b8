"""The pages of docs/: links, code blocks, commands, the map from theory to code, and the site that they make."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from mcot_torch.runs.config import parse_train, resolve_run_dir

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MIB = 2**20


def named(page):
    return str(page.relative_to(DOCS))


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


# ---- pages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_and_pictures_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not urlsplit(target).scheme:
            path = target.partition("#")[0]
            assert not path or (page.parent / path).is_file(), target


def test_docs_stay_small():
    assert sum(p.stat().st_size for p in DOCS.rglob("*") if p.is_file()) < 3 * MIB


def test_every_page_is_in_the_navigation():
    def pages(node):
        if isinstance(node, str):
            return [node]
        return [page for value in (node.values() if isinstance(node, dict) else node) for page in pages(value)]

    text = (ROOT / "mkdocs.yml").read_text()
    assert sorted(pages(yaml.safe_load(text)["nav"])) == [named(page) for page in PAGES]


def commands():
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in re.findall(r"python train\.py (.*)", block):
                yield pytest.param(re.sub(r"\$\w+|SEED", "1", line).split(" #")[0], id=f"{named(page)}: {line[:60]}")


@pytest.mark.parametrize("words", commands())
def test_train_commands_parse(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse_train(shlex.split(words))


def test_sweep_of_the_page_is_read(monkeypatch, tmp_path):
    from mcot_torch.runs.sweeps.spec import read_spec

    (spec,) = blocks(DOCS / "howto/sweep.md", "yaml")
    (tmp_path / "sweep.yaml").write_text(spec)
    monkeypatch.chdir(ROOT)
    sweep = read_spec(tmp_path / "sweep.yaml")
    assert len(sweep.runs) == 3 * 2
    assert (
        Path("runs/rarer") in Path(resolve_run_dir(sweep.runs[0].config)).parents
    )  # as the comparison of the page expects


# ---- code of the how-to pages ---------------------------------------------------------------------------------------


def executed(page, monkeypatch, folder):
    """The names that a page's Python blocks leave, run one after the other in an empty folder."""
    monkeypatch.chdir(folder)
    names: dict = {"__name__": "page"}
    for block in blocks(DOCS / page, "python"):
        if "to_huggingface" in block:
            pytest.importorskip("transformers", minversion="5.0")
        exec(compile(block, page, "exec"), names)
    return names


def test_own_graph(monkeypatch, tmp_path, capsys):
    names = executed("howto/own-graph.md", monkeypatch, tmp_path)
    graph = names["graph"]
    assert graph.n_clusters == 3
    assert graph.sparse_edges.tolist() == [[0, 4], [4, 8], [8, 0]]
    # each door is stood at a quarter of the time and left by .01: twice 400 steps, less the second arrival at a door itself,
    # and at the end 4 steps on average to one of 4 spots; solved by hand:
    out, inside = 1 / 0.01, 4.0  # E[visits to a door], steps from one visit to the next
    first = inside + (out - 1) * inside + 1  # from a spot that is no door: reach it, come back 99 times, leave
    second = 1 + (out - 1) * inside  # begins at the door
    told = float(re.search(r"exactly ([\d.]+) steps", capsys.readouterr().out).group(1))
    third = third_room(0.01)
    assert told == pytest.approx(first + second + third, rel=1e-9)


def third_room(epsilon):
    """Steps from the cellar's door to its table, with the way round through hall and kitchen."""
    # d, s: from the door, from another spot that is not the table; b: from the next room's door back to this one's
    back = 2 * (1 + (1 / epsilon - 1) * 4)
    # d = 1 + (1 - ε)(d/4 + s/2) + ε(back + d);  s = 1 + d/4 + s/2
    # s = 2 + d/2
    rest = 1 - epsilon
    return (1 + rest * 1.0 + epsilon * back) / (1 - rest / 2 - epsilon)


def test_own_model(monkeypatch, tmp_path):
    names = executed("howto/own-model.md", monkeypatch, tmp_path)
    rows, graph, task = names["rows"], names["graph"], names["task"]
    mt = names["mt"]
    ideal = mt.hitting_time(graph.with_epsilon(0.1).kernel(), task.start, task.target)
    assert rows["gated"]["hitting_time_exact"] == pytest.approx(ideal, rel=0.1)
    assert sorted(map(tuple, names["prm"].edges.tolist())) == sorted(map(tuple, graph.sparse_edges.tolist()))
    assert rows["student"]["hitting_time_exact"] == pytest.approx(
        rows["student"]["hitting_time_reference"], rel=0.1
    )  # the exact meta-chain
    assert (names["again"].kernel() == names["model"].kernel()).all()
    assert type(names["again"]).__name__ == "Gated"


def test_own_lightning_trainer(monkeypatch, tmp_path):
    names = executed("howto/lightning.md", monkeypatch, tmp_path)
    rows, graph, reasoner = names["rows"], names["graph"], names["reasoner"]
    assert int(reasoner.support.mask.sum()) == graph.n_edges
    exact = rows["base"]["hitting_time_exact"]
    assert rows["mine"]["hitting_time_exact"] == pytest.approx(exact, rel=0.1)
    assert names["trainer"].global_step == 300


def test_own_reward(monkeypatch, tmp_path):
    names = executed("howto/own-reward.md", monkeypatch, tmp_path)
    assert names["distance"] < 0.03
    before, after, prm = names["before"], names["after"], names["prm"]
    x, y = prm.edges.T
    factor = after[x, y] / before[x, y]
    assert (factor[prm.step == 3] < 0.5).all()  # the optimum has about exp(-2)
    assert (factor[prm.step != 3] > 3).all()  # and about exp(2)


def test_sweep(monkeypatch, tmp_path, capsys):
    executed("howto/sweep.md", monkeypatch, tmp_path)
    times = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert times[0] == pytest.approx(2 * times[1], rel=0.05)  # Theorem 3.2: 1/ε
    assert times[1] == pytest.approx(2 * times[2], rel=0.05)


@pytest.mark.slow
def test_tutorial(monkeypatch, tmp_path):
    rows = executed("tutorial.md", monkeypatch, tmp_path)["rows"]
    assert rows["tuned"]["speedup"] > 5
    assert 5 < rows["student"]["hitting_time_exact"] < 10


# ---- theory and code ------------------------------------------------------------------------------------------------

ITEMS = [
    *(f"A{i} " for i in range(1, 6)), *(f"Algorithm {i}," for i in range(1, 5)), "Proposition 2.1", "Theorem 3.1", "Theorem 3.2",
    "Proposition 3.3", "Proposition 3.4", "Proposition 4.1", "Proposition 4.2", "Theorem 4.3", "Theorem 5.2", "Theorem 5.3",
    "Corollary 5.6", "SDA", "q*", "ε_max", "μ_k", "S^ε_kk", "τ_A", "τ̄_A", "q°", "M_s", "Ĉ", "S_o", "ι", "β", "D_dist", "E_0", "E_s",
    "C_1", "X_in", "X_out", "α", "r_t", "I_p", "nbd(M)",
]  # fmt: skip


def places():
    return sorted(set(re.findall(r"`(mcot_torch/[\w/]+\.py):([\w.]+)`", (DOCS / "theory.md").read_text())))


@cache
def tree(path):
    return ast.parse((ROOT / path).read_text())


def defined(body, name):
    """The node that defines `name`, or None."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return next((node for node in body if isinstance(node, kinds) and node.name == name), None)


@pytest.mark.parametrize(("path", "name"), places(), ids=lambda x: x)
def test_code_that_the_map_names_exists(path, name):
    node = tree(path)
    for part in name.split("."):
        node = defined(node.body, part)
        assert node is not None, f"{path} has no {name}"
    assert ast.get_docstring(node)


@pytest.mark.parametrize("item", ITEMS)
def test_nothing_of_the_paper_is_missing_from_the_map(item):
    rows = [line.split(" | ") for line in (DOCS / "theory.md").read_text().splitlines() if line.startswith("| ")]
    assert any(item in f"{row[0]} " and "mcot_torch/" in row[-1] for row in rows)


# ---- the site -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The ids of a page, the addresses it links to, and what it would load."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag in ("script", "img", "iframe") and values.get("src"):
            self.loads.append(values["src"])
        if tag == "link" and values.get("href") and values.get("rel") != "canonical":
            self.loads.append(values["href"])


@pytest.mark.slow
def test_site_builds_without_a_warning_and_all_links_hold(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, result.stderr  # --strict: a warning is an error
    pages = {path: Page(path) for path in tmp_path.rglob("*.html")}
    assert len(pages) >= len(PAGES)
    checked = 0
    for path, page in pages.items():
        for address in page.loads:
            assert not urlsplit(address).netloc, f"{path.name} loads {address}"
        for address in [] if path.name == "404.html" else page.links + page.loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(tmp_path)}: {address}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].ids | {"__top"}, (
                    f"{path.relative_to(tmp_path)}: {address}"
                )
            checked += 1
    assert checked > 1000

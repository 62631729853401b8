"""The specification: the headings that code and docs cite exist, and its formulas become MathML."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPECIFICATION = ROOT / "docs" / "specification.md"
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".sh", ".txt", ".csv", ".css", ".js"}
CITATION = re.compile(r"specification\.md#([\w-]+)")


@cache
def files():
    """The text files of the repository, this one left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed if Path(name).suffix in TEXT and (ROOT / name).is_file()]
    return [path for path in paths if path != Path(__file__).resolve()]


def prose(path):
    return re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)


@cache
def headings(path=SPECIFICATION):
    return re.findall(r"^#{1,6} (.+)$", prose(path), re.MULTILINE)


def anchor(heading):
    """The id that both MkDocs and GitHub give to a heading of ASCII letters."""
    return re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-")


def test_headings_have_the_same_anchor_on_the_site_and_on_github():
    """No id is written out: GitHub would print it. So headings are ASCII, single-spaced, without formulas, and unique."""
    anchors = [anchor(heading) for heading in headings()]
    assert len(set(anchors)) == len(anchors)
    for heading in headings():
        assert re.fullmatch(r"[A-Za-z0-9][\w:., ()-]*", heading, re.ASCII), heading
        assert "--" not in anchor(heading), heading
    slugify = pytest.importorskip("markdown.extensions.toc").slugify
    assert anchors == [slugify(heading, "-") for heading in headings()]


def test_cited_anchors_exist():
    known = {anchor(heading) for heading in headings()}
    cited = {(str(path.relative_to(ROOT)), name) for path in files() for name in CITATION.findall(path.read_text())}
    assert {citing for citing, _ in cited if citing.startswith("mcot_torch/")}
    assert not {pair for pair in cited if pair[1] not in known}


def test_cited_titles_are_headings():
    """A citation of the form: specification, "Softmax leak", docs/specification.md#softmax-leak."""
    found = 0
    for path in files():
        text = re.sub(r"\s*\n\s*", " ", path.read_text())
        for title, name in re.findall(r'[Ss]pecification, "([^"]+)",? \(?docs/specification\.md#([\w-]+)', text):
            found += 1
            assert name == anchor(title) or name.startswith(f"{anchor(title)}-"), (path, title)
    assert found > 10


def test_links_within_the_specification_hold():
    known = {anchor(heading) for heading in headings()}
    assert set(re.findall(r"\]\(#([\w-]+)\)", SPECIFICATION.read_text())) <= known


def test_no_file_cites_what_is_not_shipped():
    assert [str(path.relative_to(ROOT)) for path in files() if re.search(r"\bTHEORY\b", path.read_text())] == []


ITEM = r"(?:Theorem|Proposition|Corollary) \d\.\d|Algorithm \d"


def items():
    return sorted(set(re.findall(ITEM, (ROOT / "docs" / "theory.md").read_text()))) + [f"A{i}" for i in range(1, 6)]


@pytest.mark.parametrize("item", items())
def test_every_item_of_the_map_has_a_heading_and_a_link(item):
    title = f"Assumption {item}" if item.startswith("A") and len(item) == 2 else item
    (heading,) = [heading for heading in headings() if heading.startswith(f"{title}:")]
    assert f"specification.md#{anchor(heading)})" in (ROOT / "docs" / "theory.md").read_text()


def test_the_map_names_all_of_the_paper():
    assert len(items()) == 4 + 5 + 6 + 4 + 1  # algorithms, assumptions, propositions, theorems, corollary


def formulas():
    text = prose(SPECIFICATION)
    blocks = re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL)
    return blocks, re.findall(r"\$([^$]+)\$", re.sub(r"\$\$.+?\$\$", "", text, flags=re.DOTALL))


def test_formulas_can_stand_in_a_table_and_are_closed():
    blocks, inline = formulas()
    assert len(blocks) > 15
    assert len(inline) > 150
    for formula in blocks + inline:
        assert formula.count("{") == formula.count("}"), formula
    assert prose(SPECIFICATION).count("$") == 4 * len(blocks) + 2 * len(inline)
    rows = [line for line in prose(SPECIFICATION).splitlines() if line.startswith("|")]
    assert not [row for row in rows for formula in re.findall(r"\$[^$]+\$", row) if "|" in formula]


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml")
    from tools.mathml import mathml, on_page_content

    blocks, inline = formulas()
    for formula in blocks + inline:
        element = mathml(formula)
        assert element.startswith("<math")
        assert element.endswith("</math>")
        assert "\\" not in element, formula  # a command that was not understood
    page = r'<p>a <span class="arithmatex">\(x &lt; \log M\)</span></p><div class="arithmatex">\[y\]</div>'
    converted = on_page_content(page, page=None)
    assert "arithmatex" not in converted
    assert '<mi>log</mi><mspace width="0.17em"/><mi>M</mi>' in converted
    assert 'display="block"' in converted
    assert 'display="inline"' in converted

"""The notebooks: committed with their outputs, small, and they run."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat")


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text(notebook):
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["break_an_assumption", "the_idea_in_pictures", "your_own_objective"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed_whole_and_small(path):
    assert path.stat().st_size < 150_000
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # run from top to bottom, once
    assert pictures(notebook) >= 2
    assert not [o for o in outputs(notebook) if o.output_type == "error" or o.get("name") == "stderr"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_says_the_same(path, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    committed, notebook = nbformat.read(path, 4), nbformat.read(path, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    assert pictures(notebook) == pictures(committed)
    assert len(text(notebook).splitlines()) == len(text(committed).splitlines())


@pytest.mark.parametrize(
    ("stem", "line"),
    [
        ("the_idea_in_pictures", "found 18, true 18, both 18"),
        ("break_an_assumption", "18 heads, 6 states of the student, 0 mislabelled"),
        ("your_own_objective", "total variation to the optimum 0.00"),
    ],
)
def test_notebooks_show_what_their_text_says(stem, line):
    assert line in text(nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", 4))

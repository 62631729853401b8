"""A pytest plugin that writes what became of each test as it ends: what was tested is known even where pytest is killed.

`pytest -p benchmarks.gpu_outcomes` appends a line of JSON for each test to the file that MCOT_OUTCOMES names.
"""

import json
import os
from pathlib import Path
from typing import Any


def pytest_runtest_logreport(report: Any) -> None:
    """One line for each test that ran, was skipped, or broke before or after it ran."""
    if report.when != "call" and report.outcome == "passed":
        return
    if hasattr(report, "wasxfail"):
        outcome = "expected failure" if report.outcome == "skipped" else "unexpected pass"
    else:
        outcome = report.outcome
    line = {"test": report.nodeid, "outcome": outcome, "seconds": round(report.duration, 2)}
    if outcome != "passed" and report.longrepr is not None:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        line["why"] = text[-1500:]
    with Path(os.environ["MCOT_OUTCOMES"]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Counts, outcomes by test, failures with the end of their message, and the slowest tests."""
    written = path.read_text() if path.exists() else ""
    rows = [
        json.loads(line) for line in written[: written.rfind("\n") + 1].splitlines()
    ]  # the last may be half-written
    outcomes = {row["test"]: row["outcome"] for row in rows}
    failed = [row for row in rows if row["outcome"] == "failed"]
    slowest = sorted(rows, key=lambda row: -row["seconds"])[:10]
    kinds = sorted(set(outcomes.values()))
    return {
        "counts": {kind: list(outcomes.values()).count(kind) for kind in kinds},
        "failed": sorted({row["test"] for row in failed}),
        "why": {row["test"]: row["why"] for row in failed[:12] if "why" in row},
        "skipped": {row["test"]: row.get("why", "")[-120:] for row in rows if row["outcome"] == "skipped"},
        "slowest": {row["test"]: row["seconds"] for row in slowest},
        "outcomes": outcomes,
    }

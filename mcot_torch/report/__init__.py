"""What a run leaves for people: evaluation.json, tables, figures, report.html; and many runs beside one another."""

from mcot_torch.runs.evaluate import evaluate_run, shortest_path
from mcot_torch.report.tables import result_tables

__all__ = ["evaluate_run", "result_tables", "shortest_path"]

"""Recompute and draw the evaluation of a run; `python evaluate.py --help`."""

from mcot_torch.cli import evaluate

if __name__ == "__main__":
    raise SystemExit(evaluate())

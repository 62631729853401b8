"""`python -m mcot_torch.assumptions`: the command in `cli/assumptions.py`."""

from mcot_torch.cli.assumptions import main

if __name__ == "__main__":
    raise SystemExit(main())

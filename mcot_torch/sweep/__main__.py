"""`python -m mcot_torch.sweep`: the command in `cli/sweep.py`."""

from mcot_torch.cli.sweep import main

if __name__ == "__main__":
    raise SystemExit(main())

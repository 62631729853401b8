"""`python -m mcot_torch.estimation`: the command in `cli/estimation.py`."""

from mcot_torch.cli.estimation import main

if __name__ == "__main__":
    raise SystemExit(main())

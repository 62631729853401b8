"""`python -m mcot_torch.experiments`: the command in `cli/experiments.py`."""

from mcot_torch.cli.experiments import main

if __name__ == "__main__":
    raise SystemExit(main())

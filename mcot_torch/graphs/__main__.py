"""`python -m mcot_torch.graphs`: the command in `cli/graphs.py`."""

from mcot_torch.cli.graphs import main

if __name__ == "__main__":
    raise SystemExit(main())

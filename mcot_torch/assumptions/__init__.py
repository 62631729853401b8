"""The command `python -m mcot_torch.assumptions`; the checks themselves are in `chains/assumptions.py`."""

"""The command `python -m mcot_torch.sweep`; sweeps themselves are in `runs/sweeps/`."""

"""Sweeps: one run of train.py for each point of a grid, a list or a random search, several at a time.

`python -m mcot_torch.sweep SPEC`. `spec.py` says which runs, `engines.py` carries them out (local processes, or Ray Tune),
`results.py` holds them side by side. Each is an ordinary run folder: evaluate.py and TensorBoard work on it, and the same
command goes on where it stopped.
"""

"""mcot_torch: a laboratory for chain-of-thought reasoning as a metastable Markov process."""

from mcot_torch.version import __version__

__all__ = ["__version__"]

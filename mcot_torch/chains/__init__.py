"""Exact mathematics of a finite chain, without subtractions: no learning, no sampling, float64."""

from mcot_torch.chains.hitting import (
    committor,
    escape_probabilities,
    escape_probability,
    hitting_time,
    hitting_times,
    metastability_ratio,
    restricted_mean,
    survival,
)
from mcot_torch.chains.meta_chain import cluster_laws, meta_chain, pair_kernel, rescale
from mcot_torch.chains.stationary import (
    pseudo_spectral_gap,
    spectral_gap,
    stationary_law,
    stochastic_complement,
    time_reversal,
)

__all__ = [
    "cluster_laws",
    "committor",
    "escape_probabilities",
    "escape_probability",
    "hitting_time",
    "hitting_times",
    "meta_chain",
    "metastability_ratio",
    "pair_kernel",
    "pseudo_spectral_gap",
    "rescale",
    "restricted_mean",
    "spectral_gap",
    "stationary_law",
    "stochastic_complement",
    "survival",
    "time_reversal",
]

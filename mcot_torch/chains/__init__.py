"""Exact mathematics of a finite chain: no learning, no sampling, float64."""

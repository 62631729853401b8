"""Samples of a chain: step tables, walks, transition counts, datasets."""

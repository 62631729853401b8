"""Synthetic families of state graphs."""

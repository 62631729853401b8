"""Runs: configuration, run folder, pipeline, TensorBoard events, sweeps."""

"""From observed sequences and reasoning traces to a metastable graph, with what the data leave open."""

from mcot_torch.estimation.estimate import Estimate, EstimationConfig, HardStep, HittingTime, estimate
from mcot_torch.estimation.traces import Trace, TraceAnalysis, analyse_traces, read_traces
from mcot_torch.estimation.trajectories import Trajectories, read_trajectories

__all__ = [
    "Estimate",
    "EstimationConfig",
    "HardStep",
    "HittingTime",
    "Trace",
    "TraceAnalysis",
    "Trajectories",
    "analyse_traces",
    "estimate",
    "read_traces",
    "read_trajectories",
]

"""Models of p̂(next state | states so far)."""

from mcot_torch.reasoners.build import ReasonerConfig, build_reasoner
from mcot_torch.reasoners.files import load_reasoner, save_reasoner
from mcot_torch.reasoners.linear import LinearReasoner
from mcot_torch.reasoners.reasoner import Reasoner
from mcot_torch.reasoners.student import Student
from mcot_torch.reasoners.support import Policy, Support
from mcot_torch.reasoners.transformer import TransformerReasoner
from mcot_torch.reasoners.walks import generate, own_paths, sparse_kernel, step_table, walker

__all__ = [
    "LinearReasoner",
    "Policy",
    "Reasoner",
    "ReasonerConfig",
    "Student",
    "Support",
    "TransformerReasoner",
    "build_reasoner",
    "generate",
    "load_reasoner",
    "own_paths",
    "save_reasoner",
    "sparse_kernel",
    "step_table",
    "walker",
]

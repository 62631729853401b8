"""Models of p̂(next state | states so far)."""

from mcot_torch.reasoners.build import ReasonerConfig, build_reasoner
from mcot_torch.reasoners.linear import LinearReasoner
from mcot_torch.reasoners.reasoner import Policy, Reasoner, load_reasoner
from mcot_torch.reasoners.student import Student
from mcot_torch.reasoners.transformer import TransformerReasoner

__all__ = [
    "LinearReasoner",
    "Policy",
    "Reasoner",
    "ReasonerConfig",
    "Student",
    "TransformerReasoner",
    "build_reasoner",
    "load_reasoner",
]

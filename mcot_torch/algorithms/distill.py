"""Algorithm 4."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class DistillConfig:
    """Algorithm 4, meta-chain distillation."""

    teacher: Literal["tuned", "pretrained"] = "tuned"
    """The reasoner whose chain of clusters is learned."""
    student: Literal["linear", "transformer"] = "linear"
    """ "linear" is the paper's K × K softmax; "transformer" a tiny transformer over clusters."""
    label_walks: int = 9
    """Walks that vote on the cluster of each state; they avoid the known hard steps."""
    transitions: int | None = None
    """T_dist, teacher steps recorded as pairs of clusters; null means 10^8 (a teacher with window 1) or 2·10^6."""
    path_length: int = 256
    """Steps of each recorded walk."""
    steps: int = 2000
    """Gradient steps of the student."""
    learning_rate: float = 0.1
    """Of Adam, decaying to 0."""
    beta: float | None = None
    """Added to the off-diagonal logits to rescale time; null means log(M/ε), measured on the teacher."""
    log_every: int = 100
    """Gradient steps between two logged lines."""

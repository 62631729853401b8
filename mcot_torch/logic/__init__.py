"""Section 5 of the paper: hard steps that compute, and why local information does not suffice to learn what.

`groups` multiply, `actions` put group elements on hard steps and evaluate paths, `constructions` builds the parity task whose
hidden concept no local view betrays, `dimension` counts how many concepts look alike (SDA).
"""

from mcot_torch.logic.actions import LogicalActions
from mcot_torch.logic.constructions import all_bits, ball, concept_actions, local_view, parity_values, task_paths
from mcot_torch.logic.dimension import ConceptClass, sda
from mcot_torch.logic.groups import Group, cyclic, symmetric

__all__ = [
    "ConceptClass",
    "Group",
    "LogicalActions",
    "all_bits",
    "ball",
    "concept_actions",
    "cyclic",
    "local_view",
    "parity_values",
    "sda",
    "symmetric",
    "task_paths",
]

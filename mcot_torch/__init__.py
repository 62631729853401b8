"""mcot_torch: a laboratory for chain-of-thought reasoning as a metastable Markov process.

The names below are imported when they are first used, so that `import mcot_torch` costs nothing.
"""

from importlib import import_module
from typing import Any

from mcot_torch.version import __version__

_HOMES = {
    "graphs": ("GraphConfig", "MetastableGraph", "TaskConfig", "build_graph", "build_task"),
    "graphs.formats.interchange": ("from_kernel", "load_graph", "save_graph"),
    "chains": ("hitting_time", "hitting_times", "meta_chain", "pair_kernel", "stationary_law", "survival"),
    "chains.assumptions": ("check_assumptions",),
    "reasoners": ("LinearReasoner", "Reasoner", "Student", "TransformerReasoner", "load_reasoner", "save_reasoner"),
    "graphs.scales": ("Scales",),
    "algorithms.config": ("DistillConfig", "PPOConfig", "PretrainConfig", "SearchConfig"),  # without Lightning
    "algorithms.pretrain": ("pretrain",),
    "algorithms.search": ("search",),
    "algorithms.prm": ("PRM", "guidance"),
    "algorithms.ppo": ("ppo", "sign_ascent"),
    "algorithms.distill": ("distill",),
    "algorithms.lift": ("lift",),
    "integrations.huggingface": ("to_huggingface",),
    "evaluation.evaluate": ("evaluate",),
    "training.loop": ("Context",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mcot_torch' has no attribute {name!r}")
    return getattr(import_module(f"mcot_torch.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Options of the four algorithms, free of torch so that `--help` and error messages are quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DistillConfig", "PPOConfig", "PretrainConfig", "SearchConfig", "default_distill_transitions"]


def default_distill_transitions(window: int) -> int:
    """T_dist, the teacher's steps that distillation records unless told otherwise: 10^9 with window 1, else 2·10^6."""
    return 1_000_000_000 if window == 1 else 2_000_000


@dataclass
class PretrainConfig:
    """Algorithm 1."""

    steps: int = 700
    """T1, optimiser steps before the cut."""
    steps_after_cut: int = 500
    """T2, optimiser steps after it."""
    threshold: float | None = None
    """c_thres, steps less probable are cut; null means 0.35 ε times the smallest weight of a hard step."""
    data: Literal["paths", "pairs"] = "paths"
    """ "paths" samples chains of thought; "pairs" fresh i.i.d. pairs at every step (Theorem 3.1's setting)."""
    transitions: int = 1_000_000_000
    """With window 1, transitions sampled in all (paths) or at every step (pairs)."""
    path_length: int = 256
    """With window 1, steps of each sampled path."""
    batch_size: int = 32
    """With a longer window, paths at every step; they are as long as the window."""
    optimizer: Literal["adam", "gd"] = "adam"
    """ "adam", its rate decaying to 0, or "gd", the paper's gradient descent at a constant rate."""
    learning_rate: float | None = None
    """Null means 0.01 for the transformer, 0.1 for the table, N for "gd"."""
    beta2: float = 0.95
    """Of Adam; near 1 the hard steps learn slowly."""
    compile: bool = False
    """Compile the step: some ten seconds before the first one, then faster; pays in long runs on sequences. Needs a C++ compiler."""
    log_every: int = 50
    """Optimiser steps between two logged lines."""


@dataclass
class SearchConfig:
    """Algorithm 2; null takes a default computed from K, M and ε."""

    rounds: int | None = None
    """R, outer rounds; null means 3 K ln K (ln 10 where K < 10)."""
    walks: int | None = None
    """N, walks of a round; null means 3 ln K (likewise)."""
    cover_steps: int | None = None
    """T_0, steps that collect the cluster; null means 2.5 M ln M."""
    max_steps: int | None = None
    """T_max, steps after which a walk that has not left is given up; null means M/ε."""
    min_votes: int = 2
    """Rounds that must have found a step before it counts."""
    mode: Literal["prm", "rl"] = "prm"
    """ "prm" collects the steps and leaves the reasoner alone; "rl" also runs Algorithm 3 as rounds find them."""


@dataclass
class PPOConfig:
    """Algorithm 3."""

    form: Literal["clip", "sign"] = "clip"
    """ "clip" is the practical form for any reasoner; "sign" the paper's, for the linear reasoner only."""
    reward: Literal["process", "outcome"] = "process"
    """ "process" pays for each hard step that the PRM knows; "outcome" pays 1 for reaching X_out."""
    rounds: int = 60
    """Rollouts, each followed by `epochs` passes over it."""
    epochs: int = 10
    """Passes over a rollout."""
    minibatches: int = 1
    """Optimiser steps of a pass, over contexts reshuffled each time."""
    transitions: int = 100_000
    """Steps sampled in a rollout."""
    path_length: int = 256
    """Steps of each sampled walk with window 1; a longer window samples paths as long as itself."""
    learning_rate: float = 3e-4
    """Of Adam, decaying to 0 over the rounds."""
    clip: float = 0.2
    """c, the ratio is clipped to [1 − c, 1 + c]."""
    kl_coefficient: float | None = None
    """Weight λ of the KL penalty; null means the value whose optimum is ε_max (process), or 0.05 (outcome)."""
    gamma: float | None = None
    """Discount; 0 is the one-step reward, which has a closed-form optimum. null means 0 (process), or 1 − 1/path_length (outcome)."""
    gae_lambda: float = 0.95
    """The λ of generalised advantage estimation, where gamma > 0."""
    entropy_coefficient: float = 0.0
    """Weight of an entropy bonus."""
    target_kl: float | None = None
    """Stop a round's epochs once the mean KL from its rollout policy exceeds this; null never stops."""
    sign_step: float = 0.1
    """Largest step η of the "sign" form."""
    log_every: int = 5
    """Rounds between two logged lines."""


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
    """T_dist, teacher steps recorded as pairs of clusters; null means 10^9 (a teacher with window 1) or 2·10^6."""
    path_length: int = 2048
    """Steps of each recorded walk."""
    steps: int = 2000
    """Gradient steps of the student."""
    learning_rate: float = 0.1
    """Of Adam, decaying to 0."""
    beta: float | None = None
    """Added to the off-diagonal logits to rescale time; null means log(M/ε), measured on the teacher."""
    log_every: int = 100
    """Gradient steps between two logged lines."""

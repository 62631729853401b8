"""The whole configuration of a run, how it is read, and what it must satisfy.

Each part's dataclass stands beside the code that it configures; this file composes them and holds the domain of every
number in one table. What depends on the graph (ε_max, clusters, names of states) is checked when the graph is built. Bad
input is an `InputError` of one line, which `cli/status.py` prints. Nothing here imports Lightning, so that --help and mistakes are
answered at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mcot_torch.algorithms.config import DistillConfig, PPOConfig, PretrainConfig, SearchConfig
from mcot_torch.errors import InputError
from mcot_torch.graphs.build import GraphConfig
from mcot_torch.graphs.task import TaskConfig
from mcot_torch.logic.task import LogicConfig
from mcot_torch.reasoners.build import ReasonerConfig
from mcot_torch.system.arguments import Parser
from mcot_torch.training.config import TrainerConfig

__all__ = [
    "STAGES",
    "Config",
    "EvaluateOptions",
    "EvaluationConfig",
    "check",
    "config_hash",
    "differences",
    "flat_identity",
    "load_config",
    "parse_evaluate",
    "parse_train",
    "resolve_run_dir",
    "to_yaml",
]

STAGES = ("pretrain", "search", "ppo", "distill")
"""The paper's algorithms, in its order."""


# ---- the configuration ------------------------------------------------------------------------------------------


@dataclass
class EvaluationConfig:
    """How the models are held against the exact chain."""

    walks: int = 1000
    """Monte Carlo walks of each model."""
    horizon_factor: float = 12.0
    """A walk is given up after this many times the exact expected time."""
    contexts: int = 4096
    """Sampled paths over which a reasoner with a window above 1 is averaged."""
    figures: bool = True
    """Draw the figures."""


@dataclass
class Config:
    """One run: a graph, a task on it, a reasoner, the four stages and the evaluation."""

    name: str = "default"
    """Name of the run, also of its folder in runs/."""
    run_dir: str | None = None
    """Folder of the run; null means runs/<name>."""
    seed: int = 0
    """Of the weights, of sampling and of evaluation; the graph has its own."""
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    """Which of pretrain, search, ppo, distill to run; finished ones are kept, so that a later run can add to them."""
    overwrite: bool = False
    """Delete what a run of another configuration left in the folder."""
    graph: GraphConfig = field(default_factory=GraphConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    logic: LogicConfig = field(default_factory=LogicConfig)
    reasoner: ReasonerConfig = field(default_factory=ReasonerConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass
class EvaluateOptions:
    """What evaluate.py is asked to do."""

    run: list[str]
    """Folder of a run, such as runs/default; several of them, or a pattern such as 'runs/seed*', are compared."""
    walks: int | None = None
    """Monte Carlo walks of each model; null for the run's own number."""
    seed: int | None = None
    """Of the walks; null for the run's own."""
    figures: bool | None = None
    """Draw the figures; null for the run's own choice."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """ "auto" means CUDA where there is one, else the CPU; null for the run's own choice."""
    out: str = "runs/compare"
    """Folder for the tables and curves of several runs."""


_IDENTITY = ("seed", "graph", "task", "reasoner", "pretrain", "search", "ppo", "distill")  # what decides the numbers
_DEVICES = "trainer.devices"  # does too: each device draws walks of its own


def resolve_run_dir(config: Config) -> Path:
    """The folder of the run."""
    return Path("runs") / config.name if config.run_dir is None else Path(config.run_dir)


def to_yaml(config: Config) -> str:
    """The configuration as YAML; `load_config` reads it back unchanged."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


def config_hash(config: Config) -> str:
    """16 hex digits of what decides a run's numbers: not its name, folder, stages, evaluation or kind of machine."""
    return hashlib.sha256(json.dumps(flat_identity(config), sort_keys=True).encode()).hexdigest()[:16]


def flat_identity(config: Config) -> dict[str, Any]:
    """Dotted key -> value of what decides a run's numbers."""
    return {key: value for key, value in _flat(config).items() if _decides(key)}


def differences(there: Config, here: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value there, value here) of what `config_hash` covers and the two disagree on."""
    theirs, ours = _flat(there), _flat(here)
    return {key: (theirs[key], ours[key]) for key in ours if _decides(key) and theirs[key] != ours[key]}


def _decides(key: str) -> bool:
    return key.partition(".")[0] in _IDENTITY or key == _DEVICES


# ---- domains ----------------------------------------------------------------------------------------------------

_DOMAINS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "at least 1",
        lambda x: x >= 1,
        "reasoner.width reasoner.n_layers reasoner.n_heads pretrain.steps pretrain.transitions "
        "pretrain.path_length pretrain.batch_size pretrain.log_every search.rounds search.walks search.cover_steps "
        "search.max_steps search.min_votes ppo.rounds ppo.epochs ppo.minibatches ppo.transitions ppo.path_length ppo.log_every "
        "distill.label_walks distill.transitions distill.path_length distill.steps distill.log_every "
        "evaluation.contexts logic.paths trainer.devices",
    ),
    ("from 1 to 65,536", lambda x: 1 <= x <= 65_536, "reasoner.window"),
    ("from 1 to 1,024", lambda x: 1 <= x <= 1024, "trainer.threads"),
    ("at least 2, or no interval can be given", lambda x: x >= 2, "evaluation.walks"),
    ("at least 0", lambda x: x >= 0, "seed logic.seed pretrain.steps_after_cut ppo.entropy_coefficient distill.beta"),
    (
        "above 0",
        lambda x: x > 0,
        "pretrain.learning_rate ppo.learning_rate ppo.kl_coefficient ppo.target_kl ppo.sign_step distill.learning_rate "
        "evaluation.horizon_factor trainer.save_every",
    ),
    ("in (0, 1)", lambda x: 0 < x < 1, "pretrain.threshold ppo.clip"),
    ("in [0, 1)", lambda x: 0 <= x < 1, "pretrain.beta2"),
    ("in [0, 1]", lambda x: 0 <= x <= 1, "ppo.gamma ppo.gae_lambda"),
)


_LARGEST = 2**53  # float64 holds every whole number up to here


def check(config: Config) -> None:
    """Everything that can be judged without the graph.

    Raises:
        InputError: one line with the dotted key, its value, the rule and, where there is one, the way out.
    """
    values = _flat(config)
    for key, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{key} is {number}; it must be a finite number")
            if isinstance(number, (int, float)) and abs(number) > _LARGEST:
                raise InputError(f"{key} is {number}; it must be at most 2^53 in size")
    for rule, holds, keys in _DOMAINS:
        for key in keys.split():
            if values[key] is not None and not holds(values[key]):
                raise InputError(f"{key} is {values[key]}; it must be {rule}")
    _check_names(config)
    _check_stages(config)
    _check_combinations(config)
    _check_devices(config)


def _check_names(config: Config) -> None:
    name = config.name
    if name in ("", ".", "..") or not name.isprintable() or set(name) & set('/\\:*?"<>|') or name != name.strip():
        raise InputError(
            f"name is {name!r}; it must be a plain folder name, such as my-run: set run_dir for a folder elsewhere"
        )
    if config.run_dir is not None and not config.run_dir.strip():
        raise InputError(f"run_dir is {config.run_dir!r}; it must be a folder, or null for runs/<name>")


def _check_stages(config: Config) -> None:
    stages, text = config.stages, ",".join(config.stages)
    if not stages:
        raise InputError(f"stages is empty; choose from {','.join(STAGES)}")
    for stage in stages:
        if stage not in STAGES:
            near = difflib.get_close_matches(stage, STAGES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {','.join(STAGES)}"
            raise InputError(f"stages is {text}, but there is no stage {stage!r}; {hint}")
    if stages != sorted(set(stages), key=STAGES.index):
        raise InputError(f"stages is {text}; each may stand there once, in the order {','.join(STAGES)}")
    needs = {"search": "pretrain", "ppo": "search", "distill": "search"}
    for stage in stages:
        if stage in needs and needs[stage] not in stages:
            raise InputError(
                f"stages is {text}, but {stage} needs {needs[stage]}; name it too: what is finished is not run again"
            )
    if "distill" in stages and "ppo" not in stages and config.distill.teacher == "tuned":
        raise InputError(
            f"stages is {text}, but distill.teacher is tuned, which needs ppo; add ppo or use distill.teacher: pretrained"
        )


def _check_combinations(config: Config) -> None:
    reasoner, pretrain, search, ppo = config.reasoner, config.pretrain, config.search, config.ppo
    if ppo.gamma == 1 and ppo.reward == "process":
        raise InputError("ppo.gamma is 1.0, but the process reward never ends: its value needs ppo.gamma below 1")
    if reasoner.kind == "linear" and reasoner.window > 1:
        raise InputError(
            f"reasoner.window is {reasoner.window}, but the linear reasoner sees the current state only; use 1, or "
            "reasoner.kind: transformer"
        )
    if 1 < reasoner.window and config.distill.path_length < reasoner.window:
        raise InputError(
            f"reasoner.window is {reasoner.window}, longer than the paths of distill.path_length = "
            f"{config.distill.path_length} that distillation records; raise it, or lower reasoner.window"
        )
    if reasoner.kind == "transformer" and reasoner.width % (2 * reasoner.n_heads):
        raise InputError(
            f"reasoner.width is {reasoner.width}; it must be a multiple of 2 * reasoner.n_heads = {2 * reasoner.n_heads}"
        )
    if pretrain.optimizer == "gd" and reasoner.kind != "linear" and pretrain.learning_rate is None:
        raise InputError(
            "pretrain.optimizer is gd, whose default rate N is for the linear reasoner; set pretrain.learning_rate, or use "
            "reasoner.kind: linear"
        )
    if pretrain.data == "pairs" and reasoner.window > 1:
        raise InputError(
            f"pretrain.data is pairs, but a reasoner.window of {reasoner.window} learns from paths; use pretrain.data: paths"
        )
    if search.cover_steps is not None and search.max_steps is not None and search.cover_steps >= search.max_steps:
        raise InputError(
            f"search.cover_steps is {search.cover_steps}; it must be below search.max_steps = {search.max_steps}"
        )
    if search.rounds is not None and search.min_votes > search.rounds:
        raise InputError(
            f"search.min_votes is {search.min_votes}; it must be at most search.rounds = {search.rounds}, else nothing counts"
        )
    if ppo.form == "sign" and reasoner.kind != "linear":
        raise InputError(
            "ppo.form is sign, the paper's form for the linear reasoner; use reasoner.kind: linear, or ppo.form: clip"
        )
    if ppo.form == "sign" and ppo.reward == "outcome":
        raise InputError("ppo.reward is outcome, but ppo.form sign knows the process reward only; use ppo.form: clip")


def _check_devices(config: Config) -> None:
    devices, ppo, window = config.trainer.devices, config.ppo, config.reasoner.window
    if devices == 1 and config.trainer.strategy == "ddp":
        raise InputError("trainer.strategy is ddp, but trainer.devices is 1; use --trainer.devices 2 or more, or auto")
    length = ("ppo.path_length", ppo.path_length) if window == 1 else ("reasoner.window", window)
    paths = {f"ppo.transitions / {length[0]}": max(1, ppo.transitions // length[1])}
    if window > 1:  # with window 1 pretraining sums counts: a device may be without walkers
        paths["pretrain.batch_size"] = config.pretrain.batch_size
    for key, number in paths.items():
        if number < devices:
            raise InputError(f"{key} is {number}; with trainer.devices {devices} it must be at least {devices}")


# ---- reading ----------------------------------------------------------------------------------------------------

_TRAIN = "Train a reasoner on a state graph: pretrain, search, PPO-Clip, distill; then hold all of it against the exact chain."
_EVALUATE = "Recompute and draw the evaluation of a run; compare several runs."
_ENDS = (
    " --json prints the result as JSON on stdout and everything else on stderr. Exit status: 0 done, 2 bad input or nowhere to "
    "write (one line says what to do), 130 interrupted."
)


def parse_train(argv: Sequence[str], prog: str = "train.py") -> Config:
    """The configuration that train.py is given: YAML files by --config, then the command line, checked.

    Raises:
        InputError: one line; nothing has been written.
        SystemExit: 0, after --help or --print_config.
    """
    config: Config = Parser(prog, _TRAIN + _ENDS, Config, files=True).read(argv)
    check(config)
    return config


def parse_evaluate(argv: Sequence[str], prog: str = "evaluate.py") -> EvaluateOptions:
    """What evaluate.py is asked to do; raises as `parse_train`."""
    parser = Parser(prog, _EVALUATE + _ENDS, EvaluateOptions)
    next(action for action in parser._actions if action.dest == "run").metavar = "RUN..."  # in --help
    options: EvaluateOptions = parser.read(_one_list(argv))
    for key, least in (("walks", 2), ("seed", 0)):
        value = getattr(options, key)
        if value is not None and value < least:
            raise InputError(f"{key} is {value}; it must be at least {least}")
    return options


def _one_list(argv: Sequence[str]) -> list[str]:
    """The command line with all that is no option, `a b`, as one list, `["a", "b"]`."""
    plain, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            plain.append(word)
            continue
        rest.append(word)
        if "=" not in word and word not in ("-h", "--help") and words and not words[0].startswith("--"):
            rest.append(words.pop(0))
    return [json.dumps(plain), *rest] if plain else rest


def load_config(path: Path) -> Config:
    """The configuration in a YAML file, such as the config.yaml of a run."""
    return parse_train(["--config", str(path)])


def _flat(config: Config) -> dict[str, Any]:
    """Dotted key -> value."""
    result: dict[str, Any] = {}
    for key, value in asdict(config).items():
        result |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return result


class _Dumper(yaml.SafeDumper):
    """Quotes what another YAML reader could take for a number, such as a run named 1e3."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="'" if text[:1] in set("0123456789+-.") else None
    )


_Dumper.add_representer(str, _quoted)

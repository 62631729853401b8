"""The whole configuration of a run, how it is read, and what it must satisfy.

Each part's dataclass stands beside the code that it configures; this file composes them, reads YAML files and the
command line into them (jsonargparse) and holds the domain of every number in one table. Bad input of any kind is an
`InputError` of one line, which cli.py prints. Nothing here imports Lightning, so that --help and mistakes are answered
at once; what depends on the graph (ε_max, clusters, names of states) is checked when the graph is built.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from mcot_torch.algorithms.configs import DistillConfig, PPOConfig, PretrainConfig, SearchConfig
from mcot_torch.errors import InputError
from mcot_torch.graphs.build import GraphConfig
from mcot_torch.graphs.task import TaskConfig
from mcot_torch.reasoners.build import ReasonerConfig
from mcot_torch.trainer_config import TrainerConfig

__all__ = [
    "STAGES",
    "Config",
    "EvaluateOptions",
    "EvaluationConfig",
    "check",
    "config_hash",
    "differences",
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

    run: str
    """Folder of a run, such as runs/default."""
    walks: int | None = None
    """Monte Carlo walks of each model; null for the run's own number."""
    seed: int | None = None
    """Of the walks; null for the run's own."""
    figures: bool = True
    """Draw the figures."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """ "auto" means CUDA where there is one, else the CPU."""


_IDENTITY = ("seed", "graph", "task", "reasoner", "pretrain", "search", "ppo", "distill")  # what decides the numbers


def resolve_run_dir(config: Config) -> Path:
    """The folder of the run."""
    return Path("runs") / config.name if config.run_dir is None else Path(config.run_dir)


def to_yaml(config: Config) -> str:
    """The configuration as YAML; `load_config` reads it back unchanged."""
    return yaml.dump(asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


def config_hash(config: Config) -> str:
    """16 hex digits of what decides a run's numbers: not its name, folder, stages, evaluation or machine."""
    identity = {key: value for key, value in _flat(config).items() if key.partition(".")[0] in _IDENTITY}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def differences(there: Config, here: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value there, value here) of what `config_hash` covers and the two disagree on."""
    theirs, ours = _flat(there), _flat(here)
    return {
        key: (theirs[key], ours[key]) for key in ours if key.partition(".")[0] in _IDENTITY and theirs[key] != ours[key]
    }


# ---- domains ----------------------------------------------------------------------------------------------------

_DOMAINS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "at least 1",
        lambda x: x >= 1,
        "reasoner.window reasoner.width reasoner.n_layers reasoner.n_heads pretrain.steps pretrain.transitions "
        "pretrain.path_length pretrain.batch_size pretrain.log_every search.rounds search.walks search.cover_steps "
        "search.max_steps search.min_votes ppo.rounds ppo.epochs ppo.minibatches ppo.transitions ppo.path_length ppo.log_every "
        "distill.label_walks distill.transitions distill.path_length distill.steps distill.log_every evaluation.walks "
        "evaluation.contexts trainer.devices trainer.threads",
    ),
    ("at least 0", lambda x: x >= 0, "seed pretrain.steps_after_cut ppo.entropy_coefficient distill.beta"),
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
    for rule, holds, keys in _DOMAINS:
        for key in keys.split():
            if values[key] is not None and not holds(values[key]):
                raise InputError(f"{key} is {values[key]}; it must be {rule}")
    _check_names(config)
    _check_stages(config)
    _check_combinations(config)


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
    if reasoner.kind == "linear" and reasoner.window > 1:
        raise InputError(
            f"reasoner.window is {reasoner.window}, but the linear reasoner sees the current state only; use 1, or "
            "reasoner.kind: transformer"
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


# ---- reading ----------------------------------------------------------------------------------------------------

set_parsing_settings(docstring_parse_attribute_docstrings=True)

_TRAIN = "Train a reasoner on a state graph: pretrain, search, PPO-Clip, distill; then hold all of it against the exact chain."
_EVALUATE = "Recompute and draw the evaluation of a run."


def parse_train(argv: Sequence[str]) -> Config:
    """The configuration that train.py is given: YAML files by --config, then the command line, checked.

    Raises:
        InputError: one line; nothing has been written.
        SystemExit: 0, after --help or --print_config.
    """
    parser = _Parser("train.py", _TRAIN, Config)
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file of settings; may be repeated.")
    argv = parser.spelled_out(argv)
    for file in _values(argv, "--config"):
        parser.check_file(file)
    config = parser.read(argv)
    check(config)
    return config


def parse_evaluate(argv: Sequence[str]) -> EvaluateOptions:
    """What evaluate.py is asked to do; raises as `parse_train`."""
    parser = _Parser("evaluate.py", _EVALUATE, EvaluateOptions)
    options = parser.read(parser.spelled_out(argv))
    for key, least in (("walks", 1), ("seed", 0)):
        value = getattr(options, key)
        if value is not None and value < least:
            raise InputError(f"{key} is {value}; it must be at least {least}")
    return options


def load_config(path: Path) -> Config:
    """The configuration in a YAML file, such as the config.yaml of a run."""
    return parse_train(["--config", str(path)])


class _Parser(ArgumentParser):
    """jsonargparse over one dataclass; each of its complaints becomes an `InputError` that a user can act on."""

    def __init__(self, prog: str, description: str, target: type) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.target = target
        self.types = _key_types(target)
        self.add_class_arguments(target, as_positional=True)

    def read(self, argv: Sequence[str]) -> Any:
        """The dataclass that the command line describes."""
        values = self.parse_args(list(argv))
        for section in (f.name for f in fields(self.target) if f.name not in self.types):
            if not hasattr(values[section], "__dict__"):
                raise InputError(f"{section} is {values[section]}; it must be a section of settings, {section}.KEY")
        built = self.instantiate(values)
        return self.target(**{f.name: built[f.name] for f in fields(self.target)})

    def spelled_out(self, argv: Sequence[str]) -> list[str]:
        """The command line with `--stages a,b` as `--stages=[a,b]` and a bare `--overwrite` as `--overwrite=true`."""
        words, result = list(argv), []
        while words:
            word = words.pop(0)
            flag, equals, value = word.partition("=")
            kind = self.types.get(flag[2:]) if flag.startswith("--") else None
            if kind is bool and not equals and not (words and words[0].lower() in ("true", "false")):
                if not words or words[0].startswith("-"):
                    word = f"{flag}=true"
            elif kind is not None and list in map(get_origin, _variants(kind)) and (equals or words):
                value = value if equals else words.pop(0)
                word = f"{flag}={value}" if value[:1] in ("[", "") or value == "null" else f"{flag}=[{value}]"
            result.append(word)
        return result

    def check_file(self, file: str) -> None:
        """Every key and value of a YAML file, with the file and line in the complaint; values jsonargparse judges."""
        try:
            text = Path(file).read_text(encoding="utf-8")
            root = yaml.compose(text)
        except FileNotFoundError:
            raise InputError(
                f"{file} does not exist; --config takes a YAML file, such as configs/default.yaml"
            ) from None
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InputError(f"{file} is not a text file in UTF-8; --config takes a YAML file") from None
        except yaml.MarkedYAMLError as error:
            line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise InputError(f"{file}{line}: not YAML: {error.problem}") from None
        except yaml.YAMLError as error:
            raise InputError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{file}: it must hold lines such as 'seed: 0'; see configs/default.yaml")
        self._check_keys(root, "", file)
        try:
            self.parse_string(text)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None

    def _check_keys(self, node: yaml.MappingNode, prefix: str, file: str) -> None:
        seen = set()
        for key_node, value_node in node.value:
            key, where = f"{prefix}{key_node.value}", f"{file} line {key_node.start_mark.line + 1}"
            if key in seen:
                raise InputError(f"{where}: {key} stands there twice; keep one")
            seen.add(key)
            if key in self.types:
                continue
            if not self._is_section(key):
                raise InputError(f"{where}: {self._unknown(key)}")
            if not isinstance(value_node, yaml.MappingNode):
                raise InputError(f"{where}: {key} is a section; its settings follow on lines of their own, indented")
            self._check_keys(value_node, f"{key}.", file)

    def _is_section(self, key: str) -> bool:
        return any(known.startswith(f"{key}.") for known in self.types)

    def _unknown(self, key: str, dashes: str = "") -> str:
        """What to say about a key that does not exist: which one may be meant."""
        known = [*self.types, *dict.fromkeys(k.partition(".")[0] for k in self.types if "." in k)]
        if dashes:
            known += ["config", "print_config", "help"] if self.target is Config else ["help"]
        near = [k for k in known if _leaf(k) == _leaf(key)] or difflib.get_close_matches(key, known, n=1)
        if not near:
            leaves = difflib.get_close_matches(_leaf(key), {_leaf(k) for k in known}, n=1)
            near = [k for k in known if _leaf(k) in leaves]
        hint = f"did you mean {_either(dashes + k for k in near)}?" if near else "--help lists them all"
        return f"unknown key {dashes}{key}; {hint}"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """jsonargparse's complaint in one line; raised, so that cli.py alone prints and exits."""
        raise InputError(self._plain(message)) from None

    def _plain(self, message: str) -> str:
        line = " ".join(message.split())
        if match := re.match(r"unrecognized arguments: (.*)", line, re.IGNORECASE):
            word = match[1].split()[0]
            if word.startswith("--"):
                return self._unknown(word[2:].partition("=")[0], "--")
            return f"unknown argument {word}; settings are given as --key value"
        if match := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", line):
            return self._unknown(f"{match[1]}.{match[2]}")
        if match := re.search(r"argument --([\w.]+): expected one argument", line):
            return f"{match[1]} lacks its value: {_expected(self.types.get(match[1], str))}"
        if (match := re.search(r'Parser key "([\w.]+)"', line)) and match[1] in self.types:
            kind, given = self.types[match[1]], re.findall(r"(?:Got|Given) value: (.*?)(?= - |$)", line)
            verb = "holds" if list in map(get_origin, _variants(kind)) else "is"
            return f"{match[1]} {verb} {given[-1] if given else 'wrong'}; it must be {_expected(kind)}"
        if match := re.search(r'(?:Key "|required: )([\w.]+)', line):
            return f"{match[1].upper()} is missing; see --help"
        return line


class _Dumper(yaml.SafeDumper):
    """Quotes what another YAML reader could take for a number, such as a run named 1e3."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = re.fullmatch(r"[A-Za-z_/][\w/ .,-]*", text) is not None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


_Dumper.add_representer(str, _quoted)


@cache
def _key_types(target: type) -> dict[str, Any]:
    """Dotted key -> type, of every setting of a dataclass."""
    result: dict[str, Any] = {}
    for key, kind in get_type_hints(target).items():
        if is_dataclass(kind):
            result |= {f"{key}.{inner}": value for inner, value in _key_types(kind).items()}  # type: ignore[arg-type]
        else:
            result[key] = kind
    return result


def _flat(config: Config) -> dict[str, Any]:
    """Dotted key -> value."""
    result: dict[str, Any] = {}
    for key, value in asdict(config).items():
        result |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return result


def _variants(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def _expected(kind: Any) -> str:
    """A type in words: "an integer or null"."""
    words = []
    for variant in _variants(kind):
        if get_origin(variant) is Literal:
            words.append(_either(get_args(variant)))
        elif get_origin(variant) is list:
            words.append(f"a list, each {_WORDS[get_args(variant)[0]]}")
        else:
            words.append(_WORDS[variant])
    return " or ".join(words)


def _either(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _values(argv: Sequence[str], flag: str) -> list[str]:
    """What follows `flag`, as `--flag value` or `--flag=value`."""
    after = [value for word, value in zip(argv, argv[1:], strict=False) if word == flag]
    return after + [word.partition("=")[2] for word in argv if word.startswith(f"{flag}=")]

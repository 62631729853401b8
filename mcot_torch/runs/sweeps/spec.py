"""What a sweep is asked to do: a YAML file of settings, turned into runs that are checked before the first one starts.

    name: noise                         # folder runs/noise
    config: configs/smoke.yaml          # or a list of files; left out: the defaults
    set: {ppo.rounds: 20}               # the same for all runs
    grid: {graph.epsilon: [0.005, 0.01], seed: [0, 1]}
    list: [{reasoner.kind: linear}, {reasoner.kind: transformer, reasoner.width: 32}]
    random: {samples: 4, seed: 0, draw: {ppo.learning_rate: {log: [1.0e-4, 1.0e-2]}, reasoner.n_layers: {choice: [1, 2]}}}

Runs are list x grid x random samples, each part where it is given. A draw is `uniform`, `log` (uniform in the logarithm) or
`integers`, between two bounds that may both occur, or `choice`; numbers are rounded to three digits.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mcot_torch.errors import InputError
from mcot_torch.runs.config import Config, parse_train

__all__ = ["Sweep", "SweepPoint", "read_spec"]

Settings = dict[str, Any]

_KEYS = ("name", "config", "set", "grid", "list", "random")
_OWN = ("name", "run_dir", "overwrite")  # the sweep names its runs and never replaces one
_DRAWS = ("uniform", "log", "integers", "choice")
_LONGEST = 80  # characters of a folder's name


@dataclass(frozen=True)
class SweepPoint:
    """One point of a sweep: the settings that tell it from the others, and the whole configuration."""

    name: str
    settings: Settings
    config: Config


@dataclass(frozen=True)
class Sweep:
    """The folder of all runs, the keys that vary, and the runs."""

    folder: Path
    keys: tuple[str, ...]
    runs: tuple[SweepPoint, ...]


def read_spec(path: Path) -> Sweep:
    """The sweep that a YAML file describes, every run of it checked.

    Raises:
        InputError: one line that names the file, the key or the run, and what is wrong.
    """
    spec = _load(path)
    try:
        common = _settings(spec.get("set", {}), "set")
        points = [
            {**listed, **cell, **drawn}
            for listed, cell, drawn in product(
                _list(spec.get("list", [{}])), _grid(spec.get("grid", {})), _random(spec.get("random"))
            )
        ]
        files = spec.get("config", [])
        words = [f"--config={file}" for file in ([files] if isinstance(files, str) else files)]
        folder = Path("runs") / str(spec.get("name", path.stem))
        names = _names(points)
        runs = []
        for name, point in zip(names, points, strict=True):
            settings = {**common, **point, "run_dir": str(folder / name), "name": name}
            runs.append(SweepPoint(name, point, parse_train([*words, *(_word(*item) for item in settings.items())])))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return Sweep(folder, tuple(dict.fromkeys(key for point in points for key in point)), tuple(runs))


def _load(path: Path) -> dict[str, Any]:
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; it must be a YAML file such as configs/sweep.yaml") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(spec, dict):
        raise InputError(f"{path}: it must hold lines such as 'grid:'; see configs/sweep.yaml")
    for key in spec:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_KEYS)}"
            raise InputError(f"{path}: unknown key {key}; {hint}")
    if not any(spec.get(key) for key in ("grid", "list", "random")):
        raise InputError(f"{path}: nothing varies; give grid, list or random")
    parts = [set(part) for part in (spec.get("set"), spec.get("grid"), (spec.get("random") or {}).get("draw")) if part]
    for key in [key for i, part in enumerate(parts) for key in part if any(key in other for other in parts[:i])]:
        raise InputError(f"{path}: {key} stands in two of set, grid and random; keep one")
    return spec


def _settings(given: Any, where: str) -> Settings:
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise InputError(f"{where} is {given!r}; it must hold settings such as graph.epsilon: 0.01")
    for key, value in given.items():
        if key in _OWN:
            raise InputError(f"{where} sets {key}, which a sweep chooses for each run")
        if isinstance(value, dict):
            raise InputError(f"{where}.{key} is a section; write its settings with dots, such as {key}.epsilon")
    return given


def _list(given: Any) -> list[Settings]:
    if not isinstance(given, list) or not given:
        raise InputError(f"list is {given!r}; it must be a list of settings, such as [{{seed: 0}}, {{seed: 1}}]")
    return [_settings(point, f"list[{i}]") for i, point in enumerate(given)]


def _grid(given: Any) -> list[Settings]:
    for key, values in _settings(given, "grid").items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{key} is {values!r}; it must be a list of values, such as [0, 1]")
    return [dict(zip(given, values, strict=True)) for values in product(*given.values())]


def _random(given: Any) -> list[Settings]:
    if given is None:
        return [{}]
    if not isinstance(given, dict) or set(given) - {"samples", "seed", "draw"} or "draw" not in given:
        raise InputError(f"random is {given!r}; it must hold samples, seed and draw")
    samples, seed = given.get("samples", 1), given.get("seed", 0)
    for key, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise InputError(f"random.{key} is {value!r}; it must be an integer of at least {least}")
    generator = np.random.default_rng(seed)
    return [{key: _drawn(key, law, generator) for key, law in given["draw"].items()} for _ in range(samples)]


def _drawn(key: str, law: Any, generator: np.random.Generator) -> Any:
    kind, values = next(iter(law.items())) if isinstance(law, dict) and len(law) == 1 else (None, None)
    if kind not in _DRAWS or not isinstance(values, list) or not values:
        raise InputError(f"random.draw.{key} is {law!r}; it must be one of {', '.join(_DRAWS)} with a list of values")
    if kind == "choice":
        return values[int(generator.integers(len(values)))]
    if len(values) != 2 or not all(isinstance(x, int | float) for x in values) or not values[0] < values[1]:
        raise InputError(f"random.draw.{key} is {law!r}; {kind} takes two numbers, the smaller first")
    low, high = values
    if kind == "integers":
        return int(generator.integers(low, high, endpoint=True))
    if kind == "log" and low <= 0:
        raise InputError(f"random.draw.{key} is {law!r}; log takes numbers above 0")
    x = math.exp(generator.uniform(math.log(low), math.log(high))) if kind == "log" else generator.uniform(low, high)
    return float(f"{x:.3g}")


def _word(key: str, value: Any) -> str:
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"


def _names(points: list[Settings]) -> list[str]:
    """A folder for each point, named by its settings: editing the file does not move the other runs."""
    names = []
    for point in points:
        leaves = [key.rpartition(".")[2] for key in point]
        keys = [leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(point, leaves, strict=True)]
        readable = "_".join(
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in zip(keys, point.values(), strict=True)
        )
        name = re.sub(r"[^\w.=+-]+", "-", readable)
        if name != readable or len(name) > _LONGEST:  # no longer one to one
            name = f"{name[:_LONGEST]}-{hashlib.sha256(json.dumps(point).encode()).hexdigest()[:8]}"
        names.append(name)
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} stands there twice; every run must differ from the others")
    return names

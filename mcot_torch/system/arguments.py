"""Reading a dataclass from YAML files and the command line: jsonargparse, with complaints that a user can act on.

Knows no particular configuration. Every mistake becomes an `InputError` of one line that names the file and line or
the key, the value, what is expected and the nearest key that exists.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from mcot_torch.errors import InputError

__all__ = ["Parser"]

_LARGEST_FILE = 1_000_000  # bytes
_MOST_BRACKETS = 500

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(ArgumentParser):
    """jsonargparse over one dataclass; each of its complaints becomes an `InputError` that a user can act on."""

    def __init__(self, prog: str, description: str, target: type, files: bool = False) -> None:
        """A parser of `target`, whose fields without a default are positional; `files` adds --config."""
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.target = target
        self.types = _key_types(target)
        self.others = ["help"]
        if files:
            self.add_argument(
                "--config", action="config", metavar="FILE", help="YAML file of settings; may be repeated."
            )
            self.others += ["config", "print_config"]
        self.add_class_arguments(target, as_positional=True)

    def read(self, argv: Sequence[str]) -> Any:
        """The dataclass that the command line and the files it names describe.

        Raises:
            InputError: one line.
            SystemExit: 0, after --help or --print_config.
        """
        words = self._spelled_out(argv)
        for file in _values(words, "--config"):
            self._check_file(file)
        values = self.instantiate(self.parse_args(words))
        return self.target(**{f.name: values[f.name] for f in fields(self.target)})

    def _spelled_out(self, argv: Sequence[str]) -> list[str]:
        """The command line with `--stages a,b` as `--stages=[a,b]` and a bare `--overwrite` as `--overwrite=true`."""
        words, result = list(argv), []
        while words:
            word = words.pop(0)
            flag, equals, value = word.partition("=")
            kind = self.types.get(flag[2:]) if flag.startswith("--") else None
            if bool in _variants(kind) and not equals and not (words and words[0].lower() in ("true", "false")):
                if not words or words[0].startswith("-"):
                    word = f"{flag}=true"
            elif kind is not None and _is_list(kind) and (equals or words):
                value = value if equals else words.pop(0)
                word = f"{flag}={value}" if value[:1] == "[" or value == "null" else f"{flag}=[{value}]"
            result.append(word)
        return result

    def _check_file(self, file: str) -> None:
        """Every key and value of a YAML file, with the file and line in the complaint; values jsonargparse judges."""
        try:
            if Path(file).stat().st_size > _LARGEST_FILE:
                raise InputError(
                    f"{file} has more than {_LARGEST_FILE:,} bytes; --config takes a YAML file of settings"
                )
            text = Path(file).read_text(encoding="utf-8")
            if text.count("[") + text.count("{") > _MOST_BRACKETS:  # PyYAML's time grows with the square of their depth
                raise InputError(
                    f"{file} has more than {_MOST_BRACKETS} brackets; --config takes a YAML file of settings"
                )
            if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
                raise InputError(f"{file}: aliases (*name) are not read here; write the value out")
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
        except (yaml.YAMLError, RecursionError, OverflowError) as error:
            raise InputError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{file}: it must hold lines such as 'seed: 0'; see configs/default.yaml")
        self._check_keys(root, "", file)
        try:
            self.parse_string(text)
        except (
            InputError,
            ValueError,
            TypeError,
            RecursionError,
        ) as error:  # a number of 5,000 digits, a key that is a list
            raise InputError(f"{file}: {' '.join(str(error).split())}") from None

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
            known += self.others
        section = key.rpartition(".")[0]
        near = [k for k in known if _leaf(k) == _leaf(key)]
        for among in ([k for k in known if k.rpartition(".")[0] == section], known):
            leaves = difflib.get_close_matches(_leaf(key), {_leaf(k) for k in among}, n=1)
            near = near or [k for k in among if _leaf(k) in leaves]
        hint = f"did you mean {_either(dashes + k for k in near)}?" if near else "--help lists them all"
        return f"unknown key {dashes}{key}; {hint}"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """jsonargparse's complaint in one line; raised, so that `cli/status.py` alone prints and exits."""
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
        if match := re.search(r"argument --([\w.]+)\S*: expected one argument", line):
            return f"--{match[1]} lacks its value, {_expected(self.types[match[1]]) if match[1] in self.types else 'a file'}"
        if (match := re.search(r'Parser key "([\w.]+)"', line)) and match[1] in self.types:
            kind, given = self.types[match[1]], re.findall(r"(?:Got|Given) value: (.*?)(?= - | Given |$)", line)
            verb = "holds" if _is_list(kind) else "is"
            return f"{match[1]} {verb} {given[-1] if given else 'wrong'}; it must be {_expected(kind)}"
        if (match := re.search(r'Parser key "(\w+)"', line)) and self._is_section(match[1]):
            return f"--{match[1]} takes a YAML file of that section alone; single settings are --{match[1]}.KEY value"
        if match := re.search(r'(?:Key "|required: )([\w.]+)', line):
            return f"{match[1].upper()} is missing; see --help"
        return line


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


def _variants(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_list(kind: Any) -> bool:
    return any(get_origin(variant) is list for variant in _variants(kind))


_PLURALS = {int: "integers", float: "numbers", str: "words"}
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def _expected(kind: Any) -> str:
    """A type in words: "an integer or null"."""
    words = []
    for variant in _variants(kind):
        if get_origin(variant) is Literal:
            words.append(_either(get_args(variant)))
        elif get_origin(variant) is list:
            words.append(f"a list of {_PLURALS[get_args(variant)[0]]}")
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
    after = [value for word, value in pairwise(argv) if word == flag]
    return after + [word.partition("=")[2] for word in argv if word.startswith(f"{flag}=")]

"""The order of the rooms: what each module imports, read from its source, against the layout of the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mcot_torch

PACKAGE = Path(mcot_torch.__file__).parent
ROOMS = (
    *(
        "system",
        "graphs",
        "chains",
        "sampling",
        "reasoners",
        "training",
        "algorithms",
        "logic",
        "evaluation",
        "methods",
    ),
    *("estimation", "report", "integrations", "runs", "experiments", "cli"),
)
"""Lowest first: a room imports the rooms before it, `errors` and `version`."""
COMMANDS = {"assumptions", "sweep"}
"""Packages that hold nothing but `__main__.py`, so that `python -m mcot_torch.sweep` works."""
KNOWN: set[tuple[str, str]] = set()
"""(module, module of a later room that it imports): still to be resolved. It may only shrink."""


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(name: str, everywhere: bool = True) -> set[str]:
    """The modules of the package that a module names in its imports, those inside functions only with `everywhere`."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else _outside_functions(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {module if module in MODULES else str(node.module) for module in inner}
    return found & set(MODULES)


def _outside_functions(tree: ast.Module) -> list[ast.stmt]:
    """The statements that an import of the module runs; not those for type checkers."""
    waiting, found = list(tree.body), []
    while waiting:
        node = waiting.pop()
        found.append(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            waiting += [*node.body, *node.orelse]
    return found


def room(name: str) -> int:
    """The place of a module's room; -1 for what every room may import."""
    _, _, rest = name.partition(".")
    first = rest.partition(".")[0]
    return -1 if first in ("", "errors", "version") else ROOMS.index(first)


def test_a_room_imports_only_rooms_before_it():
    found = set()
    for name in MODULES:
        first = name.split(".")[1] if "." in name else ""
        if name.endswith(".__main__") or first in COMMANDS:
            continue
        found |= {(name, other) for other in imported(name) if room(other) > room(name)}
    assert found - KNOWN == set(), "a module imports a later room"
    assert KNOWN - found == set(), "resolved: take it off the list"


def imports_of_the_root(tree: ast.Module) -> list[str]:
    """The imports that name the package itself, written as they stand: they hide the room that they read."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)] if f"{node.module}.{node.names[0].name}" not in MODULES else []
        else:
            continue
        found += [ast.unparse(node)] if PACKAGE.name in names else []
    return found


@pytest.mark.parametrize(
    ("source", "n_found"),
    [
        ("import mcot_torch", 1),
        ("import mcot_torch as mt", 1),
        ("def f():\n    from mcot_torch import build_graph", 1),
        ("from mcot_torch import errors", 0),
        ("import mcot_torch.errors", 0),
        ("from mcot_torch.graphs.graph import MetastableGraph", 0),
    ],
)
def test_an_import_of_the_root_is_seen(source, n_found):
    assert len(imports_of_the_root(ast.parse(source))) == n_found


def test_no_module_imports_the_root():
    """The root re-exports names of every room, so that an import of it would hide which room a module needs."""
    found = {name: imports_of_the_root(ast.parse(path.read_text(encoding="utf-8"))) for name, path in MODULES.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_entry_points_are_short():
    for name, path in MODULES.items():
        if name.endswith(".__main__"):
            statements = [
                node for node in ast.parse(path.read_text(encoding="utf-8")).body if not isinstance(node, ast.Expr)
            ]
            assert len(statements) == 2, f"{name}: an import and a call of main"
    for command in COMMANDS:
        assert sorted(path.name for path in (PACKAGE / command).glob("*.py")) == ["__init__.py", "__main__.py"]


def test_the_root_holds_no_module_of_its_own():
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == ["__init__.py", "errors.py", "version.py"]
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders <= {*ROOMS, *COMMANDS}


def test_no_module_imports_itself_over_others():
    """No circle among the imports that run when a module is imported; a package's `__init__` runs before its modules."""
    graph = {name: imported(name, everywhere=False) - {name} for name in MODULES}
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> None:
        if name in path:
            pytest.fail(" -> ".join([*path[path.index(name) :], name]))
        if name in done:
            return
        path.append(name)
        for other in sorted(graph[name]):
            visit(other)
        path.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)

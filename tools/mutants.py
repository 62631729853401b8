"""Mutation score: change the mathematics in one place, run the tests that reach it, see whether one of them fails.

    python tools/mutants.py --mutants 40 --most 240 --seed 0 --save mutants.json
    python tools/mutants.py --again mutants.json  # only what survived, with the tests as they are now

A mutant is one change of a module's syntax tree: an operator, a comparison, a constant, a condition, a name (min for max), a
returned value, or a statement left out. Out of scope: docstrings, annotations, strings, the arguments of an error,
`strict=` of zip, imports and decorators. Of each module a random sample is tried. The tests run once unchanged, noting which
test reaches which line; a mutant then runs the tests that reach its statement, soonest first, in a forked process whose
imports see the changed module: no file is written. Killed is: a test fails, or the tests take three times their time.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parents[1]
CHAINS = ("tests/chains", "tests/properties")
ALGORITHMS = ("tests/algorithms",)
MODULES = {  # module -> the tests that are meant for it
    **{f"mcot_torch/chains/{name}.py": CHAINS for name in ("elimination", "hitting", "layers", "meta_chain")},
    **{f"mcot_torch/chains/{name}.py": CHAINS for name in ("refined", "sparse", "stationary")},
    **{f"mcot_torch/algorithms/{name}.py": ALGORITHMS for name in ("ppo", "search", "distill")},
}
WORDS = ["-q", "-x", "-o", "addopts=", "-m", "not slow", "--tb=no", "-p", "no:xdist", "-p", "no:cacheprovider"]
ROOM = 6 * 2**30  # bytes that a mutant may take

# ---- mutants --------------------------------------------------------------------------------------------------------

OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.RShift: ast.LShift, ast.LShift: ast.RShift,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
COMPARISONS: dict[type, tuple[type, ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}  # fmt: skip
PAIRS = [
    ("min", "max"),
    ("minimum", "maximum"),
    ("argmin", "argmax"),
    ("any", "all"),
    ("zeros", "ones"),
    ("exp", "log"),
]
PAIRS += [("ceil", "floor"), ("clamp_min", "clamp_max"), ("softmax", "log_softmax"), ("union1d", "intersect1d")]
NAMES = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
NOT_CODE = {"annotation", "returns", "decorator_list", "type_params", "bases"}

Change = tuple[range, str, Callable[[], None]]  # lines of the statement, what is changed, the change


def changes(tree: ast.AST, top: bool = True, lines: range = range(0)) -> Iterator[Change]:
    """Every change of a syntax tree, always in the same order."""
    for field, value in ast.iter_fields(tree):
        if field in NOT_CODE:
            continue
        for i, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST):
                continue

            def put(new: ast.AST, old: Any = node, holder: Any = value, i: int = i, f: str = field) -> None:
                ast.copy_location(new, old)
                if isinstance(holder, list):
                    holder[i] = new
                else:
                    setattr(tree, f, new)

            if isinstance(node, ast.stmt):
                if top and not _counts_at_the_top(node):
                    continue
                body = getattr(node, "body", None)
                last = body[0].lineno - 1 if body else node.end_lineno or 0
                lines = range(node.lineno, max(last, node.lineno) + 1)
            yield from _at(node, lines, put)
            if not _is_text(node):
                yield from changes(node, top and isinstance(node, ast.Module | ast.ClassDef), lines)


def _counts_at_the_top(node: ast.stmt) -> bool:
    """Functions, classes and numbers; not imports and names of types."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return True
    value = getattr(node, "value", None)
    numbers = [x for x in ast.walk(value) if isinstance(x, ast.Constant)] if value else []
    return bool(numbers) and all(isinstance(x.value, int | float) for x in numbers)


def _is_text(node: ast.AST) -> bool:
    """Docstrings, f-strings, errors, assertions, `strict=`."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        return name.endswith("Error") or name == "unreadable"
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert) or (
        isinstance(node, ast.keyword) and node.arg == "strict"
    )


def _at(node: ast.AST, lines: range, put: Callable[[ast.AST], None]) -> Iterator[Change]:
    """The changes of one node."""
    before = ast.unparse(node).split("\n")[0] if not isinstance(node, ast.operator | ast.expr_context) else ""

    def become(new: ast.AST) -> Change:
        return lines, f"{before}  ->  {ast.unparse(ast.fix_missing_locations(new))}", lambda: put(new)

    def assign(name: str, new: Any) -> Change:
        old = getattr(node, name)
        setattr(node, name, new)
        text = f"{before}  ->  {ast.unparse(node).split(chr(10))[0]}"
        setattr(node, name, old)
        return lines, text, lambda: setattr(node, name, new)

    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in OPERATORS:
        yield assign("op", OPERATORS[type(node.op)]())
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for new in COMPARISONS[type(op)]:
                yield assign("ops", [*node.ops[:i], new(), *node.ops[i + 1 :]])
    if isinstance(node, ast.UnaryOp):
        yield become(node.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        value = node.value
        yield assign(
            "value", not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else 2 * value or 1.0
        )
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield assign("attr", NAMES[node.attr])
    if isinstance(node, ast.Name) and node.id in NAMES:
        yield assign("id", NAMES[node.id])
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield assign("test", ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Return) and node.value is not None and not _is_text(node.value):
        nothing = isinstance(node.value, ast.Constant) and node.value.value is None
        yield assign("value", ast.Constant(0 if nothing else None))
    if isinstance(node, ast.Break):
        yield become(ast.Continue())
    if isinstance(node, ast.Continue):
        yield become(ast.Break())
    stored = isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple)
    called = isinstance(node, ast.Expr) and not _is_text(node) and not isinstance(node.value, ast.Yield | ast.YieldFrom)
    if stored or called or isinstance(node, ast.AugAssign | ast.Raise):
        yield become(ast.Pass())


def code_of(file: str, number: int) -> CodeType:
    """The module with its change of that number."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    for i, (_, _, change) in enumerate(changes(tree)):
        if i == number:
            change()
            break
    return compile(ast.fix_missing_locations(tree), str(ROOT / file), "exec")


# ---- running tests in a forked process ------------------------------------------------------------------------------


class Changed(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports one module from other code than its file's."""

    def __init__(self, file: str, code: CodeType) -> None:
        super().__init__(file.removesuffix(".py").replace("/", "."), str(ROOT / file))
        self.code = code

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Its own module, nothing else."""
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        """The other code."""
        return self.code


class Reach:
    """A plugin of pytest that notes the tests' seconds, and the tests that reach each line of the modules."""

    def __init__(self) -> None:
        self.files = {str(ROOT / file): file for file in MODULES}
        self.lines: dict[str, dict[int, set[str]]] = {file: defaultdict(set) for file in MODULES}
        self.seconds: dict[str, float] = {}
        self.test = ""  # none: what importing reaches

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        """For `sys.settrace`."""
        lines = self.lines.get(self.files.get(frame.f_code.co_filename, ""))
        if lines is None:
            return None

        def local(frame: FrameType, event: str, arg: Any) -> Any:
            lines[frame.f_lineno].add(self.test)
            return local

        return local(frame, event, arg)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Note which test runs, and for how long."""
        self.test, before = item.nodeid, time.perf_counter()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid], self.test = time.perf_counter() - before, ""


class Choice:
    """A plugin of pytest that keeps the given tests, in the given order."""

    def __init__(self, tests: list[str]) -> None:
        self.place = {test: i for i, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Run the given tests only, in the given order."""
        items[:] = sorted((x for x in items if x.nodeid in self.place), key=lambda x: self.place[x.nodeid])


def forked(work: Callable[[], int], seconds: float) -> int:
    """Status of `work` in a forked, silent process; negative where a limit ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = 70
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (ROOM, ROOM))
        signal.alarm(math.ceil(4 * seconds))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        settings.register_profile(
            "mutants", database=None, derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate]
        )
        settings.load_profile("mutants")
        status = int(work())
    finally:
        os._exit(status)


def reach(tests: tuple[str, ...]) -> tuple[dict[str, dict[int, set[str]]], dict[str, float]]:
    """The lines that each test reaches, and the tests' seconds; all of them must pass."""
    with tempfile.TemporaryDirectory() as home:
        found = Path(home) / "reach.json"

        def work() -> int:
            plugin = Reach()
            sys.settrace(plugin.trace)
            status = pytest.main([*WORDS, *tests], plugins=[plugin])
            sys.settrace(None)
            lines = {f: {n: sorted(names) for n, names in x.items()} for f, x in plugin.lines.items()}
            found.write_text(json.dumps([lines, plugin.seconds]))
            return int(status)

        if forked(work, 3600) != 0:
            raise SystemExit(f"the tests fail without any change: pytest {' '.join(tests)}")
        lines, seconds = json.loads(found.read_text())
    return {f: {int(n): set(names) for n, names in x.items()} for f, x in lines.items()}, seconds


def outcome(mutant: dict[str, Any], reached: dict[int, set[str]], seconds: dict[str, float]) -> str:
    """Run the tests that reach a mutant."""
    chosen = set().union(*(reached.get(line, set()) for line in range(*mutant["lines"])))
    tests = sorted(seconds if "" in chosen else chosen, key=lambda test: seconds[test])
    if not tests:
        return "not reached"
    files = sorted({test.split("::")[0] for test in tests})

    def work() -> int:
        sys.meta_path.insert(0, Changed(mutant["file"], code_of(mutant["file"], mutant["number"])))
        return int(pytest.main([*WORDS, *files], plugins=[Choice(tests)]))

    status = forked(work, 10 + 3 * sum(seconds[test] for test in tests))
    if status == 5:
        raise SystemExit(f"no test was found in {files}")
    return "survived" if status == 0 else "killed" if status > 0 else "killed, too long"


# ---- the score ------------------------------------------------------------------------------------------------------


def wilson(killed: int, n: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z, p = 1.96, killed / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def report(tried: list[dict[str, Any]], sizes: dict[str, int]) -> None:
    """A line for each module; the whole is weighted by the modules' mutants."""
    score = variance = 0.0
    print(f"\n{'module':<36}{'mutants':>8}{'tried':>7}{'killed':>8}   score")
    files = [file for file in sizes if any(x["file"] == file for x in tried)]
    for file in files:
        results = [x["outcome"].startswith("killed") for x in tried if x["file"] == file]
        killed, n = sum(results), len(results)
        low, high = wilson(killed, n)
        share, p = sizes[file] / sum(sizes[f] for f in files), killed / n
        score, variance = score + share * p, variance + share**2 * (low - high) ** 2 / 4
        print(f"{file:<36}{sizes[file]:>8}{n:>7}{killed:>8}   {100 * p:.0f} % ({100 * low:.0f} to {100 * high:.0f})")
    n, killed = len(tried), sum(x["outcome"].startswith("killed") for x in tried)
    half = math.sqrt(variance)
    print(f"{'all, weighted by mutants':<36}{sum(sizes[f] for f in files):>8}{n:>7}{killed:>8}   ", end="")
    print(f"{100 * score:.1f} % ({100 * (score - half):.1f} to {100 * min(1.0, score + half):.1f})\n")
    for x in tried:
        if not x["outcome"].startswith("killed"):
            print(f"{x['file']}:{x['lines'][0]}  {x['change']}  ({x['outcome']})")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Mutation score of the mathematics.")
    parser.add_argument("--mutants", type=int, default=40, help="mutants drawn in each module")
    parser.add_argument(
        "--most", type=int, help="how many of these in all are tried, the modules in turn; default: all"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="+", default=list(MODULES), help="paths; default: all")
    parser.add_argument("--save", type=Path, help="where the outcomes go")
    parser.add_argument("--again", type=Path, help="outcomes of before: try again what survived")
    args = parser.parse_args()
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path.insert(0, str(ROOT))
    import mcot_torch.runs.pipeline  # noqa: F401  all that is heavy, before any fork; then the package itself is forgotten

    for name in [name for name in sys.modules if name.split(".")[0] == "mcot_torch"]:
        del sys.modules[name]

    pool: dict[str, list[dict[str, Any]]] = {}
    for file in args.modules:
        found = changes(ast.parse((ROOT / file).read_text("utf-8")))
        pool[file] = [
            {"file": file, "number": i, "lines": [lines.start, lines.stop], "change": text, "outcome": ""}
            for i, (lines, text, _) in enumerate(found)
        ]
    if args.again:
        tried = json.loads(args.again.read_text())
        if any({**x, "outcome": ""} != pool[x["file"]][x["number"]] for x in tried):
            raise SystemExit("the modules have changed since; draw new mutants")
    else:
        draw = random.Random(args.seed)
        samples = [draw.sample(x, min(args.mutants, len(x))) for x in pool.values()]
        tried = [x[i] for i in range(args.mutants) for x in samples if i < len(x)][: args.most]  # the modules in turn

    reached: dict[tuple[str, ...], Any] = {}
    todo = [x for x in tried if not x["outcome"].startswith("killed")]
    for i, mutant in enumerate(todo):
        tests = MODULES[mutant["file"]]
        if tests not in reached:
            reached[tests] = reach(tests)
        lines, seconds = reached[tests]
        before = time.perf_counter()
        mutant["outcome"] = outcome(mutant, lines[mutant["file"]], seconds)
        took = time.perf_counter() - before
        print(
            f"{i + 1}/{len(todo)} {mutant['outcome']:<12} {took:5.1f} s  {mutant['file']}:{mutant['lines'][0]}  {mutant['change']}",
            flush=True,
        )
        if args.save or args.again:
            (args.save or args.again).write_text(json.dumps([x for x in tried if x["outcome"]], indent=1))
    report(tried, {file: len(x) for file, x in pool.items()})


if __name__ == "__main__":
    main()

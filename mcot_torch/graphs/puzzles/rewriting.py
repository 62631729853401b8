"""Propositional rewriting: reordering a formula is easy, distributing and De Morgan's laws are the hard steps."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from mcot_torch.errors import InputError
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.puzzles.explore import explore

__all__ = ["propositional_rewriting"]

Formula = str | tuple  # a variable, ("~", a), ("&", a, b) or ("|", a, b)
_DUAL = {"&": "|", "|": "&"}
_MOST_LEAVES = 8
_MOST_FORMULAS = 20_000


def propositional_rewriting(
    formula: str = "~(p & (q | r))", max_leaves: int = 4, epsilon: float = 0.002
) -> MetastableGraph:
    """All formulas that equivalences lead to from one formula, at most `max_leaves` variables long.

    One step rewrites one part of the formula. Easy: commutativity a∘b = b∘a and associativity (a∘b)∘c = a∘(b∘c),
    ∘ one of & and |, or no change; each with the same probability. Hard, probability ε: distributivity a∘(b•c) =
    (a∘b)•(a∘c) and De Morgan's laws ~(a & b) = ~a | ~b, ~(a | b) = ~a & ~b, in both directions and as they are
    written: a formula must first be brought into their form. A cluster is a formula up to the order of its parts.

    Formulas are named as they are read, with all brackets but the outermost: '~((p & q) & r)'.

    Args:
        formula: variables, ~, &, | and brackets; & binds more than |.
        max_leaves: most occurrences of variables, 2 .. 8; the hard steps beyond are left out.
        epsilon: ε, probability a step of each hard rewriting of a formula.

    Raises:
        InputError: a formula that cannot be read, is too long, too large (more than 20,000 formulas) or has no hard step.
    """
    if not 2 <= max_leaves <= _MOST_LEAVES:
        raise InputError(f"max_leaves is {max_leaves}; it must lie in 2 .. {_MOST_LEAVES}")
    start = _parse(formula)
    if _leaves(start) > max_leaves:
        raise InputError(
            f"formula {formula!r} has {_leaves(start)} variables; raise max_leaves ({max_leaves}) or shorten it"
        )
    seen = 0

    def easy(f: Formula) -> list[Formula]:
        nonlocal seen
        seen += 1
        if seen > _MOST_FORMULAS:
            raise InputError(
                f"formula {formula!r} leads to more than {_MOST_FORMULAS:,} others of {max_leaves} variables; shorten it or "
                "lower max_leaves"
            )
        return [f, *_anywhere(f, _reorder)]

    def hard(f: Formula) -> list[Formula]:
        return [g for g in _anywhere(f, _transform) if _leaves(g) <= max_leaves]

    return explore(start, easy, hard, _text, epsilon)


# ---- rules ----------------------------------------------------------------------------------------------------------


def _reorder(f: Formula) -> Iterator[Formula]:
    """Commutativity and associativity at the root."""
    match f:
        case ("&" | "|" as op, a, b):
            if a != b:
                yield (op, b, a)
            match a:
                case (inner, c, d) if inner == op:
                    yield (op, c, (op, d, b))
            match b:
                case (inner, c, d) if inner == op:
                    yield (op, (op, a, c), d)


def _transform(f: Formula) -> Iterator[Formula]:
    """Distributivity and De Morgan's laws at the root, in both directions."""
    match f:
        case ("~", ("&" | "|" as op, a, b)):
            yield (_DUAL[op], ("~", a), ("~", b))
        case ("&" | "|" as op, a, b):
            match a, b:
                case ("~", c), ("~", d):
                    yield ("~", (_DUAL[op], c, d))
                case (inner, c, d), (other, e, g) if inner == other == _DUAL[op] and c == e:
                    yield (inner, c, (op, d, g))
            match b:
                case (inner, c, d) if inner == _DUAL[op]:
                    yield (inner, (op, a, c), (op, a, d))


def _anywhere(f: Formula, rule: Callable[[Formula], Iterator[Formula]]) -> Iterator[Formula]:
    """The results of `rule` at the root and at every part of a formula."""
    yield from rule(f)
    if isinstance(f, tuple):
        for i in range(1, len(f)):
            for g in _anywhere(f[i], rule):
                yield (*f[:i], g, *f[i + 1 :])


# ---- text -----------------------------------------------------------------------------------------------------------


def _leaves(f: Formula) -> int:
    return 1 if isinstance(f, str) else sum(map(_leaves, f[1:]))


def _text(f: Formula, outermost: bool = True) -> str:
    if isinstance(f, str):
        return f
    if f[0] == "~":
        return "~" + _text(f[1], outermost=False)
    inside = f"{_text(f[1], outermost=False)} {f[0]} {_text(f[2], outermost=False)}"
    return inside if outermost else f"({inside})"


def _parse(text: str) -> Formula:
    """Python reads ~, & and | with the precedence that logic gives them."""

    def read(node: ast.expr) -> Formula:
        match node:
            case ast.Name(id=name):
                return name
            case ast.UnaryOp(op=ast.Invert(), operand=a):
                return ("~", read(a))
            case ast.BinOp(left=a, op=ast.BitAnd() | ast.BitOr() as op, right=b):
                return ("&" if isinstance(op, ast.BitAnd) else "|", read(a), read(b))
        raise InputError(f"formula {text!r}: {ast.unparse(node)!r} is none of a variable, ~a, a & b and a | b")

    try:
        return read(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError:
        raise InputError(
            f"formula {text!r} cannot be read; write it with ~, &, | and brackets, as ~(p & (q | r))"
        ) from None

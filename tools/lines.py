"""Count lines of code by room: without docstrings, comments and blank lines.

    python tools/lines.py [FOLDER ...]     # by default mcot_torch; each FOLDER's subfolders are its rooms

A line counts if a token of code stands on it. A string that is a statement of its own (a docstring, or the description
behind a field of a dataclass) is no code.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Lines of Python source on which code stands.

    >>> code_lines('"Docstring."\\n\\nx = 1  # comment\\n# comment\\ny = [\\n    2,\\n]\\n')
    4
    """
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def main(words: list[str]) -> None:
    """Print the lines of each room, of its largest file, and their sum."""
    for root in map(Path, words or ["mcot_torch"]):
        rooms: Counter[str] = Counter()
        files: Counter[str] = Counter()
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root)
            room = inside.parts[0] if len(inside.parts) > 1 else "."
            rooms[room] += code_lines(path.read_text())
            files[room] += 1
        for room, n in sorted(rooms.items()):
            print(f"{room:<16}{files[room]:>4} files{n:>8,}")
        print(f"{root.name:<16}{sum(files.values()):>4} files{sum(rooms.values()):>8,}")


if __name__ == "__main__":
    main(sys.argv[1:])

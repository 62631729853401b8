"""Which run folders a user means: names, and patterns such as 'runs/seed*'. Nothing heavy is imported for a mistyped one."""

from __future__ import annotations

from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from mcot_torch.errors import InputError

__all__ = ["find_runs"]


def find_runs(words: Sequence[str]) -> list[Path]:
    """The run folders that `words` name, each once, in their order; those of a pattern sorted.

    Raises:
        InputError: a name without a run, or a pattern that no run matches.
    """
    folders: dict[Path, Path] = {}
    for word in words:
        named = Path(word)
        if has_magic(word) and not named.exists():
            matches = [Path(match) for match in sorted(glob(word))]
            found = [match for match in matches if _is_run(match)]
            if not found:
                what = f"matches {len(matches)} of which none is a run folder" if matches else "matches nothing"
                raise InputError(f"{word} {what}; a run folder has a config.yaml, such as runs/default")
        elif _is_run(named):
            found = [named]
        else:
            raise InputError(f"{named} holds no run (no config.yaml); train.py makes one, by default in runs/default")
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()

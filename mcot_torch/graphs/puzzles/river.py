"""The farmer, the wolf, the goat and the cabbage: loading the boat is easy, crossing the river is the hard step."""

from __future__ import annotations

from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.puzzles.explore import explore

__all__ = ["river_crossing"]

_ITEMS = "CGW"  # cabbage, goat, wolf
_Scene = tuple[str, str, str, bool]  # left bank, boat, right bank (sorted letters), whether the boat lies on the left


def river_crossing(epsilon: float = 0.002) -> MetastableGraph:
    """The classic puzzle of Alcuin: 30 scenes in 10 clusters.

    A scene is what stands on each bank, what is in the boat (at most one item, beside the farmer) and where the boat
    lies. Easy: loading or unloading one item, or waiting, each with the same probability. Hard, probability ε: to
    cross, which is legal if neither wolf and goat nor goat and cabbage are left without the farmer. A cluster is the
    side of the boat and the items across the river; the quickest solution crosses seven times.

    'CW|F.G ~ |' has cabbage and wolf on the left bank, where the farmer and the goat sit in the boat, '~' the river, and
    nobody on the right; the boat is written on its side. The puzzle starts at 'CGW|F ~ |' and ends at '| ~ F|CGW'.

    Args:
        epsilon: ε, probability a step to cross.
    """

    def easy(scene: _Scene) -> list[_Scene]:
        left, boat, right, on_left = scene
        bank = left if on_left else right
        moved = [(bank.replace(item, ""), item) for item in bank]
        if boat:
            moved = [("".join(sorted(bank + boat)), "")]
        return [scene, *((b, load, right, True) if on_left else (left, load, b, False) for b, load in moved)]

    def hard(scene: _Scene) -> list[_Scene]:
        left, boat, right, on_left = scene
        alone = left if on_left else right
        return [(left, boat, right, not on_left)] if alone in ("", "C", "G", "W", "CW") else []

    def name(scene: _Scene) -> str:
        left, boat, right, on_left = scene
        farmer = "F." + boat if boat else "F"
        return f"{left}|{farmer} ~ |{right}" if on_left else f"{left}| ~ {farmer}|{right}"

    return explore((_ITEMS, "", "", True), easy, hard, name, epsilon)

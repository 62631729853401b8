"""The 2 x 3 sliding puzzle: tiles slide freely round the rim, and a tile pushed through the middle is the hard step."""

from __future__ import annotations

from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.puzzles.explore import explore

__all__ = ["sliding_puzzle"]

_RIM = (0, 1, 2, 5, 4, 3)  # cells (row·3 + column) in the order in which they go round the board
_MIDDLE = {1: 4, 4: 1}


def sliding_puzzle(epsilon: float = 3e-4) -> MetastableGraph:
    """Five tiles and a blank on 2 x 3 cells: the 360 of 720 positions that have a solution.

    The six cells form a ring. A slide along it keeps the cyclic order of the tiles, a slide between the two middle cells
    changes it: so the first are the easy moves, the second the hard ones. A cluster is a cyclic order of the five tiles
    that has the parity of the solved board: 4!/2 = 12 clusters of 6·5 = 30 positions, each a cycle round which the blank
    walks. The easy walk slides one way or the other or waits, each with probability 1/3. Ten positions of a cluster
    have the blank in the middle, and so a hard move of weight 1.

    Positions are named row by row, '_' for the blank: '123/45_' is the solved board, state 0.

    Args:
        epsilon: ε, probability a step of the slide through the middle.
    """

    def slide(board: str, cell: int) -> str:
        """The tile of `cell` and the blank exchanged."""
        tile = board[cell]
        return board.replace(tile, " ").replace("_", tile).replace(" ", "_")

    def easy(board: str) -> list[str]:
        at = _RIM.index(board.index("_"))
        return [board, slide(board, _RIM[at - 1]), slide(board, _RIM[(at + 1) % len(_RIM)])]

    def hard(board: str) -> list[str]:
        blank = board.index("_")
        return [slide(board, _MIDDLE[blank])] if blank in _MIDDLE else []

    return explore("12345_", easy, hard, lambda board: f"{board[:3]}/{board[3:]}", epsilon)

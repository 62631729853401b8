"""Rooms with doors: a walker in a grid of square rooms, in which finding the door is the hard step."""

from __future__ import annotations

from mcot_torch.errors import InputError
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.puzzles.explore import explore

__all__ = ["rooms_with_doors"]

_MOST_STATES = 100_000
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def rooms_with_doors(
    n_rows: int = 3, n_columns: int = 3, room_size: int = 5, epsilon: float = 0.002
) -> MetastableGraph:
    """R x C rooms of s x s cells, a door in the middle of every wall between two rooms: R·C clusters of s² states.

    Easy: one of the four directions, each with probability 1/4; against a wall, or a door, the walker stays (so that the
    law inside a room is uniform, and no parity is kept). Hard, probability ε: through the door, where there is one.

    Room 'B3' is in the second row and third column; 'B3 r1c5' is the cell in the first row and fifth column of the room.

    Args:
        n_rows: R, 1 .. 26.
        n_columns: C, at least 1; R·C at least 2.
        room_size: s, at least 2 (a single cell has no easy move).
        epsilon: ε, probability a step to go through a door.

    Raises:
        InputError: a size out of range; the message begins with the argument's name.
    """
    if not 1 <= n_rows <= len(_LETTERS):
        raise InputError(f"n_rows is {n_rows}; rows are called A .. Z, so it must lie in 1 .. {len(_LETTERS)}")
    if n_columns < 1 or n_rows * n_columns < 2:
        raise InputError(f"n_columns is {n_columns} and n_rows {n_rows}; there must be at least 2 rooms")
    if room_size < 2 or n_rows * n_columns * room_size**2 > _MOST_STATES:
        raise InputError(
            f"room_size is {room_size}; it must be at least 2, and {n_rows} x {n_columns} rooms of that size at most "
            f"{_MOST_STATES:,} cells"
        )
    middle, height, width = room_size // 2, n_rows * room_size, n_columns * room_size

    def ways(cell: tuple[int, int]) -> list[tuple[tuple[int, int], bool]]:
        """(where each direction leads, whether through a wall between two rooms), the outer walls left out."""
        i, j = cell
        found = []
        for a, b in ((i + di, j + dj) for di, dj in _DIRECTIONS):
            if 0 <= a < height and 0 <= b < width:
                found.append(((a, b), (a // room_size, b // room_size) != (i // room_size, j // room_size)))
        return found

    def easy(cell: tuple[int, int]) -> list[tuple[int, int]]:
        inside = [there for there, wall in ways(cell) if not wall]
        return inside + [cell] * (len(_DIRECTIONS) - len(inside))

    def hard(cell: tuple[int, int]) -> list[tuple[int, int]]:
        # the door is in the middle of the wall: the coordinate along the wall, which the step keeps, decides
        return [
            there
            for there, wall in ways(cell)
            if wall and (cell[0] if there[0] == cell[0] else cell[1]) % room_size == middle
        ]

    def name(cell: tuple[int, int]) -> str:
        (room_i, i), (room_j, j) = divmod(cell[0], room_size), divmod(cell[1], room_size)
        return f"{_LETTERS[room_i]}{room_j + 1} r{i + 1}c{j + 1}"

    return explore((0, 0), easy, hard, name, epsilon)

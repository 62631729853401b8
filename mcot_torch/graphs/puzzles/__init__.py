"""Real puzzles as metastable graphs: which moves are easy, which are hard, and readable names for the positions."""

from mcot_torch.graphs.puzzles.hanoi import PEGS, tower_of_hanoi
from mcot_torch.graphs.puzzles.rewriting import propositional_rewriting
from mcot_torch.graphs.puzzles.river import river_crossing
from mcot_torch.graphs.puzzles.rooms import rooms_with_doors
from mcot_torch.graphs.puzzles.sliding import sliding_puzzle

__all__ = [
    "PEGS",
    "propositional_rewriting",
    "river_crossing",
    "rooms_with_doors",
    "sliding_puzzle",
    "tower_of_hanoi",
]

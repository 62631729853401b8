"""Solvers of puzzles that write down what they do: reasoning traces whose hard steps are known.

    python examples/puzzle_traces.py rooms traces.jsonl [--traces 600] [--seed 0]
    python -m mcot_torch.estimation traces traces.jsonl

A solver walks at random through rooms, or moves the discs of the Tower of Hanoi, from any position, and puts every position
into words, never twice in quite the same way. A trace is correct if it reaches the goal within its length. Besides id, steps
and correct, a line holds the true `states`, which the estimation does not read.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
import torch

from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.puzzles import rooms_with_doors, tower_of_hanoi
from mcot_torch.sampling.walks import StepTable, walk_paths
from mcot_torch.system.randomness import generator

LENGTH = 60  # steps of a trace
EPSILON = 0.02

ROOMS = {"A1": "kitchen", "A2": "library", "A3": "bathroom", "B1": "cellar", "B2": "hall", "B3": "garage"}
SPOTS = {
    "r1c1": "window",
    "r1c2": "lamp",
    "r1c3": "sofa",
    "r2c1": "mirror",
    "r2c2": "carpet",
    "r2c3": "clock",
    "r3c1": "plant",
    "r3c2": "stove",
    "r3c3": "curtain",
}
IN_A_ROOM = (
    "I am in the {room} now, next to the {spot}.",
    "Now I stand by the {spot} of the {room}.",
    "That brings me to the {spot} in the {room}.",
    "So here is the {spot}, and this is still the {room}, I think.",
    "Let me see: {room}, {spot}.",
    "The {room} again? Yes, and the {spot} is right here.",
    "One more step and I reach the {spot} (in the {room}).",
    "Beside me is the {spot}; around me, the {room}.",
)
DISCS = ("tiny", "small", "big", "huge")
PEGS = {"A": "left", "B": "middle", "C": "right"}
ON_A_PEG = ("{disc} {peg}", "{disc} on {peg}", "{disc}: {peg}")
ON_PEGS = (
    "Now we have {pegs}.",
    "After this move: {pegs}",
    "So the position is {pegs}, let me go on.",
    "Hmm, {pegs}. What next?",
    "This gives {pegs}.",
    "I get {pegs} and think again.",
)


def tell_room(name: str, pick: np.random.Generator) -> str:
    """A sentence on a position in the rooms."""
    room, spot = name.split()
    return str(pick.choice(IN_A_ROOM)).format(room=ROOMS[room], spot=SPOTS[spot])


def tell_hanoi(name: str, pick: np.random.Generator) -> str:
    """A sentence on a position of the discs."""
    form = str(pick.choice(ON_A_PEG))
    pegs = [form.format(disc=disc, peg=PEGS[peg]) for disc, peg in zip(DISCS, name, strict=True)]
    return str(pick.choice(ON_PEGS)).format(pegs=", ".join(pegs))


PUZZLES: dict[str, tuple[Callable[[], MetastableGraph], Callable[[str, np.random.Generator], str], str]] = {
    "rooms": (lambda: rooms_with_doors(2, 3, 3, EPSILON), tell_room, "B3 r2c2"),
    "hanoi": (lambda: tower_of_hanoi(4, 2, EPSILON), tell_hanoi, "CCCC"),
}


def solve(puzzle: str, n_traces: int, seed: int) -> list[dict]:
    """Traces of the puzzle as JSON objects; a trace that finds the goal ends there."""
    make, tell, goal = PUZZLES[puzzle]
    graph = make()
    draw = generator(seed, "traces", puzzle)
    start = torch.randint(graph.n_states, (n_traces,), generator=draw)
    paths = walk_paths(StepTable.from_graph(graph), start, LENGTH, draw).numpy()
    pick = np.random.default_rng(seed)
    traces = []
    for i, path in enumerate(paths):
        names = [graph.name(x) for x in path]
        found = goal in names
        names = names[: names.index(goal) + 1] if found else names
        traces.append(
            {"id": f"{puzzle}-{i}", "steps": [tell(name, pick) for name in names], "correct": found, "states": names}
        )
    return traces


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("puzzle", choices=list(PUZZLES))
    parser.add_argument("file")
    parser.add_argument("--traces", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with open(options.file, "w", encoding="utf-8") as out:
        for trace in solve(options.puzzle, options.traces, options.seed):
            out.write(json.dumps(trace) + "\n")

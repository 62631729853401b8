"""Algorithm 1: counts against the same network on sequences and against nanoGPT's model; sequences against nanoGPT's."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.models import HEADS, LAYERS, WIDTH, default_graph, nanogpt, trainer
from benchmarks.timing import Mark, Row, Settings, Work, load_nanogpt, race
from mcot_torch.algorithms.pretrain import block_loss
from mcot_torch.data import count_batch, path_batch, uniform_starts
from mcot_torch.reasoners import TransformerReasoner
from mcot_torch.walks import StepTable, walk_counts, walk_paths

_BATCH, _LENGTH = 32, 32


def window_1(settings: Settings) -> Row:
    """One optimiser step on freshly sampled transitions: as counts, and as batches of 1,024."""
    device = settings.device
    graph = default_graph(settings.quick)
    n, table, draw = graph.n_states, StepTable.from_graph(graph, device), torch.Generator(device).manual_seed(0)
    walkers, length = settings.size(4096, 64), settings.size(256, 8)
    fed, same = (TransformerReasoner(n, 1, WIDTH, LAYERS, HEADS).to(device) for _ in range(2))
    on_counts = trainer(fed, lambda states, *seen: likelihood(fed, states, *seen))
    on_steps = trainer(same, lambda states, *seen: likelihood(same, states, *seen))

    def counted() -> None:
        starts = uniform_starts(walkers, n, draw)
        on_counts(*count_batch(walk_counts(table, starts, length, draw), table.successors))

    def paths() -> torch.Tensor:
        return walk_paths(table, torch.randint(n, (_BATCH,), generator=draw, device=device), _LENGTH, draw)

    def stepwise() -> None:
        on_steps(*(x.flatten(0, 1)[:, None] for x in path_batch(paths())))

    works = [
        Work("on counts", counted, walkers * length, True),
        Work("the same network on sequences", stepwise, _BATCH * _LENGTH),
    ]
    skipped: list[str] = []
    if module := load_nanogpt(settings, skipped):
        works.append(Work("nanoGPT's model", _nanogpt_step(module, n, paths, device), _BATCH * _LENGTH))
    setup = f"N = {n}, width {WIDTH}, {LAYERS} layers; sampling and one Adam step, {walkers * length:,} transitions or batches of 1,024"
    row = Row("pretrain", "pretrain_window_1", setup, "transitions", race(works, settings), skipped=skipped)
    row.marks = [
        Mark(f"≥ 300 x {name}", row.ratio("on counts", name), 300.0)
        for name in ("the same network on sequences", "nanoGPT's model")
    ]
    row.notes = [
        "Equal gradient: tests/algorithms/test_pretrain.py, test_counts_give_the_gradient_of_every_sampled_step."
    ]
    return row


def likelihood(
    model: TransformerReasoner, states: torch.Tensor, after: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """The loss of Algorithm 1 on a batch."""
    return block_loss(model, states, model.listed(states), model.allowed(states), after, counts, counts.sum())


def _nanogpt_step(module, n, paths, device):
    with torch.random.fork_rng():
        model = nanogpt(module, n, _LENGTH, device)
    step = trainer(model, lambda x, y: model(x, y)[1])

    def call() -> None:
        sampled = paths()
        step(sampled[:, :-1].contiguous(), sampled[:, 1:].contiguous())

    return call


def sequences(settings: Settings) -> Row:
    """A reasoner that reads 32 states, against nanoGPT's model."""
    device = settings.device
    graph = default_graph(settings.quick)
    n, table, draw = graph.n_states, StepTable.from_graph(graph, device), torch.Generator(device).manual_seed(0)
    model = TransformerReasoner(n, _LENGTH, WIDTH, LAYERS, HEADS).to(device)
    step = trainer(model, lambda *batch: likelihood(model, *batch))
    plain = TransformerReasoner(n, _LENGTH, WIDTH, LAYERS, HEADS).to(device)
    bare = trainer(plain, lambda x, y: F.cross_entropy(plain(x).flatten(0, 1), y.flatten()))

    def paths() -> torch.Tensor:
        return walk_paths(table, torch.randint(n, (_BATCH,), generator=draw, device=device), _LENGTH, draw)

    def ours() -> None:
        step(*path_batch(paths()))

    def without_cut() -> None:
        sampled = paths()
        bare(sampled[:, :-1], sampled[:, 1:])

    works = [
        Work("ours", ours, _BATCH * _LENGTH, True),
        Work("ours, without the mask of the cut", without_cut, _BATCH * _LENGTH, True),
    ]
    skipped: list[str] = []
    if module := load_nanogpt(settings, skipped):
        works.append(Work("nanoGPT's model", _nanogpt_step(module, n, paths, device), _BATCH * _LENGTH))
    setup = f"N = {n}, window {_LENGTH}, width {WIDTH}, {LAYERS} layers, batch {_BATCH}; sampling and one Adam step"
    row = Row("pretrain", "pretrain_sequences", setup, "tokens", race(works, settings), skipped=skipped)
    row.marks = [Mark("≥ 1.3 x nanoGPT's model", row.ratio("ours", "nanoGPT's model"), 1.3)]
    row.notes = [
        "Profiled once on one core of an AMD EPYC: matrix products, the same in both models, run at the core's peak and take more "
        "than half of nanoGPT's step, so that no formulation in float32 could be much faster; ours spends more on rotary "
        "positions and normalised queries and keys. torch.compile took 9 to 49 s to compile and left the two about equal, so that "
        "it is not the default."
    ]
    return row


ROWS = {"pretrain_window_1": window_1, "pretrain_sequences": sequences}

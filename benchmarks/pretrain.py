"""Algorithm 1: counts against the same network on sequences and against nanoGPT's model; sequences against nanoGPT's."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.models import HEADS, LAYERS, WIDTH, default_graph, nanogpt, trainer
from benchmarks.timing import Benchmark, Mark, Settings, Work, load_nanogpt, race
from mcot_torch.algorithms.pretrain import block_loss
from mcot_torch.reasoners import TransformerReasoner
from mcot_torch.sampling.datasets import count_batch, path_batch, uniform_starts
from mcot_torch.sampling.walks import StepTable, walk_counts, walk_paths
from mcot_torch.system.machine import compiled

_BATCH, _LENGTH = 32, 32


def window_1(settings: Settings) -> Benchmark:
    """One optimiser step on freshly sampled transitions: as counts, and as batches of 1,024."""
    device = settings.device
    graph = default_graph(settings.quick)
    n, table, draw = graph.n_states, StepTable.from_graph(graph, device), torch.Generator(device).manual_seed(0)
    walkers, length = settings.size(4096, 64), settings.size(256, 8)
    fed, same = (TransformerReasoner(n, 1, WIDTH, LAYERS, HEADS).to(device) for _ in range(2))
    on_counts = trainer(fed, lambda *batch: likelihood(fed, batch))
    on_steps = trainer(same, lambda *batch: likelihood(same, batch))

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
    row = Benchmark("pretrain", "pretrain_window_1", setup, "transitions", race(works, settings), skipped=skipped)
    row.marks = [
        Mark(f"≥ 300 x {name}", row.ratio("on counts", name), 300.0)
        for name in ("the same network on sequences", "nanoGPT's model")
    ]
    row.notes = [
        "Equal gradient: tests/algorithms/test_pretrain.py, test_counts_give_the_gradient_of_every_sampled_step."
    ]
    return row


TokenBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def likelihood(
    model: TransformerReasoner, batch: TokenBatch, loss: Callable[..., torch.Tensor] = block_loss
) -> torch.Tensor:
    """The loss of Algorithm 1 on a batch."""
    states, after, counts = batch
    places = model.support.places(states[..., None], after)
    return loss(
        model, states, model.support.successors_of(states), model.support.allowed(states), places, counts, counts.sum()
    )


def products(n: int, device: str) -> Callable[[], None]:
    """The matrix products of one step of the network, forward and backward, and nothing else: what no formulation can do without."""
    layers = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)] * LAYERS + [(WIDTH, n)]
    shapes = [[(_BATCH * _LENGTH, i), (o, i), (_BATCH * _LENGTH, o)] for i, o in layers]
    operands = [[torch.randn(shape, device=device) for shape in layer] for layer in shapes]

    def call() -> None:
        for x, weight, gradient in operands:
            _ = x @ weight.T, gradient @ weight, gradient.T @ x

    return call


def _nanogpt_step(module, n, paths, device):
    with torch.random.fork_rng():
        model = nanogpt(module, n, _LENGTH, device)
    step = trainer(model, lambda x, y: model(x, y)[1])

    def call() -> None:
        sampled = paths()
        step(sampled[:, :-1].contiguous(), sampled[:, 1:].contiguous())

    return call


def sequences(settings: Settings) -> Benchmark:
    """A reasoner that reads 32 states, against nanoGPT's model."""
    device = settings.device
    graph = default_graph(settings.quick)
    n, table, draw = graph.n_states, StepTable.from_graph(graph, device), torch.Generator(device).manual_seed(0)
    models = [TransformerReasoner(n, _LENGTH, WIDTH, LAYERS, HEADS).to(device) for _ in range(2)]
    eager = trainer(models[0], lambda *batch: likelihood(models[0], batch))

    def paths() -> torch.Tensor:
        return walk_paths(table, torch.randint(n, (_BATCH,), generator=draw, device=device), _LENGTH, draw)

    works = [Work("ours", lambda: eager(*path_batch(paths())), _BATCH * _LENGTH, True)]
    if not settings.quick:
        loss = compiled(block_loss, torch.device(device))
        fused = trainer(models[1], lambda *batch: likelihood(models[1], batch, loss))
        works.insert(0, Work("ours, compiled", lambda: fused(*path_batch(paths())), _BATCH * _LENGTH, True))
    skipped: list[str] = []
    if module := load_nanogpt(settings, skipped):
        works.append(Work("nanoGPT's model", _nanogpt_step(module, n, paths, device), _BATCH * _LENGTH))
    works.append(Work("its matrix products alone", products(n, device), _BATCH * _LENGTH))
    setup = f"N = {n}, window {_LENGTH}, width {WIDTH}, {LAYERS} layers, batch {_BATCH}; sampling and one Adam step"
    row = Benchmark("pretrain", "pretrain_sequences", setup, "tokens", race(works, settings), skipped=skipped)
    row.marks = [Mark("≥ 1.3 x nanoGPT's model", row.ratio("ours, compiled", "nanoGPT's model"), 1.3)]
    row.notes = [
        "The matrix products are the same in both models and cannot be fewer. What 1.3 x would leave beside them is less than attention, "
        "the softmax over N states, Adam and one pass over what lies between take in the compiled step. NanoGPT's model has learned "
        "positions and no normalised queries and keys; ours turns and normalises them, which a compiler fuses (`pretrain.compile`, "
        "some ten seconds before the first step)."
    ]
    return row


ROWS = {"pretrain_window_1": window_1, "pretrain_sequences": sequences}

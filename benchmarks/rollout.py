"""Rollouts: a walk of a table against decoding, and cached against uncached decoding."""

from __future__ import annotations

import torch

from benchmarks.models import HEADS, LAYERS, WIDTH, default_graph, nanogpt
from benchmarks.timing import Benchmark, Mark, Settings, Work, load_nanogpt, race
from mcot_torch.reasoners import TransformerReasoner, generate


@torch.no_grad()
def decode(model: TransformerReasoner, start: torch.Tensor, n_steps: int, draw: torch.Generator) -> torch.Tensor:
    """Uncached: every step reads the whole context again, cropped to the window, as nanoGPT's `generate` does; then the cut."""
    context = start[:, None]
    for _ in range(n_steps):
        logits = model(context[:, -model.window :])[:, -1].masked_fill(~model.support.mask[context[:, -1]], -torch.inf)
        after = torch.multinomial(logits.softmax(-1), 1, generator=draw)
        context = torch.cat([context, after], dim=1)
    return context


def table_walk(settings: Settings) -> Benchmark:
    """Window 1."""
    device = settings.device
    graph = default_graph(settings.quick)
    model = TransformerReasoner(graph.n_states, 1, WIDTH, LAYERS, HEADS).to(device)
    model.support.set(torch.from_numpy(graph.kernel() > 0))
    draw = torch.Generator(device).manual_seed(0)
    walkers, length, batch, steps = settings.size(4096, 64), settings.size(256, 8), settings.size(256, 8), 8
    many, some = (torch.randint(graph.n_states, (w,), generator=draw, device=device) for w in (walkers, batch))
    works = [
        Work(
            "walk of the table", lambda: generate(model, many, length, draw), walkers * length, True, "table included"
        ),
        Work("uncached decoding", lambda: decode(model, some, steps, draw), batch * steps, note=f"batch {batch}"),
    ]
    setup = f"N = {graph.n_states}, window 1, width {WIDTH}, {LAYERS} layers; {walkers:,} walkers of {length} steps"
    row = Benchmark("rollout", "rollout_table", setup, "steps", race(works, settings))
    row.marks = [Mark("≥ 1,000 x uncached decoding", row.ratio("walk of the table", "uncached decoding"), 1000.0)]
    row.notes = [
        "Some of it makes the table (one forward pass over all states, its successors, Walker's tables), the rest walks it; a longer "
        "rollout pays the table once."
    ]
    return row


def cached(settings: Settings) -> Benchmark:
    """A window of 64."""
    device = settings.device
    graph, length, batch = default_graph(settings.quick), settings.size(64, 8), settings.size(256, 8)
    model = TransformerReasoner(graph.n_states, length, WIDTH, LAYERS, HEADS).to(device)
    draw = torch.Generator(device).manual_seed(0)
    start = torch.randint(graph.n_states, (batch,), generator=draw, device=device)
    works = [
        Work("with key-value cache", lambda: generate(model, start, length, draw), batch * length, True),
        Work("uncached, our model", lambda: decode(model, start, length, draw), batch * length),
    ]
    skipped: list[str] = []
    if module := load_nanogpt(settings, skipped):
        with torch.random.fork_rng():
            gpt = nanogpt(module, graph.n_states, length, device).eval()
        works.append(Work("nanoGPT's generate", lambda: gpt.generate(start[:, None], length), batch * length))
    setup = f"N = {graph.n_states}, window {length}, width {WIDTH}, {LAYERS} layers; batch {batch}, {length} steps"
    row = Benchmark("rollout", "rollout_cached", setup, "tokens", race(works, settings), skipped=skipped)
    name = "nanoGPT's generate" if row.entry("nanoGPT's generate") else "uncached, our model"
    row.marks = [Mark(f"≥ 8 x {name}", row.ratio("with key-value cache", name), 8.0)]
    return row


ROWS = {"rollout_table": table_walk, "rollout_cached": cached}

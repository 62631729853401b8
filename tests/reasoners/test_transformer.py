"""The transformer against a forward pass written with loops; its cache, its causality, its rotary positions."""

import math

import numpy as np
import pytest
import torch

from mcot_torch.reasoners import TransformerReasoner
from mcot_torch.reasoners.transformer import Cache, _rotate
from mcot_torch.reasoners.walks import ContextWalker


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make(window, n=9, seed=0, **sizes):
    """Every parameter random: as built, each block is the identity."""
    model = TransformerReasoner(n, window, **{"width": 16, "n_layers": 2, "n_heads": 2, **sizes})
    draw = seeded(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.4, generator=draw)
    return model


# ---- by hand --------------------------------------------------------------------------------------------------------


def rms(x):
    return x / math.sqrt((x * x).mean() + np.finfo(np.float32).eps)


def gelu(x):
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])


def rotated(x, position):
    """Plane i is (x_i, x_{i+d/2}), turned by position · 10000^(-i/(d/2 - 1))."""
    half = len(x) // 2
    y = np.empty_like(x)
    for i in range(half):
        frequency = 10_000.0 ** -(i / (half - 1) if half > 1 else 0.0)
        c, s = math.cos(position * frequency), math.sin(position * frequency)
        y[i] = x[i] * c - x[i + half] * s
        y[i + half] = x[i] * s + x[i + half] * c
    return y


def forward_by_hand(model, path):
    """(T, N) logits of one path, float64, a state and a head at a time."""
    weights = {key: value.double().numpy() for key, value in model.state_dict().items() if value.is_floating_point()}
    width, heads = model.width, model.n_heads
    d = width // heads
    stream = [rms(weights["embedding.weight"][s]) for s in path]
    for layer in range(model.n_layers):
        block = {k.split(".", 2)[2]: v for k, v in weights.items() if k.startswith(f"blocks.{layer}.")}
        projected = [block["qkv.weight"] @ rms(x) for x in stream]
        new = []
        for t in range(len(path)):
            mixed = []
            for h in range(heads):
                here = slice(h * d, (h + 1) * d)
                q = rotated(rms(projected[t][:width][here]), t)
                scores, values = [], []
                for s in range(t + 1):
                    k = rotated(rms(projected[s][width : 2 * width][here]), s)
                    scores.append(float(q @ k) / math.sqrt(d))
                    values.append(projected[s][2 * width :][here])
                weight = np.exp(np.array(scores) - max(scores))
                mixed.append((weight / weight.sum()) @ np.array(values))
            x = stream[t] + block["out.weight"] @ np.concatenate(mixed)
            new.append(x + block["down.weight"] @ gelu(block["up.weight"] @ rms(x)))
        stream = new
    head = weights["embedding.weight" if model.tied else "head.weight"]
    return np.array([head @ rms(x) for x in stream])


@pytest.mark.parametrize("sizes", [{}, {"n_heads": 1}, {"n_heads": 4, "n_layers": 3}, {"tied": True}])
@pytest.mark.parametrize("window", [1, 6])
def test_forward_against_loops(window, sizes):
    model = make(window, **sizes)
    for path in torch.randint(9, (3, window), generator=seeded(1)):
        with torch.no_grad():
            logits = model(path[None])[0]
        np.testing.assert_allclose(logits.numpy(), forward_by_hand(model, path.tolist()), rtol=1e-4, atol=1e-4)


def test_blocks_start_as_the_identity():
    model = TransformerReasoner(9, 4, 16, 2, 2)
    assert (model(torch.randint(9, (2, 4), generator=seeded(2))) == 0).all()
    tied = TransformerReasoner(9, 4, 16, 2, 2, tied=True)
    states = torch.randint(9, (2, 4), generator=seeded(2))
    e = tied.embedding.weight
    expected = torch.nn.functional.rms_norm(torch.nn.functional.rms_norm(e[states], (16,)), (16,)) @ e.T
    np.testing.assert_allclose(tied(states).detach(), expected.detach(), atol=1e-6)


# ---- properties -----------------------------------------------------------------------------------------------------


def test_later_states_do_not_change_earlier_logits():
    model = make(8)
    path = torch.randint(9, (1, 8), generator=seeded(3))
    before = model(path)
    for t in range(8):
        changed = path.clone()
        changed[0, t] = (path[0, t] + 1) % 9
        after = model(changed)
        np.testing.assert_allclose(after[0, :t].detach(), before[0, :t].detach(), atol=1e-6)
        difference = (after - before)[0, t:].abs().amax(-1)
        assert (difference > 1e-3).all()  # and every later one does change: the whole context is read


def test_order_of_the_context_matters():
    model = make(3)
    a, b = model(torch.tensor([[1, 2, 3]]))[0, -1], model(torch.tensor([[2, 1, 3]]))[0, -1]
    assert float((a - b).abs().max()) > 1e-3


def test_window_1_shortcut_is_attention_over_one_key():
    model = make(1)
    states = torch.arange(9)[:, None]
    through_cache = model(states, Cache(model, 9))  # a cache takes the full path
    np.testing.assert_allclose(model(states).detach(), through_cache.detach(), atol=1e-6)
    longer = make(4)  # and the first position of a longer context sees the same
    np.testing.assert_allclose(longer(states).detach(), longer(states.expand(-1, 3))[:, :1].detach(), atol=1e-6)


def test_rotary_positions_are_relative():
    model = make(12, width=32)
    q, k = torch.randn(2, 1, 1, 16, generator=seeded(4))

    def score(i, j):
        turned = [_rotate(x[None], model.cos[[p]], model.sin[[p]]).flatten() for x, p in ((q, i), (k, j))]
        return float(turned[0] @ turned[1])

    for shift in (0, 1, 5):
        assert score(6, 2) == pytest.approx(score(6 + shift, 2 + shift), abs=1e-5)
    assert abs(score(6, 2) - score(6, 3)) > 1e-2
    assert score(5, 5) == pytest.approx(float((q * k).sum()), abs=1e-5)
    turned = _rotate(q[None], model.cos[[7]], model.sin[[7]])
    assert float(turned.norm()) == pytest.approx(float(q.norm()), rel=1e-6)


# ---- cached decoding ------------------------------------------------------------------------------------------------


class Recording(ContextWalker):
    """Notes each context with the logits that the cache gave for it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.log = []

    def _logits(self, successors):
        logits = super()._logits(successors)
        self.log.append((self._context.clone(), logits.clone()))
        return logits


@pytest.mark.parametrize("window", [2, 3, 4, 7, 8])
def test_cached_logits_equal_uncached_ones(window):
    model = make(window)
    start = torch.arange(5)
    walker = Recording(model, start, seeded(5))
    n_steps = 4 * window
    entered = torch.cat([walker.advance(n) for n in (1, window, n_steps - window - 1)], dim=1)
    path = torch.cat([start[:, None], entered], dim=1)
    assert len(walker.log) == n_steps
    length = 1  # of the context: grows to the window, then the older half is forgotten
    for t, (context, logits) in enumerate(walker.log):
        assert torch.equal(context, path[:, t + 1 - length : t + 1])
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(context)[:, -1], atol=1e-5)
        length = length + 1 if length < window else window // 2 + 1
    assert {c.shape[1] for c, _ in walker.log} == set(range(1, window + 1))


def test_walkers_dropped_on_the_way_leave_the_others_alone():
    model = make(4)
    walker = Recording(model, torch.arange(9), seeded(6))
    walker.advance(2)
    for t in range(6):
        alive = torch.ones(len(walker.states), dtype=torch.bool)
        alive[t % len(alive)] = False
        before = walker._context[alive].clone()
        walker.keep(alive)
        assert torch.equal(walker._context, before)
        walker.advance(1)
    for context, logits in walker.log:
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(context)[:, -1], atol=1e-5)
    assert len(walker.states) == 3


@pytest.mark.parametrize("steps_before", [0, 1, 2, 3, 4, 5])
def test_replaced_states_are_what_the_model_reads(steps_before):
    model = make(4)
    start = torch.arange(3)
    walker = Recording(model, start, seeded(7))
    walker.advance(steps_before)
    context = walker._context.clone()
    there = torch.tensor([8, 7, 6])
    walker.replace(there)
    assert start.tolist() == [0, 1, 2]  # the caller's tensor is not written to
    assert torch.equal(walker.states, there)
    walker.advance(3)
    seen, _ = walker.log[steps_before]
    assert torch.equal(seen, torch.cat([context[:, :-1], there[:, None]], dim=1))
    for context, logits in walker.log:
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(context)[:, -1], atol=1e-5)


def test_full_cache_and_long_extension_are_refused():
    model = make(3)
    cache = Cache(model, 1)
    model(torch.tensor([[1, 2]]), cache)
    with pytest.raises(ValueError, match="one state at a time"):
        make(5)(torch.tensor([[3, 4]]), cache)
    model(torch.tensor([[3]]), cache)
    with pytest.raises(ValueError, match="4 states do not fit the window of 3"):
        model(torch.tensor([[4]]), cache)

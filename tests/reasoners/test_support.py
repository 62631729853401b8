"""The support: its mask, its successor lists, and when the lists are made again; decoders and shortcuts of subclasses."""

import copy

import pytest
import torch

from mcot_torch.reasoners import (
    LinearReasoner,
    Reasoner,
    Student,
    Support,
    TransformerReasoner,
    generate,
    load_reasoner,
    save_reasoner,
    sparse_kernel,
    step_table,
)
from mcot_torch.reasoners.decoding import UncachedDecoder
from mcot_torch.reasoners.reasoner import require_window_1
from mcot_torch.reasoners.transformer import CachedDecoder

N = 48  # three supported steps a state are listed: 3 · 16 = 48


def ring(*jumps):
    """(N, N) bool: x -> x + jump for each jump."""
    mask = torch.zeros(N, N, dtype=torch.bool)
    for jump in jumps:
        mask[torch.arange(N), (torch.arange(N) + jump) % N] = True
    return mask


def listed(support):
    """The successor lists of the mask, by a loop."""
    return [row.nonzero()[:, 0].tolist() for row in support.mask]


@pytest.fixture
def support():
    support = Support(N)
    support.set(ring(0, 1, 5))
    assert support.successors.tolist() == listed(support)
    return support


def test_a_fresh_support_is_complete_and_has_no_lists():
    support = Support(N)
    assert support.complete
    assert support.successors is None
    assert support.width == N
    assert support.successors_of(torch.arange(3)) is None
    assert support.allowed(torch.arange(3)) is None
    after = torch.tensor([4, 7])
    assert torch.equal(support.places(torch.tensor([0, 1]), after), after)


def test_set_makes_new_lists(support):
    assert not support.complete
    support.set(ring(2, 3).to(torch.uint8))  # of any dtype
    assert support.mask.dtype == torch.bool
    assert support.width == 2
    assert support.successors.tolist() == listed(support)
    with pytest.raises(ValueError, match=r"the mask has shape \(48,\); the support has \(48, 48\)"):
        support.set(torch.ones(N))


def test_shorter_rows_are_filled_and_told_apart(support):
    mask = ring(0, 1, 5)
    mask[7, 8] = False
    support.set(mask)
    assert support.width == 3
    allowed = support.allowed(torch.arange(N))
    assert allowed.sum(1).tolist() == [2 if x == 7 else 3 for x in range(N)]
    assert sorted(support.successors[7][allowed[7]].tolist()) == [7, 12]
    places = support.places(torch.tensor([7, 7, 46]), torch.tensor([7, 12, 3]))
    assert support.successors[torch.tensor([7, 7, 46]), places].tolist() == [7, 12, 3]


def test_cut_makes_new_lists(support):
    kernel = ring(1).double() * 0.7 + ring(0, 5).double() * 0.15 + ring(9).double() * 0.9
    assert support.cut(kernel, 0.2) == 2 * N  # a row keeps its likeliest step, even one that was cut before
    assert support.successors.tolist() == listed(support)


def test_a_copy_is_independent(support):
    other = copy.deepcopy(support)
    other.set(ring(4))
    assert support.width == 3
    assert other.successors.tolist() == listed(other)
    again = copy.deepcopy(support)
    assert torch.equal(again.successors, support.successors)
    support.set(ring(6))
    assert again.width == 3


def test_loading_makes_new_lists():
    first, second = LinearReasoner(N), LinearReasoner(N)
    first.support.set(ring(1, 2))
    assert second.support.successors is None
    second.load_state_dict(first.state_dict())
    assert second.support.successors.tolist() == listed(first.support)


def test_moving_makes_new_lists(support):
    before = support.successors
    support.to(torch.float64)
    assert support.successors is not before
    assert torch.equal(support.successors, before)
    assert support.mask.dtype == torch.bool


def test_lists_made_in_inference_mode_serve_training():
    model = TransformerReasoner(N, 1, 8, 1, 2)
    model.support.set(ring(0, 1))
    with torch.inference_mode():
        assert model.support.width == 2
    model.successor_log_probs(torch.arange(N)[:, None]).sum().backward()


# ---- state dicts ----------------------------------------------------------------------------------------------------


def test_the_mask_is_saved_as_support(tmp_path):
    model = Student(LinearReasoner(4), 9)
    state = model.state_dict()
    assert sorted(state) == ["beta", "labels", "model.logits", "model.support", "representatives", "support"]
    assert state["support"].dtype == torch.bool
    state["support"] = ~torch.eye(4, dtype=torch.bool)
    state["model.support"] = torch.eye(4, dtype=torch.bool)
    kept = dict(state)
    model.load_state_dict(state)
    assert dict(state) == kept  # loading does not change the caller's dictionary
    assert torch.equal(model.support.mask, ~torch.eye(4, dtype=torch.bool))
    assert torch.equal(model.model.support.mask, torch.eye(4, dtype=torch.bool))
    alone = Support(3)
    alone.set(torch.eye(3))
    other = Support(3)
    other.load_state_dict(alone.state_dict())
    assert torch.equal(other.mask, alone.mask)
    table = LinearReasoner(4)
    table.support.set(torch.eye(4))
    save_reasoner(table, tmp_path)
    assert torch.equal(load_reasoner(tmp_path).support.mask, table.support.mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"support": None}, r"Missing key\(s\).*support"),
        ({"support": torch.ones(5, 5)}, "size mismatch for support"),
        ({"model.support": None}, r"Missing key\(s\).*model\.support"),
        ({"model.support": torch.ones(2)}, r"size mismatch for model\.support"),
        ({"other": torch.ones(2)}, r"Unexpected key\(s\).*other"),
        ({"support.other": torch.ones(2)}, r"Unexpected key\(s\).*support\.other"),
    ],
)
def test_state_dicts_that_do_not_fit(change, message):
    model = Student(LinearReasoner(4), 9)
    state = {key: x for key, x in {**model.state_dict(), **change}.items() if x is not None}
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)


# ---- subclasses -----------------------------------------------------------------------------------------------------


class Plain(Reasoner):
    """`forward` and nothing else."""

    def __init__(self, n_states, window=1):
        super().__init__(n_states, window)
        self.table = torch.nn.Embedding(n_states, n_states, dtype=torch.float64)

    def forward(self, states):
        return self.table(states).cumsum(1)


class Counting(Plain):
    """With a shortcut of its own for the same `forward`."""

    calls = 0

    def gather_logits(self, states, after):
        self.calls += 1
        return super().gather_logits(states, after)


class Tripled(Counting):
    """Another `forward`: the inherited shortcut is not its own."""

    def forward(self, states):
        return 3 * super().forward(states)


class Both(Tripled):
    """Another `forward` with its shortcut."""

    def forward(self, states):
        return super().forward(states) + 1

    def gather_logits(self, states, after):
        return super().gather_logits(states, after) + 0


class Cold(TransformerReasoner):
    def forward(self, states, cache=None):
        return 5 * super().forward(states, cache)


class Renamed(TransformerReasoner):
    """The same `forward`, so that the shortcuts stay."""


@pytest.mark.parametrize(("kind", "shortcut"), [(Plain, False), (Counting, True), (Tripled, False), (Both, True)])
def test_shortcuts_go_with_forward(kind, shortcut):
    model = kind(5)
    states, after = torch.tensor([[2], [4]]), torch.tensor([[[1, 3]], [[0, 0]]])
    torch.testing.assert_close(model.logits_of(states, after), model(states).gather(-1, after))
    assert getattr(model, "calls", 0) == int(shortcut)


def test_decoders_go_with_forward():
    assert isinstance(TransformerReasoner(5, 3).decoder(), CachedDecoder)
    assert isinstance(Renamed(5, 3).decoder(), CachedDecoder)
    for model in (Cold(5, 3), Plain(5, 3), LinearReasoner(5)):
        assert isinstance(model.decoder(), UncachedDecoder)


@pytest.mark.parametrize("window", [1, 3])
def test_forward_is_all_that_walks_need(window):
    model = Plain(N, window)
    model.support.set(ring(1))
    path = generate(model, torch.tensor([0, 40]), 9, torch.Generator().manual_seed(0))
    assert path.tolist() == [[(x + t) % N for t in range(10)] for x in (0, 40)]
    if window == 1:
        assert (sparse_kernel(model).toarray() == ring(1).numpy()).all()
        assert step_table(model).successors[:, 0].tolist() == [(x + 1) % N for x in range(N)]
    else:
        for ask in (sparse_kernel, step_table, lambda m: require_window_1(m, "this")):
            with pytest.raises(ValueError, match="needs window 1, and this reasoner has window 3"):
                ask(model)

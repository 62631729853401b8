"""Attempts and transition counts: where an attempt ends, what belongs to it, and that both forms give one gradient."""

import itertools
import math

import pytest
import torch

from mcot_torch.algorithms.ppo import surrogate_of_rollout
from mcot_torch.algorithms.pretrain import negative_log_likelihood
from mcot_torch.algorithms.rollouts import one_step_rollout, sample_paths, transition_counts
from mcot_torch.reasoners import LinearReasoner, TransformerReasoner
from mcot_torch.sampling.attempts import Attempts, End, TransitionCounts

GOAL = torch.tensor([False, False, False, True, True])
PATHS = torch.tensor(
    [
        [0, 1, 2, 3],  # arrives with the last step
        [0, 3, 4, 3],  # with the first one, and stands in goals ever after
        [0, 1, 4, 0],  # with the second one
        [3, 0, 1, 2],  # never: the start does not count
        [4, 4, 0, 0],  # begins in a goal and enters it again
    ]
)
T, F = True, False


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# ---- attempts -------------------------------------------------------------------------------------------------------


def test_attempts_end_at_the_first_goal_after_the_start():
    attempts = Attempts.until(PATHS, GOAL)
    assert attempts.lengths.tolist() == [3, 1, 2, 3, 1]
    assert attempts.ends.tolist() == [End.GOAL, End.GOAL, End.GOAL, End.CAP, End.GOAL]
    assert attempts.final.tolist() == [3, 3, 4, 2, 4]
    assert attempts.valid.tolist() == [[T, T, T], [T, F, F], [T, T, F], [T, T, T], [T, F, F]]
    assert attempts.done.tolist() == [[F, F, T], [T, F, F], [F, T, F], [F, F, F], [T, F, F]]
    assert torch.equal(attempts.states, PATHS[:, :3])
    assert torch.equal(attempts.after, PATHS[:, 1:])
    assert (attempts.rewards, attempts.log_probs, attempts.problem, attempts.group) == (None,) * 4
    assert attempts.lengths.dtype == attempts.ends.dtype == torch.int64


@pytest.mark.parametrize("goal", [None, torch.zeros(5, dtype=torch.bool)], ids=["no goal", "an empty goal"])
def test_attempts_without_a_goal_are_truncated(goal):
    attempts = Attempts.until(PATHS, goal)
    assert attempts.lengths.tolist() == [3] * 5
    assert attempts.ends.tolist() == [End.CAP] * 5
    assert attempts.final.tolist() == [3, 3, 0, 2, 0]
    assert attempts.valid.all()
    assert not attempts.done.any()  # truncation is no termination


def test_the_last_step_is_done_only_if_it_arrives():
    """Two attempts of full length: one arrives with its last step, the other is cut off there."""
    attempts = Attempts.until(torch.tensor([[0, 1, 3], [0, 1, 2]]), GOAL)
    assert attempts.lengths.tolist() == [2, 2]
    assert attempts.done.tolist() == [[F, T], [F, F]]


def test_paths_without_a_step():
    attempts = Attempts.until(torch.tensor([[3], [0]]))
    assert attempts.lengths.tolist() == [0, 0]
    assert attempts.final.tolist() == [3, 0]
    assert attempts.valid.shape == attempts.done.shape == (2, 0)


# ---- tabulate -------------------------------------------------------------------------------------------------------


def table(n, kernel=None):
    """A table over n states, cut to the kernel's support."""
    model = LinearReasoner(n)
    if kernel is not None:
        model.support.set(kernel)
    return model


def test_attempts_tabulated_over_all_states():
    states, counts = Attempts.until(torch.tensor([[0, 1, 2], [2, 2, 0]])).tabulate(table(3).support, torch.float32)
    assert states.tolist() == [[0, 1], [2, 2]]
    assert counts.tolist() == [[[0, 1, 0], [0, 0, 1]], [[0, 0, 1], [1, 0, 0]]]
    assert counts.dtype == torch.float32


def test_steps_behind_the_goal_are_not_tabulated():
    states, counts = Attempts.until(PATHS[:3], GOAL).tabulate(table(5).support, torch.float64)
    assert torch.equal(states, PATHS[:3, :3])
    assert counts.nonzero().tolist() == [[0, 0, 1], [0, 1, 2], [0, 2, 3], [1, 0, 3], [2, 0, 1], [2, 1, 4]]
    assert float(counts.sum()) == 3 + 1 + 2
    assert counts.dtype == torch.float64


RING = torch.eye(4).roll(1, 1).bool() | torch.eye(4).bool()  # stay or go on; lists 0: 0 1, 1: 1 2, 2: 2 3, 3: 0 3


def test_attempts_tabulated_over_lists(list_when_shorter):
    list_when_shorter(1)
    model = table(4, RING)
    assert model.support.successors.tolist() == [[0, 1], [1, 2], [2, 3], [0, 3]]
    paths = torch.tensor([[0, 1, 1, 2], [3, 0, 0, 1]])
    states, counts = Attempts.until(paths, torch.tensor([F, F, T, F])).tabulate(model.support, torch.float64)
    assert torch.equal(states, paths[:, :3])
    assert counts.tolist() == [[[0, 1], [1, 0], [0, 1]], [[1, 0], [1, 0], [0, 1]]]


def test_counts_tabulated_over_lists_and_over_all_states(list_when_shorter):
    """Lists whose padding names a step twice: its counts are added up."""
    after = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 3]])
    sampled = TransitionCounts(after, torch.tensor([[5, 6], [7, 8], [9, 1], [2, 3]], dtype=torch.float64))
    states, counts = sampled.tabulate(table(4).support, torch.float64)
    assert states.tolist() == [[0], [1], [2], [3]]
    assert counts.tolist() == [[[5, 6, 0, 0]], [[0, 7, 8, 0]], [[0, 0, 9, 1]], [[0, 0, 0, 5]]]
    list_when_shorter(1)
    sampled = TransitionCounts(table(4, RING).support.successors, sampled.counts)
    states, counts = sampled.tabulate(table(4, RING).support, torch.float32)
    assert states.tolist() == [[0], [1], [2], [3]]
    assert counts.tolist() == [[[5, 6]], [[7, 8]], [[9, 1]], [[2, 3]]]
    assert counts.dtype == torch.float32


# ---- both forms -----------------------------------------------------------------------------------------------------

N = 7


def model_of(kind, seed=1):
    """Random weights in float64; each state may take four steps."""
    model = LinearReasoner(N) if kind == "linear" else TransformerReasoner(N, 1, 16, 1, 2).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.7, generator=seeded(seed))
    states = torch.arange(N)
    model.support.set((states - states[:, None]) % N < 4)
    return model


def folded(paths, support):
    """Transition counts of window-1 paths, by a loop."""
    successors = torch.arange(N).expand(N, -1) if support.successors is None else support.successors
    counts = torch.zeros(successors.shape, dtype=torch.float64)
    for path in paths.tolist():
        for x, y in itertools.pairwise(path):
            counts[x, successors[x].tolist().index(y)] += 1
    return TransitionCounts(successors, counts)


@pytest.mark.parametrize("short", [math.inf, 1], ids=["whole rows", "lists"])
@pytest.mark.parametrize("kind", ["linear", "transformer"])
@pytest.mark.parametrize("loss", ["surrogate", "likelihood"])
def test_both_forms_of_the_same_steps_give_the_same_gradient(kind, short, loss, list_when_shorter):
    """Samples of the one form are folded to the other; the policy has moved on, so that part of the ratios is clipped."""
    list_when_shorter(short)
    policy, reference = model_of(kind), model_of(kind, 2)
    walks = sample_paths(policy, 60, 13, seeded(3))
    steps = torch.cat([walks[:, t : t + 2] for t in range(13)])  # each a path of one step: all that a window of 1 reads
    forms = [Attempts.until(steps), folded(steps, policy.support)]
    reward, weight = torch.randn(N, N, generator=seeded(5), dtype=torch.float64), torch.linspace(0.1, 0.5, N).double()
    with torch.no_grad():
        rollouts = [one_step_rollout(policy, reference, form, reward, lambda s, _: weight[s]) for form in forms]
        old = [policy.successor_log_probs(rollout.states) for rollout in rollouts]
        for p in policy.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=seeded(6), dtype=torch.float64))
    assert [rollout.n_samples for rollout in rollouts] == [60 * 13] * 2
    for name in ("mean_reward", "explained_variance"):
        assert getattr(rollouts[0], name) == pytest.approx(getattr(rollouts[1], name), rel=1e-12)
    gradients = []
    for form, rollout, before in zip(forms, rollouts, old, strict=True):
        states, counts = form.tabulate(policy.support, torch.float64)
        log_p = policy.successor_log_probs(states)
        if loss == "surrogate":
            value = surrogate_of_rollout(log_p, before, rollout, 0.2)
            ratio = (log_p - before)[rollout.counts > 0].exp()
            assert bool(((ratio - 1).abs() > 0.2).any())
            assert bool(((ratio - 1).abs() < 0.2).any())
        else:
            value = negative_log_likelihood(log_p, counts)
        gradients.append(torch.autograd.grad(value, list(policy.parameters())))
    assert max(float(g.abs().max()) for g in gradients[0]) > 1e-2
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_counts_of_a_longer_window_are_those_of_its_paths():
    """Drawn from the same generator, `transition_counts` folds the paths that `sample_paths` gives."""
    model = TransformerReasoner(N, 3, 16, 1, 2)
    model.support.set(model_of("linear").support.mask)
    paths = sample_paths(model, 20, 9, seeded(7))
    sampled, expected = transition_counts(model, 20, 9, seeded(7)), folded(paths, model.support)
    assert torch.equal(sampled.successors, expected.successors)
    assert torch.equal(sampled.counts, expected.counts)
    assert float(sampled.counts.sum()) == 180

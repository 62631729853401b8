"""One torch thread for all tests, small graphs and reasoners that several files use, and what watches training.

The fixtures of the second half are the only places where tests reach behind the public calls: where a name moves, it is
changed here. `descents` needs torch's hooks alone.
"""

from dataclasses import dataclass

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from mcot_torch.experiments import support
from mcot_torch.graphs.families.clustered import clustered_graph

torch.set_num_threads(1)


@pytest.fixture
def small_graph():
    """K = 4 clusters of M = 8 states on the circulant, ε = .02."""
    return clustered_graph(4, 8, 0.02, seed=3)


@pytest.fixture
def exact_reasoner():
    """graph -> the table whose kernel is p^ε, cut to its support."""
    return support.exact_reasoner


# ---- what watches training --------------------------------------------------------------------------------------


@dataclass
class Descent:
    """One optimiser step.

    Attributes:
        loss: what was descended, the sum of its blocks.
        parameters: of the optimiser, the tensors themselves.
        gradients: of that loss, as the optimiser took them (clipped, where they are clipped); None as zeros.
    """

    loss: float
    parameters: list
    gradients: list


class Descents(list):
    """The optimiser steps of a test in order; `then(number, parameters)` is called right after each and may move them."""

    @staticmethod
    def then(number, parameters):
        pass


@pytest.fixture
def descents(monkeypatch):
    """Watches every optimiser step, whoever takes it: torch's own hooks, and `Tensor.backward` for the losses."""
    steps, losses, backward = Descents(), [], torch.Tensor.backward

    def record(self, *arguments, **named):
        losses.append(float(self.detach()))
        return backward(self, *arguments, **named)

    def before(optimizer, arguments, named):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters]
        steps.append(Descent(sum(losses), parameters, gradients))
        losses.clear()

    def after(optimizer, arguments, named):
        with torch.no_grad():
            steps.then(len(steps) - 1, steps[-1].parameters)

    monkeypatch.setattr(torch.Tensor, "backward", record)
    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    yield steps
    for hook in hooks:
        hook.remove()


class Rollouts(list):
    """The rollouts of a test in order; `change(number, rollout)` gives the one that PPO gets instead."""

    @staticmethod
    def change(number, rollout):
        return rollout


@pytest.fixture
def rollouts(monkeypatch):
    """What PPO samples in each round."""
    from mcot_torch.algorithms.rollouts import RolloutSampler as Home

    seen, sample = Rollouts(), Home.sample

    def watched(self, draw):
        rollout = sample(self, draw)
        seen.append(seen.change(len(seen), rollout))
        return seen[-1]

    monkeypatch.setattr(Home, "sample", watched)
    return seen


@pytest.fixture
def surrogates(monkeypatch):
    """(log p, log p of the sampling policy, rollout) of each call of PPO's objective, without graphs."""
    import mcot_torch.algorithms.ppo as home

    calls, function = [], home.surrogate_of_rollout

    def watched(log_p, old_log_p, rollout, clip):
        calls.append((log_p.detach(), old_log_p.detach(), rollout))
        return function(log_p, old_log_p, rollout, clip)

    monkeypatch.setattr(home, "surrogate_of_rollout", watched)
    return calls


@pytest.fixture
def hold_at_once(monkeypatch):
    """cells -> from now on a CPU holds so many predictions at once: rows are taken in blocks."""
    from mcot_torch.system import blocks as home

    return lambda cells: monkeypatch.setattr(home, "_CPU_PREDICTIONS", cells)


@pytest.fixture
def list_when_shorter(monkeypatch):
    """times -> supported steps are listed where they are so many times fewer than the states; inf lists none."""
    from mcot_torch.reasoners import support as home

    return lambda times: monkeypatch.setattr(home, "_SHORT", times)


@pytest.fixture
def on_log(monkeypatch):
    """call -> it is called with (stage, line) right after a run folder logs a line."""
    from mcot_torch.runs.folder import RunFolder as Home

    log = Home.log

    def watch(call):
        monkeypatch.setattr(Home, "log", lambda self, name, line: (log(self, name, line), call(name, line))[0])

    return watch


class UnwatchedSteps:
    """Steps of pretraining as a GPU takes them: their numbers are noted, and looked at only when it logs or saves.

    No public call shows this on a CPU, which looks at every step.
    """

    def __init__(self, context):
        from mcot_torch.reasoners import LinearReasoner
        from mcot_torch.training.loop import TrainingLoop

        self.loop = TrainingLoop("pretrain", 100, context, model=LinearReasoner(32))

    def note(self, step, loss, norm):
        """A step that had this loss (float32) and this norm of its gradient."""
        self.loop.step = step
        self.loop._note_non_finite(torch.tensor(loss), torch.tensor(norm, dtype=torch.float64))

    def look(self):
        """What is done before a line is logged."""
        self.loop.check_finite()

    def save(self):
        """Save the state."""
        self.loop._save()


@pytest.fixture
def unwatched_steps():
    """context -> `UnwatchedSteps`."""
    return UnwatchedSteps

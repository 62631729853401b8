"""What `import mcot_torch` offers beside the command line: evaluate, own reasoners and their files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mcot_torch as mt
from mcot_torch.errors import InputError
from mcot_torch.reasoners import generate


@pytest.fixture
def task(small_graph):
    return mt.build_task(mt.TaskConfig(), small_graph)


def test_every_name_of_the_package_is_there():
    for name in mt.__all__:
        assert getattr(mt, name) is not None
    assert {"MetastableGraph", "pretrain", "search", "ppo", "distill", "evaluate"} <= set(mt.__all__)


def test_evaluate_holds_models_against_the_chains_they_should_be(small_graph, exact_reasoner, task):
    raised = small_graph.with_epsilon(0.1)
    models = {"exact": exact_reasoner(small_graph), "raised": exact_reasoner(raised)}
    rows = mt.evaluate(models, small_graph, task, truths={"raised": raised}, walks=400)
    assert list(rows) == ["base", "exact", "raised"]
    slow, fast = (mt.hitting_time(g.kernel(), task.start, task.target) for g in (small_graph, raised))
    for name, expected in {"base": slow, "exact": slow, "raised": fast}.items():
        assert rows[name]["hitting_time_exact"] == pytest.approx(expected, rel=1e-9)
        assert rows[name]["speedup"] == pytest.approx(slow / expected, rel=1e-9)
        assert rows[name]["row_tv_max"] < 1e-12
        sampled = rows[name]["hitting_time_sampled"]
        spread = (sampled["high"] - sampled["low"]) / (2 * 1.96)
        assert abs(sampled["mean"] - sampled["restricted_mean_exact"]) < 5 * spread
    against_base = mt.evaluate({"raised": models["raised"]}, small_graph, task, walks=2)["raised"]
    # a source has one hard step (d_out = 1): its rows differ by 0.1 - 0.02 in total variation
    assert against_base["row_tv_max"] == pytest.approx(0.08, rel=1e-9)


def test_evaluate_of_a_student(small_graph, task):
    """The exact student of a chain of clusters: hop times of its own kernel, and no speed-up of 1."""
    kernel = torch.from_numpy(mt.pair_kernel(small_graph.to_scipy(), small_graph.clusters, 4))
    table = mt.LinearReasoner(4)
    table.logits.data = kernel.log().clamp_min(-700)
    student = mt.Student(table, 32)
    student.labels.copy_(torch.from_numpy(small_graph.clusters))
    student.representatives.copy_(torch.from_numpy(small_graph.entries))
    student.support.set(kernel > 0)
    row = mt.evaluate({"student": student}, small_graph, task, walks=50)["student"]
    assert row["unit"] == "hops"
    start = np.bincount(small_graph.clusters, task.start)
    expected = mt.hitting_time(kernel.numpy(), start, np.unique(small_graph.clusters[task.target]))
    assert row["hitting_time_exact"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (["base"], {}, "a model is named base"),
        (["a"], {"truths": {"b": None}}, "truths names b, and there is no such model; choose from a"),
        (["a"], {"walks": 1}, "walks is 1; it must be at least 2"),
    ],
)
def test_evaluate_refuses(small_graph, exact_reasoner, task, names, more, message):
    with pytest.raises(InputError, match=message):
        mt.evaluate(dict.fromkeys(names, exact_reasoner(small_graph)), small_graph, task, **more)


def test_evaluate_refuses_a_model_of_another_size(small_graph, task):
    with pytest.raises(InputError, match="small is a model of 31 states, and the graph has 32"):
        mt.evaluate({"small": mt.LinearReasoner(31)}, small_graph, task)


# ---- own reasoners --------------------------------------------------------------------------------------------------


class TwoTables(mt.Reasoner):
    """The last two states add their votes; a class with a constructor argument of its own."""

    def __init__(self, n_states: int, rank: int, window: int = 2) -> None:
        super().__init__(n_states, window)
        self.rank = rank
        self.now, self.before = (nn.Embedding(n_states, rank) for _ in range(2))
        self.out = nn.Linear(rank, n_states)

    def forward(self, states):
        votes = self.now(states)
        votes[:, 1:] += self.before(states[:, :-1])
        return self.out(votes)


def test_own_reasoner_needs_forward_only_and_comes_back_from_its_files(tmp_path):
    model = TwoTables(7, rank=3)
    mt.save_reasoner(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    states = torch.tensor([[0, 6], [5, 1]])
    back = mt.load_reasoner(tmp_path)
    assert type(back) is TwoTables
    assert torch.equal(back(states), model(states))
    walk = generate(model, torch.tensor([0, 1, 2]), 5, torch.Generator().manual_seed(0))
    assert walk.shape == (3, 6)


def test_a_reasoner_whose_class_is_not_imported(tmp_path):
    mt.save_reasoner(TwoTables(7, rank=3), tmp_path)
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace("TwoTables", "Elsewhere"))
    with pytest.raises(InputError, match="no class is known for the kind 'Elsewhere'; import the module"):
        mt.load_reasoner(tmp_path)


def test_a_reasoner_that_forgets_its_arguments_writes_nothing(tmp_path):
    class Forgets(mt.Reasoner):
        def __init__(self, n_states: int, hidden: int) -> None:
            super().__init__(n_states)

        def forward(self, states):
            return torch.zeros(*states.shape, self.n_states)

    with pytest.raises(InputError, match="Forgets does not keep its constructor argument hidden"):
        mt.save_reasoner(Forgets(3, hidden=2), tmp_path)
    assert not list(tmp_path.iterdir())

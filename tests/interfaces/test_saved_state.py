"""What stands in state.safetensors, which a killed stage goes on from, is an interface: its names, shapes and order.

The optimiser numbers its slots by the order in which the model yields its weights. Were that order another one, a stage would go
on with the moments of other weights, without an error where the shapes agree.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import mcot_torch as mt
from mcot_torch.errors import InputError

STATES, WIDTH = 16, 8
WEIGHTS = {  # in the order of the optimiser's slots
    "embedding.weight": (16, 8),
    "blocks.0.qkv.weight": (24, 8),
    "blocks.0.out.weight": (8, 8),
    "blocks.0.up.weight": (32, 8),
    "blocks.0.down.weight": (8, 32),
    "blocks.1.qkv.weight": (24, 8),
    "blocks.1.out.weight": (8, 8),
    "blocks.1.up.weight": (32, 8),
    "blocks.1.down.weight": (8, 32),
    "head.weight": (16, 8),
}
MODEL = {"model.support": (16, 16), **{f"model.{name}": shape for name, shape in WEIGHTS.items()}}
ADAM = {
    f"optimizer.{index}.{slot}": () if slot == "step" else shape
    for index, shape in enumerate(WEIGHTS.values())
    for slot in ("step", "exp_avg", "exp_avg_sq")
}
META = ["forward_passes", "history", "step", "total"]


class Stopped(Exception):
    """What ends a stage in the middle."""


@pytest.fixture
def graph():
    return mt.build_graph(
        mt.GraphConfig(n_clusters=4, cluster_size=4, cluster="complete", epsilon=0.02, epsilon_max=0.1)
    )


@pytest.fixture
def reasoner():
    model = mt.TransformerReasoner(STATES, width=WIDTH, n_layers=2, n_heads=2)
    model.reset_parameters(torch.Generator().manual_seed(1))
    with (
        torch.no_grad()
    ):  # the last layers of the blocks begin at 0, which would leave the layers before without a gradient
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    return model


@pytest.fixture
def context(tmp_path):
    """Of a stage that saves after every step and is stopped in its second, before that is saved."""
    context = mt.Context(seed=3, folder=tmp_path)
    context.trainer.progress, context.trainer.accelerator, context.trainer.save_every = False, "cpu", 1e-9

    def report(line: dict[str, float]) -> None:
        if len(lines) == 1:
            raise Stopped
        lines.append(line)

    lines: list[dict[str, float]] = []
    context.report = report
    return context


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, JSON of the header) of the saved state; nothing else may lie in the folder."""
    assert [path.name for path in folder.iterdir()] == ["state.safetensors"]
    with safe_open(folder / "state.safetensors", "pt") as file:
        assert list(file.metadata()) == ["json"]
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["json"])  # noqa: SIM118


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def test_state_of_pretraining(graph, reasoner, context, tmp_path):
    before = {key: value.clone() for key, value in reasoner.named_parameters()}
    config = mt.PretrainConfig(steps=5, steps_after_cut=2, transitions=100_000, log_every=1)
    with pytest.raises(Stopped):
        mt.pretrain(reasoner, graph, config, context)
    tensors, meta = read(tmp_path)
    assert shapes(tensors) == MODEL | ADAM
    assert sorted(meta) == META
    assert (meta["step"], meta["total"]) == (1, 7)
    assert [sorted(line) for line in meta["history"]] == [["learning_rate", "loss", "step"]]
    # Adam's first step moves a weight against the sign of its gradient: the slots are those of these weights
    for index, name in enumerate(WEIGHTS):
        gradient, moved = tensors[f"optimizer.{index}.exp_avg"], tensors[f"model.{name}"] - before[name]
        clear = gradient.abs() > 1e-5
        assert clear.sum() > 10, name
        assert torch.equal(gradient[clear].sign(), -moved[clear].sign()), name


def test_state_of_gradient_descent_has_no_slots(graph, context, tmp_path):
    config = mt.PretrainConfig(optimizer="gd", steps=5, steps_after_cut=2, transitions=100_000, log_every=1)
    with pytest.raises(Stopped):
        mt.pretrain(mt.LinearReasoner(STATES), graph, config, context)
    tensors, meta = read(tmp_path)
    assert shapes(tensors) == {"model.support": (16, 16), "model.logits": (16, 16)}
    assert sorted(meta) == META


def test_state_of_search(graph, reasoner, context, tmp_path):
    with pytest.raises(Stopped):
        mt.search(reasoner, mt.Scales.of(graph, 0.1), mt.SearchConfig(rounds=12), context)
    tensors, meta = read(tmp_path)
    # As in every other stage since format 2; version 0.1 kept votes and counts in the JSON of its file.
    votes = tensors["extra.votes"]  # a row each: from, to, rounds that found the step
    assert shapes(tensors) == {"extra.coverage": (16,), "extra.votes": (len(votes), 3), "extra.cost": (3,)}
    assert len(votes) > 0
    assert {x.dtype for x in tensors.values()} == {torch.int64}
    assert sorted(meta) == META
    assert (meta["step"], meta["total"]) == (4, 12)
    assert [sorted(line) for line in meta["history"]] == [["edges", "step", "transitions"]]
    assert tensors["extra.cost"].tolist()[0] == meta["history"][0]["transitions"]


def test_state_of_search_of_version_0_1_is_refused_in_one_line(graph, reasoner, context, tmp_path):
    meta = {"transitions": 10, "done": 4, "history": [], "votes": [[0, 5, 2]]}
    save_file(
        {"coverage": torch.zeros(16, dtype=torch.int64)}, tmp_path / "state.safetensors", {"json": json.dumps(meta)}
    )
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"state\.safetensors is of another version; delete it$"):
        mt.search(reasoner, mt.Scales.of(graph, 0.1), mt.SearchConfig(rounds=12), context)
    assert (tmp_path / "state.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "extra"),
    [
        ({}, {"env_steps": (), "values": (16,)}),
        ({"gamma": 0.5}, {"env_steps": (), "values": (16,), "walkers": (100,)}),
    ],
)
def test_state_of_ppo(graph, reasoner, context, tmp_path, settings, extra):
    """Beside weights and slots it holds the reasoner that it started from, and where its walkers stand if they walk on."""
    config = mt.PPOConfig(rounds=3, epochs=2, transitions=1000, path_length=10, log_every=1, **settings)
    with pytest.raises(Stopped):
        mt.ppo(reasoner, mt.PRM.simulated(graph), mt.Scales.of(graph, 0.1), config, context)
    tensors, meta = read(tmp_path)
    reference = {key.replace("model.", "extra.reference."): shape for key, shape in MODEL.items()}
    assert shapes(tensors) == MODEL | ADAM | reference | {f"extra.{key}": shape for key, shape in extra.items()}
    assert sorted(meta) == META
    assert (meta["step"], meta["total"]) == (1, 3)


def test_state_of_distillation(graph, context, tmp_path):
    reasoner, quiet = mt.LinearReasoner(STATES), mt.Context(seed=3)
    quiet.trainer.progress, quiet.trainer.accelerator = False, "cpu"
    mt.pretrain(reasoner, graph, mt.PretrainConfig(steps=60, steps_after_cut=5, transitions=1_000_000), quiet)
    config = mt.DistillConfig(transitions=100_000, path_length=20, steps=20, log_every=1)
    with pytest.raises(Stopped):
        mt.distill(reasoner, mt.PRM.simulated(graph), mt.Scales.of(graph, 0.1), config, context)
    tensors, meta = read(tmp_path)
    assert shapes(tensors) == {
        "model.beta": (),
        "model.labels": (16,),
        "model.representatives": (4,),
        "model.support": (4, 4),
        "model.model.logits": (4, 4),
        "model.model.support": (4, 4),
        "optimizer.0.step": (),
        "optimizer.0.exp_avg": (4, 4),
        "optimizer.0.exp_avg_sq": (4, 4),
    }
    assert sorted(meta) == META

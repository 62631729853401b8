"""What a configuration may not be once the graph is known; and that no number anywhere is without a domain."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mcot_torch.errors import InputError
from mcot_torch.evaluation.problem import prepare
from mcot_torch.graphs import build_graph
from mcot_torch.graphs.scales import Scales
from mcot_torch.runs import memory as memory_module
from mcot_torch.runs.config import _DOMAINS, Config, check, parse_train
from mcot_torch.runs.memory import check_memory, memory, tables
from mcot_torch.system.arguments import _key_types

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runs"))
from test_config import BAD_COMMAND_LINES, BAD_FILES

LOW = "; it is a probability a step and must lie in (0, 1)"
BAD_NUMBERS = [
    ("--reasoner.window 65537", "reasoner.window is 65537; it must be from 1 to 65,536"),
    ("--reasoner.n_layers 0", "reasoner.n_layers is 0; it must be at least 1"),
    ("--reasoner.n_heads 0", "reasoner.n_heads is 0; it must be at least 1"),
    ("--pretrain.path_length 0", "pretrain.path_length is 0; it must be at least 1"),
    ("--pretrain.log_every 0", "pretrain.log_every is 0; it must be at least 1"),
    ("--search.cover_steps 0", "search.cover_steps is 0; it must be at least 1"),
    ("--search.max_steps 0", "search.max_steps is 0; it must be at least 1"),
    ("--ppo.rounds 0", "ppo.rounds is 0; it must be at least 1"),
    ("--ppo.epochs 0", "ppo.epochs is 0; it must be at least 1"),
    ("--ppo.transitions 0", "ppo.transitions is 0; it must be at least 1"),
    ("--ppo.path_length -1", "ppo.path_length is -1; it must be at least 1"),
    ("--ppo.sign_step 0", "ppo.sign_step is 0.0; it must be above 0"),
    ("--ppo.log_every 0", "ppo.log_every is 0; it must be at least 1"),
    ("--distill.transitions 0", "distill.transitions is 0; it must be at least 1"),
    ("--distill.path_length 0", "distill.path_length is 0; it must be at least 1"),
    ("--distill.steps 0", "distill.steps is 0; it must be at least 1"),
    ("--distill.learning_rate 0", "distill.learning_rate is 0.0; it must be above 0"),
    ("--distill.log_every 0", "distill.log_every is 0; it must be at least 1"),
    ("--evaluation.contexts 0", "evaluation.contexts is 0; it must be at least 1"),
    ("--trainer.threads 1025", "trainer.threads is 1025; it must be from 1 to 1,024"),
    ("--trainer.devices 0", "trainer.devices is 0; it must be at least 1"),
    (
        "--trainer.strategy ddp",
        "trainer.strategy is ddp, but trainer.devices is 1; use --trainer.devices 2 or more, or auto",
    ),
    (
        "--trainer.devices 3 --ppo.transitions 600",
        "ppo.transitions / ppo.path_length is 2; with trainer.devices 3 it must be at least 3",
    ),
    (
        "--trainer.devices 33 --reasoner.window 16",
        "pretrain.batch_size is 32; with trainer.devices 33 it must be at least 33",
    ),
    ("--ppo.gamma 1", "ppo.gamma is 1.0, but the process reward never ends: its value needs ppo.gamma below 1"),
    ("--logic.paths 0", "logic.paths is 0; it must be at least 1"),
    ("--logic.seed -1", "logic.seed is -1; it must be at least 0"),
    ("--seed 9007199254740993", "seed is 9007199254740993; it must be at most 2^53 in size"),
    ("--pretrain.steps 1" + "0" * 30, "pretrain.steps is 1" + "0" * 30 + "; it must be at most 2^53 in size"),
    ("--graph.jumps -9007199254740994", "graph.jumps is -9007199254740994; it must be at most 2^53 in size"),
    (
        "--reasoner.window 64 --distill.path_length 32",
        "reasoner.window is 64, longer than the paths of distill.path_length = 32 that distillation records; raise it, or "
        "lower reasoner.window",
    ),
]

BAD_PROBLEMS = [
    ("--graph.n_clusters 1", "graph.n_clusters is 1; metastability needs at least 2 clusters"),
    (
        "--graph.n_clusters 9007199254740992",
        "graph.n_clusters times cluster_size is 288,230,376,151,711,744; the families are built for at most 2,000,000 states",
    ),
    ("--graph.cluster_size 1", "graph.cluster_size is 1; a cluster needs an entry and another state: use 2 or more"),
    ("--graph.epsilon 0", "graph.epsilon is 0.0" + LOW),
    ("--graph.epsilon 1", "graph.epsilon is 1.0" + LOW),
    ("--graph.epsilon_max 0", "graph.epsilon_max is 0.0" + LOW),
    ("--graph.epsilon_max 1.5", "graph.epsilon_max is 1.5" + LOW),
    (
        "--graph.epsilon_max 0.001",
        "graph.epsilon is 0.002, not below epsilon_max 0.001; lower graph.epsilon or raise graph.epsilon_max (below 1)",
    ),
    (
        "--graph.epsilon 0.05",
        "graph.epsilon is 0.05, not below epsilon_max 0.03 = 0.96 / 32 states, capped at half the limit; lower graph.epsilon "
        "or raise graph.epsilon_max (below 1)",
    ),
    ("--graph.jumps []", "graph.jumps is empty; the circulant needs at least one, such as [1]"),
    (
        "--graph.jumps 0",
        "graph.jumps holds 0, which is 0 mod n_clusters 10 and stays in the cluster; drop it or change n_clusters",
    ),
    (
        "--graph.jumps 1,11",
        "graph.jumps 1 and 11 are equal mod n_clusters 10, and two clusters may share only one hard step (A2); drop one of "
        "them or use more clusters",
    ),
    (
        "--graph.jumps 2,4",
        "graph.jumps [2, 4] and n_clusters 10 share the divisor 2, so some clusters are out of reach; add the jump 1",
    ),
    ("--graph.degree 0", "graph.degree is 0; with cluster_size 32 it must lie in 1 .. 31"),
    ("--graph.degree 32", "graph.degree is 32; with cluster_size 32 it must lie in 1 .. 31"),
    ("--graph.n_out 0", "graph.n_out is 0; every cluster needs at least 1 source of hard steps"),
    ("--graph.n_out 99", "graph.n_out is 99, but a cluster has only 3 hard steps; use n_out <= 3"),
    ("--graph.d_out 0", "graph.d_out is 0; a source needs at least 1 hard edge"),
    (
        "--graph.out_degree 10 --graph.family random_regular",
        "graph.out_degree is 10; with n_clusters 10 it must lie in 1 .. 9",
    ),
    ("--graph.weights 1,2", "graph.weights has 2 entries, but a cluster has 3 hard steps; give one each"),
    ("--graph.weights 1,0,1", "graph.weights holds 0.0; the weight of a hard step is positive and finite"),
    (
        "--graph.weights 1000,1000,1000",
        "graph.epsilon 0.002 times the hard-step weight W = 1000 of state 7 is 2; it must be below 1: use epsilon < 0.001",
    ),
    ("--graph.seed -1", "graph.seed is -1; it must be a non-negative integer"),
    ("--graph.n_discs 1 --graph.family hanoi", "graph.n_discs is 1; it must lie in 2 .. 10 (3^n states)"),
    (
        "--graph.n_hard_discs 9 --graph.family hanoi",
        "graph.n_hard_discs is 9; with n_discs 5 it must lie in 1 .. 4, so that easy moves remain",
    ),
    ("--graph.family edge_list", "graph.path is missing; the family edge_list reads a file: set graph.path to it"),
    (
        "--graph.path x",
        "graph.path is 'x', but the family circulant reads no file; set graph.family to edge_list or saved, or drop graph.path",
    ),
    ("--graph.threshold 0.1", "graph.threshold is 0.1, but only the family edge_list uses it; drop it"),
    ("--graph.clusters_path x", "graph.clusters_path is 'x', but only the family edge_list uses it; drop it"),
    ("--graph.path /none.csv --graph.family edge_list", "/none.csv: no such file"),
    ("--graph.path /none.npz --graph.family saved", "/none.npz: no such graph file"),
    ("--task.start cluster:99", "task.start is 'cluster:99'; clusters are numbered 0 .. 9"),
    (
        "--task.start nowhere",
        "task.start is 'nowhere'; write cluster:K, entry:K, state:NAME or states:NAME,NAME, or uniform",
    ),
    (
        "--task.start state:999",
        "task.start is 'state:999': unknown state '999': the states are numbered 0 .. 319",
    ),
    (
        "--task.target cluster:0",
        "task.start 'cluster:0' lies wholly inside task.target 'cluster:0', so there is nothing to solve; choose another "
        "start or target",
    ),
]

THAN_8_GIB = " GiB of memory, and the cpu has 8.0 GiB: use a smaller one"
TOO_LARGE = [
    (
        "--reasoner.window 32 --pretrain.batch_size 150000",
        "pretrain.batch_size is 150,000 of 32 states; with 320 states that takes at least 11.4",
    ),
    (
        "--reasoner.window 32 --ppo.transitions 1000000",
        "ppo.transitions is 1,000,000; with 320 states that takes at least 10.7",
    ),
    (
        "--reasoner.width 8000 --reasoner.n_layers 9",
        "reasoner.width is 8,000 in 9 layers; with 320 states that takes at least 103.1",
    ),
    ("--search.walks 1000000", "search.walks is 1,000,000; with 320 states that takes at least 22.1"),
    ("--distill.label_walks 4000000", "distill.label_walks is 4,000,000; with 320 states that takes at least 9.5"),
    (
        "--evaluation.walks 2000000000",
        "evaluation.walks is 2,000,000,000; with 320 states that takes at least 14.9",
    ),
    (
        "--pretrain.path_length 1 --pretrain.transitions 9000000000",
        "pretrain.transitions is 9,000,000,000 in paths of 1; with 320 states that takes at least 67.1",
    ),
    (
        "--ppo.path_length 1 --ppo.transitions 9000000000",
        "ppo.transitions is 9,000,000,000 in paths of 1; with 320 states that takes at least 67.1",
    ),
    (
        "--distill.path_length 1 --distill.transitions 9000000000",
        "distill.transitions is 9,000,000,000 in paths of 1; with 320 states that takes at least 67.1",
    ),
    (
        "--reasoner.window 64 --evaluation.contexts 90000000",
        "evaluation.contexts is 90,000,000; with 320 states that takes at least 42.9",
    ),
]


@pytest.mark.parametrize(("line", "message"), BAD_NUMBERS, ids=lambda text: text[:40])
def test_bad_number(line, message):
    with pytest.raises(InputError) as error:
        parse_train(line.split())
    assert str(error.value) == message


@pytest.mark.parametrize(("line", "message"), BAD_PROBLEMS, ids=lambda text: text[:40])
def test_bad_problem(line, message):
    config = parse_train(line.split())
    with pytest.raises(InputError) as error:
        prepare(config.graph, config.task, config.logic)
    assert str(error.value) == message


@pytest.mark.parametrize(("line", "message"), TOO_LARGE, ids=lambda text: text[:40])
def test_more_than_memory(line, message, monkeypatch):
    monkeypatch.setattr(memory_module, "memory", lambda device: 8 * 2**30)
    config = parse_train(line.split())
    with pytest.raises(InputError) as error:
        check_memory(config, 320, 320, Scales(10, 32, 0.002, 0.03, 1.0), torch.device("cpu"))
    assert str(error.value) == message + THAN_8_GIB


def test_more_pairs_of_states_than_memory(monkeypatch):
    """PPO holds 11 bytes a pair of states at once, pretraining 10: 28,500 states take 8.3 GiB and 7.6 GiB.

    What it holds of the possible steps only, 16 bytes each, is little where they are few, and more where they are many.
    """
    monkeypatch.setattr(memory_module, "memory", lambda device: 8 * 2**30)
    scales, cpu = Scales(100, 285, 0.002, 0.0025, 1.0), torch.device("cpu")
    message = "graph.family is circulant; with 28,500 states that takes at least 8.3"
    with pytest.raises(InputError) as error:
        check_memory(Config(), 28_500, 20, scales, cpu)
    assert str(error.value) == message + THAN_8_GIB
    check_memory(Config(stages=["pretrain"]), 28_500, 20, scales, cpu)
    check_memory(Config(), 24_000, 20, scales, cpu)
    with pytest.raises(InputError, match=r"with 24,000 states that takes at least 8\.6 GiB"):
        check_memory(Config(), 24_000, 24_000, scales, cpu)


@pytest.mark.parametrize("words", [[], ["--config", "configs/sequence.yaml"], ["--config", "configs/gpu.yaml"]])
def test_shipped_configurations_fit(words, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    config = parse_train(words)
    graph = build_graph(config.graph)
    sizes = list(tables(config, graph.n_states, int(np.diff(graph.indptr).max()), Scales.of(graph, 0.03)))
    assert max(size for _, _, size in sizes) < 2 * 2**30
    assert memory(torch.device("cpu")) > 2**30


def test_more_than_a_hundred_bad_configurations():
    assert len({line for line, _ in [*BAD_COMMAND_LINES, *BAD_FILES, *BAD_NUMBERS, *BAD_PROBLEMS, *TOO_LARGE]}) >= 175


def test_nothing_that_is_no_number_passes():
    """Each number of the configuration, set to NaN, is refused by `check` or where the graph is built, and named."""
    numbers = [key for key, kind in _key_types(Config).items() if float in getattr(kind, "__args__", (kind,))]
    assert len(numbers) > 15
    for key in numbers:
        config = Config()
        part, _, leaf = key.rpartition(".")
        setattr(getattr(config, part) if part else config, leaf, float("nan"))
        with pytest.raises(InputError, match=f"^{key} is nan; it must be a finite number$"):
            check(config)


def test_every_number_outside_the_graph_is_refused_somewhere():
    told = [message for _, message in [*BAD_COMMAND_LINES, *BAD_FILES, *BAD_NUMBERS]]
    keys = [key for _, _, keys in _DOMAINS for key in keys.split()]
    assert [key for key in keys if not any(m.startswith(f"{key} is ") and "; it must be " in m for m in told)] == []


PUZZLES = {"n_rows", "n_columns", "room_size", "max_leaves", "concept", "radius"}  # theirs stand in tests/graphs


def test_every_number_of_the_graph_is_refused_somewhere():
    told = [message for _, message in [*BAD_COMMAND_LINES, *BAD_PROBLEMS]]
    kinds = _key_types(Config).items()
    numbers = [k for k, t in kinds if k.startswith("graph.") and any(word in str(t) for word in ("int", "float"))]
    silent = [k for k in numbers if not any(m.startswith(k) for m in told) and k.removeprefix("graph.") not in PUZZLES]
    assert silent == []

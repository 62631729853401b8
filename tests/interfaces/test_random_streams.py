"""The random streams of a run are an interface: their names, the order in which they are made, and what they give.

Every piece of work draws from a generator whose seed is a hash of the run's seed and the name of the work. A run that
was begun by one version and is continued by another ends with the same numbers only while these names stay as they are.
No module of the package is named here: `torch.Generator` is replaced by a class that notes its seeds.
"""

from __future__ import annotations

import hashlib
import shlex

import pytest
import torch

import mcot_torch as mt

WORDS = shlex.split(
    "--graph.n_clusters 4 --graph.cluster_size 4 --graph.cluster complete --graph.epsilon .02 --graph.epsilon_max .1 "
    "--reasoner.kind linear --pretrain.steps 60 --pretrain.steps_after_cut 20 --pretrain.transitions 1000000 "
    "--search.rounds 8 --ppo.rounds 2 --ppo.transitions 1000 --ppo.path_length 10 --distill.transitions 100000 "
    "--distill.path_length 20 --distill.steps 20 --evaluation.walks 2 --evaluation.contexts 2000 --evaluation.figures false "
    "--trainer.accelerator cpu --trainer.progress false"
)
SEED = 7
GENERATOR = torch.Generator  # the true one


PROBE = ("probe",)  # of the comparisons with the truth that are logged while a stage runs; its seed is 0 in every run


def seed_of(*name: str | int, seed: int = SEED) -> int:
    """The documented rule: the first 63 bits of SHA-256 of the text of (seed, *name)."""
    seed = 0 if name == PROBE else seed
    digest = hashlib.sha256(repr((seed, *name)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Streams:
    """The generators that were made and drawn from.

    One from which nothing is drawn decides no number, and is left out: a score of the steps without noise holds one.
    """

    def __init__(self) -> None:
        self.made: list[tuple[int, str, torch.Generator]] = []

    def compare(self, *expected: tuple[str | int, ...]) -> None:
        """Fail unless exactly the named streams were drawn from, all on the CPU, made in this order."""
        drawn = [(seed, device) for seed, device, generator in self.made if _was_drawn_from(seed, generator)]
        names = {seed_of(*name): name for name in expected}
        assert [(names.get(seed, seed), device) for seed, device in drawn] == [(name, "cpu") for name in expected]


def _was_drawn_from(seed: int, generator: torch.Generator) -> bool:
    fresh = GENERATOR(generator.device).manual_seed(seed)
    return not torch.equal(fresh.get_state(), generator.get_state())


@pytest.fixture
def streams(monkeypatch):
    """The generators that are made from here on."""
    found = Streams()

    class Recorded(GENERATOR):
        def manual_seed(self, seed: int) -> torch.Generator:
            found.made.append((seed, str(self.device), self))
            return super().manual_seed(seed)

    monkeypatch.setattr(torch, "Generator", Recorded)
    return found


def test_the_first_numbers_of_a_stream():
    """The noise of a scorer of steps is drawn from the stream (seed, "prm", "noise"), row by row."""
    noise = mt.PRM(3, torch.zeros(0, 2, dtype=torch.int64), noise=1.0, seed=5).scores().flatten()
    draw = torch.Generator().manual_seed(seed_of("prm", "noise", seed=5))
    assert torch.equal(noise, torch.randn(3, 3, dtype=torch.float64, generator=draw).flatten())
    assert draw.initial_seed() == 784969041381383466
    assert noise[:3].tolist() == pytest.approx(
        [0.10459490038452403, 0.2855821627164511, -0.3342329486113826], abs=1e-12
    )


def test_streams_of_a_run(tmp_path, command, streams):
    status, _, errors = command("train.py", *WORDS, "--seed", str(SEED), "--run_dir", str(tmp_path / "run"))
    assert status == 0, errors
    streams.compare(
        ("pretrain", "counts"),
        ("search", 0),
        ("search", 4),
        ("ppo", 0),
        ("ppo", 1),
        ("distill",),
        ("evaluation", "base"),
        ("evaluation", "pretrained"),
        ("evaluation", "guided"),
        ("evaluation", "tuned"),
        ("evaluation", "student"),
        ("evaluation", "lift"),
    )


def test_streams_of_search_by_reinforcement_values_and_a_transformer_student(tmp_path, command, streams):
    """In RL mode each round of search that found a new step is followed by a short PPO of its own.

    Actions are drawn twice: evaluation reads the folder anew, and they are not kept there.
    """
    words = "--search.mode rl --search.rounds 6 --logic.group Z2 --logic.paths 20 --distill.student transformer --logic.seed 7"
    status, _, errors = command(
        "train.py", *WORDS, *words.split(), "--seed", str(SEED), "--run_dir", str(tmp_path / "run")
    )
    assert status == 0, errors
    streams.compare(
        ("actions",),
        ("pretrain", "counts"),
        ("search", 0),
        ("search", 1),
        ("search", 2),
        ("search", 3),
        ("search", 4),
        ("ppo", 0),
        ("search", 5),
        ("ppo", 0),
        ("ppo", 0),
        ("ppo", 1),
        ("distill",),
        ("student",),
        ("actions",),
        ("values", "labelled"),
        ("values", "hops"),
        ("evaluation", "base"),
        ("evaluation", "pretrained"),
        ("evaluation", "guided"),
        ("evaluation", "tuned"),
        ("evaluation", "student"),
        ("evaluation", "lift"),
    )


def test_streams_of_pretraining_on_sequences(tmp_path, command, streams):
    """Five training steps, with a cut after three of them and after the last, which looks at 64 further batches each time.

    A loader may fetch a batch before the step that it is for. So the batches of the steps and those of the cuts are compared
    one sequence at a time: how the two are interleaved changes no number.
    """
    words = (
        "--stages pretrain --reasoner.kind transformer --reasoner.width 8 --reasoner.n_layers 1 --reasoner.n_heads 1"
    )
    words += " --reasoner.window 2 --pretrain.steps 3 --pretrain.steps_after_cut 2"
    status, _, errors = command(
        "train.py", *WORDS, *words.split(), "--seed", str(SEED), "--run_dir", str(tmp_path / "run")
    )
    assert status == 0, errors
    cut = {seed_of("pretrain", "paths", step) for step in range(5, 69)}
    streams.made.sort(key=lambda made: made[0] in cut)  # the sort keeps the order of equals
    streams.compare(
        ("reasoner",),
        ("pretrain", "paths", 0),
        ("pretrain", "paths", 1),
        ("pretrain", "paths", 2),
        ("pretrain", "paths", 3),
        ("pretrain", "paths", 4),
        PROBE,
        ("contexts", "pretrained"),
        ("evaluation", "base"),
        ("evaluation", "pretrained"),
        *(("pretrain", "paths", step) for _ in range(2) for step in range(5, 69)),
    )


@pytest.fixture(scope="module")
def small():
    """A graph of 4 clusters of 4 states, a task on it and a reasoner pretrained on pairs of states."""
    graph = mt.build_graph(
        mt.GraphConfig(n_clusters=4, cluster_size=4, cluster="complete", epsilon=0.02, epsilon_max=0.1)
    )
    return graph, mt.build_task(mt.TaskConfig(), graph), mt.Scales.of(graph, 0.1)


def test_streams_of_the_algorithms_called_one_by_one(small, streams):
    graph, task, scales = small
    context = mt.Context(seed=SEED)
    context.trainer.progress = False
    context.trainer.accelerator = "cpu"
    reasoner = mt.LinearReasoner(graph.n_states)
    config = mt.PretrainConfig(data="pairs", transitions=1_000_000, steps=60, steps_after_cut=2)
    mt.pretrain(reasoner, graph, config, context)
    prm = mt.search(reasoner, scales, mt.SearchConfig(rounds=8), context).model
    mt.ppo(reasoner, prm, scales, mt.PPOConfig(rounds=2, transitions=1000, path_length=10), context)
    settings = mt.DistillConfig(transitions=100_000, path_length=20, steps=20, student="transformer")
    student = mt.distill(reasoner, prm, scales, settings, context).model
    draw = torch.Generator().manual_seed(seed_of("my own"))
    target = torch.zeros(graph.n_states, dtype=torch.bool)
    target[torch.from_numpy(task.target)] = True
    mt.lift(student, reasoner, prm, torch.zeros(2, dtype=torch.int64), target, draw)
    mt.evaluate({"mine": reasoner, "small": student}, graph, task, walks=2, seed=SEED)
    streams.compare(
        *(("pretrain", "pairs", step) for step in range(62)),
        ("search", 0),
        ("search", 4),
        ("ppo", 0),
        ("ppo", 1),
        ("distill",),
        ("student",),
        ("my own",),
        ("evaluation", "base"),
        ("evaluation", "mine"),
        ("evaluation", "small"),
    )


def test_draws_of_a_stage_that_goes_on_are_those_of_the_rounds_that_are_left(small, tmp_path, streams):
    """A stage that stopped after its first round draws nothing of it again."""
    graph, _, scales = small
    prm = mt.PRM.simulated(graph)
    context = mt.Context(seed=SEED, folder=tmp_path)
    context.trainer.progress, context.trainer.accelerator, context.trainer.save_every = False, "cpu", 1e-9
    config = mt.PPOConfig(rounds=3, transitions=1000, path_length=10, log_every=1)

    def stop(line):
        if line["step"] == 2:
            raise InterruptedError

    context.report = stop
    with pytest.raises(InterruptedError):
        mt.ppo(mt.LinearReasoner(graph.n_states), prm, scales, config, context)
    streams.made.clear()
    context.report = None
    mt.ppo(mt.LinearReasoner(graph.n_states), prm, scales, config, context)
    streams.compare(("ppo", 1), ("ppo", 2))

"""The shared training loop: where it begins, what it saves, how it stops, and that both device paths agree."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.precision import Precision

import mcot_torch as mt
from mcot_torch.algorithms import pretrain as pretrain_module
from mcot_torch.errors import InputError, NonFiniteError
from mcot_torch.training import loop as loop_module
from mcot_torch.training.config import TrainerConfig
from mcot_torch.training.loop import TrainingLoop, cosine
from mcot_torch.training.state import load_state

ROOT = Path(__file__).parents[2]
RARELY = TrainerConfig(progress=False, save_every=3600.0)


def run(folder, total=10, log_every=3, body=lambda step: None, trainer=RARELY, report=None):
    """Gradient steps on the logits of a table towards state 0; `body` is called in every step before `finish`."""
    torch.manual_seed(0)
    model = mt.LinearReasoner(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    context = mt.Context(folder=folder, trainer=trainer, report=report)
    seen = []
    with TrainingLoop("toy", total, context, log_every, model=model, optimizer=optimizer) as loop:
        for step in loop:
            seen.append(step)
            loss = loop.backward([-model.log_probs(torch.tensor([[k]]))[0, 0, 0] for k in range(3)])
            optimizer.step()
            if body(step) == "break":
                loop.finish(step, {"loss": loss})
                break
            loop.finish(step, {"loss": loss})
    return model, loop, seen


def saved_step(folder):
    return load_state(folder / "state.safetensors")[1]["step"]


def test_every_step_is_counted_and_the_last_is_logged_and_saved(tmp_path):
    lines = []
    _, loop, seen = run(tmp_path, report=lines.append)
    assert seen == list(range(10))
    assert [line["step"] for line in loop.history] == [3, 6, 9, 10]
    assert [line["step"] for line in lines] == [3, 6, 9, 10]
    assert saved_step(tmp_path) == 10
    assert "time/steps_per_second" in lines[0]
    assert "time/steps_per_second" not in loop.history[0]


def test_loss_of_the_first_step_is_three_logarithms_of_three():
    """Uniform logits over three states: each of three losses is ln 3."""
    _, loop, _ = run(None, total=1)
    assert loop.history[0]["loss"] == pytest.approx(3 * torch.tensor(3.0).log().item(), rel=1e-6)


def test_break_saves_the_state_it_leaves(tmp_path):
    _, _, seen = run(tmp_path, body=lambda step: "break" if step == 4 else None)
    assert seen == [0, 1, 2, 3, 4]
    assert saved_step(tmp_path) == 5
    whole, _, _ = run(None)
    resumed, loop, rest = run(tmp_path)
    assert rest == [5, 6, 7, 8, 9]
    assert torch.equal(resumed.logits, whole.logits)
    assert [line["step"] for line in loop.history] == [3, 6, 9, 10]


def test_an_exception_keeps_the_last_checkpoint(tmp_path):
    def fail(step):
        if step == 7:
            raise RuntimeError("in the middle")

    often = TrainerConfig(progress=False, save_every=0.0)
    with pytest.raises(RuntimeError, match="in the middle"):
        run(tmp_path, body=fail, trainer=often)
    assert saved_step(tmp_path) == 7
    whole, loop_of_whole, _ = run(None)
    resumed, loop, rest = run(tmp_path)
    assert rest == [7, 8, 9]
    assert torch.equal(resumed.logits, whole.logits)
    assert loop.history == loop_of_whole.history


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [4, 9])
def test_a_signal_stops_after_the_step_also_after_the_last_one(tmp_path, number, at):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, body=lambda step: os.kill(os.getpid(), number) if step == at else None)
    assert saved_step(tmp_path) == at + 1
    assert signal.getsignal(number) is before
    whole, _, _ = run(None)
    resumed, _, rest = run(tmp_path)
    assert rest == list(range(at + 1, 10))
    assert torch.equal(resumed.logits, whole.logits)


def test_a_body_without_finish_is_told():
    def train():
        with TrainingLoop("toy", 2, mt.Context(trainer=RARELY), model=mt.LinearReasoner(3)) as loop:
            for _ in loop:
                pass

    with pytest.raises(RuntimeError, match=r"step 0 of toy ended without loop\.finish\(0"):
        train()


def test_break_in_the_middle_of_a_step_saves_nothing(tmp_path):
    """The weights would be those after the step, and the number of the step the one before it."""
    model = mt.LinearReasoner(3)

    def train():
        with TrainingLoop("toy", 2, mt.Context(folder=tmp_path, trainer=RARELY), model=model) as loop:
            for _ in loop:
                break

    with pytest.raises(RuntimeError, match=r"step 0 of toy ended without loop\.finish\(0"):
        train()
    assert not (tmp_path / "state.safetensors").exists()


def test_finish_of_another_step_is_told():
    def train():
        with TrainingLoop("toy", 2, mt.Context(trainer=RARELY)) as loop:
            for step in loop:
                loop.finish(step + 1, {})

    with pytest.raises(RuntimeError, match=r"loop\.finish\(1, \.\.\.\) in step 0 of toy"):
        train()


def test_a_checkpoint_of_another_length_is_refused(tmp_path):
    run(tmp_path, total=4)
    with pytest.raises(InputError, match="is of a stage of 4 steps, not 6; delete it"):
        run(tmp_path, total=6)
    assert saved_step(tmp_path) == 4


def test_a_loss_that_is_not_finite_ends_before_it_is_saved(tmp_path):
    model = mt.LinearReasoner(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    context = mt.Context(folder=tmp_path, trainer=RARELY)

    def train():
        with TrainingLoop("toy", 2, context, model=model, optimizer=optimizer) as loop:
            for step in loop:
                loop.backward([model.logits.sum() * torch.nan])
                loop.finish(step, {})

    with pytest.raises(NonFiniteError, match=r"toy: loss nan .* at step 0; .*smaller toy\.learning_rate"):
        train()
    assert not (tmp_path / "state.safetensors").exists()


def test_strides_cover_the_total():
    starts = []
    with TrainingLoop("toy", 7, mt.Context(trainer=RARELY), stride=3) as loop:
        for first in loop:
            starts.append(first)
            loop.finish(first, {}, n_samples=None)
    assert starts == [0, 3, 6]
    assert [line["step"] for line in loop.history] == [3, 6, 7]


def test_threads_and_determinism_are_restored(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    inside = []

    def look(step):
        inside.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))

    run(None, total=1, body=look, trainer=TrainerConfig(progress=False, threads=2, deterministic=True))
    assert inside == [(2, True)]
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        run(None, total=1, body=look, trainer=TrainerConfig(progress=False, deterministic=True))
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_sampling_too_runs_with_the_settings_of_the_trainer(small_graph, monkeypatch):
    inside, sample = [], pretrain_module.training_data

    def look(*arguments):
        inside.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        return sample(*arguments)

    monkeypatch.setattr(pretrain_module, "training_data", look)
    trainer = TrainerConfig(progress=False, threads=2, deterministic=True)
    config = mt.PretrainConfig(steps=1, steps_after_cut=1, transitions=1000)
    mt.pretrain(mt.LinearReasoner(small_graph.n_states), small_graph, config, mt.Context(trainer=trainer))
    assert inside == [(2, True)]


def test_cosine():
    assert [cosine(s, 4) for s in (0, 4, 9)] == pytest.approx([1, 0, 0])
    assert cosine(2, 4) == pytest.approx(0.5)
    assert cosine(1, 4) == pytest.approx((1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("kind", ["linear", "transformer"])
def test_fabric_and_the_plain_path_give_the_same_bits(monkeypatch, small_graph, kind):
    def weights():
        model = mt.LinearReasoner(small_graph.n_states)
        if kind == "transformer":
            model = mt.TransformerReasoner(small_graph.n_states, width=16, n_layers=1)
            model.reset_parameters(torch.Generator().manual_seed(1))
        config = mt.PretrainConfig(steps=20, steps_after_cut=10, transitions=10**5)
        mt.pretrain(model, small_graph, config, mt.Context(trainer=RARELY))
        return model.state_dict()

    plain = weights()
    used = []

    def fabric(precision, device):
        used.append(Precision())  # Fabric's own plugin for 32-true
        return used[-1].forward_context

    monkeypatch.setattr(loop_module, "autocast_of", fabric)
    through_fabric = weights()
    assert used
    assert plain.keys() == through_fabric.keys()
    assert all(torch.equal(plain[key], through_fabric[key]) for key in plain)


def test_bf16_runs_and_learns(small_graph, capfd):
    model = mt.TransformerReasoner(small_graph.n_states, width=16, n_layers=1)
    model.reset_parameters(torch.Generator().manual_seed(1))
    trainer = TrainerConfig(progress=False, precision="bf16-mixed")
    config = mt.PretrainConfig(steps=150, steps_after_cut=50, transitions=10**6)
    result = mt.pretrain(model, small_graph, config, mt.Context(trainer=trainer))
    kernel = torch.from_numpy(small_graph.kernel())
    assert float((result.model.kernel() - kernel).abs().max()) < 0.05
    assert next(model.parameters()).dtype == torch.float32
    assert capfd.readouterr() == ("", "")


def test_the_plain_path_imports_nothing_of_lightning():
    code = (
        "import sys, mcot_torch.algorithms.ppo, mcot_torch as mt\n"
        "graph = mt.build_graph(mt.GraphConfig(n_clusters=4, cluster_size=8, epsilon=0.02))\n"
        "mt.pretrain(mt.LinearReasoner(graph.n_states), graph, mt.PretrainConfig(steps=2, steps_after_cut=2, transitions=1000))\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('lightning', 'pytorch_lightning', 'lightning_fabric')])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == "[]"

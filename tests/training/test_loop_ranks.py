"""The training loop on two ranks: signals, `break` and gradients are agreed on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """\
import json, os, signal, sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import mcot_torch as mt
from mcot_torch.system.ranks import average_gradients
from mcot_torch.training.config import TrainerConfig
from mcot_torch.training.loop import TrainingLoop
from mcot_torch.training.state import load_state

rank, home = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", f"file://{home}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60))
told = {}


def train(name, body, total=6):
    model = mt.LinearReasoner(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    folder = home / name
    folder.mkdir(exist_ok=True)
    context = mt.Context(folder=folder, trainer=TrainerConfig(progress=False, save_every=3600.0))
    seen = []
    try:
        with TrainingLoop("toy", total, context, model=model, optimizer=optimizer) as loop:
            for step in loop:
                seen.append(step)
                # rank 0 asks for state 0, rank 1 for state 1: the mean of both gradients is what a step takes
                loss = loop.backward([-model.log_probs(torch.tensor([[0]]))[0, 0, rank]])
                optimizer.step()
                loop.finish(step, {"loss": loss})
                if body(step):
                    break
        end = "normal"
    except KeyboardInterrupt:
        end = "interrupted"
    dist.barrier()
    saved = load_state(folder / "state.safetensors")[1]["step"]
    told[name] = {"end": end, "seen": seen, "saved": saved, "row": model.logits[0].tolist()}


def signal_in(step, number):
    if rank == 0 and step == number:
        os.kill(os.getpid(), signal.SIGTERM)


train("whole", lambda step: False)
train("break", lambda step: step == 3)
train("break", lambda step: False)
train("signal in the middle", lambda step: signal_in(step, 2))
train("signal after the last step", lambda step: signal_in(step, 5))

one, both, none = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
both.grad = torch.tensor([1.0, 3.0]) * (1 + 2 * rank)
if rank == 1:
    one.grad = torch.tensor([4.0, 8.0])
average_gradients([one, both, none])
told["gradients"] = [one.grad.tolist(), both.grad.tolist(), none.grad]
(home / f"{rank}.json").write_text(json.dumps(told))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks saw."""
    home = tmp_path_factory.mktemp("ranks")
    (home / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(home / "program.py")]
    started = [
        subprocess.Popen([*command, str(rank), str(home)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for process in started:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    return [json.loads((home / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_both_ranks_take_the_same_steps(ranks):
    zero, one = (told["whole"] for told in ranks)
    assert zero == one
    assert zero["seen"] == list(range(6))
    assert zero["row"][0] == pytest.approx(zero["row"][1], rel=1e-12)  # by symmetry of the two losses
    assert zero["row"][0] > 0 > zero["row"][2]


def test_break_on_both_ranks_is_saved_and_resumed(ranks):
    for told in ranks:
        resumed = told["break"]
        assert resumed["seen"] == [4, 5]
        assert resumed["row"] == told["whole"]["row"]


def test_a_signal_to_one_rank_stops_both_after_the_same_step(ranks):
    for told in ranks:
        assert told["signal in the middle"]["end"] == "interrupted"
        assert told["signal in the middle"]["seen"] == [0, 1, 2, 3]
        assert told["signal in the middle"]["saved"] == 4


def test_a_signal_to_one_rank_after_the_last_step_stops_both(ranks):
    for told in ranks:
        assert told["signal after the last step"]["end"] == "interrupted"
        assert told["signal after the last step"]["saved"] == 6


def test_gradients_that_one_rank_lacks_count_as_zero(ranks):
    for told in ranks:
        assert told["gradients"] == [[2.0, 4.0], [2.0, 6.0], None]

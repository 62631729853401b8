"""Two ranks train one model: the real command line, with gloo on CPUs.

`sitecustomize.py`, which every Python process of a test imports, makes each rank leave a copy of the models that it holds:
a run folder has the first one's only. It wraps the package's public calls, wherever their names are known.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mcot_torch import Context
from mcot_torch.algorithms.pretrain import PretrainConfig, negative_log_likelihood, pretrain
from mcot_torch.chains import hitting_time
from mcot_torch.errors import InputError, NonFiniteError
from mcot_torch.graphs import GraphConfig, build_graph, build_task
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.reasoners import LinearReasoner
from mcot_torch.runs.config import Config, check, config_hash, differences
from mcot_torch.runs.pipeline import run
from mcot_torch.sampling.walks import StepTable, walk_counts
from mcot_torch.system import ranks as distributed
from mcot_torch.system.devices import pick_device
from mcot_torch.system.randomness import generator
from mcot_torch.training.config import TrainerConfig
from mcot_torch.training.state import load_state

ROOT = Path(__file__).parents[2]

EACH_RANK = """\
import os
if "RANK" in os.environ and "DUMP" in os.environ:
    import sys
    from functools import wraps
    from pathlib import Path
    import mcot_torch
    from mcot_torch.reasoners import save_reasoner

    def watch(stage, train):
        @wraps(train)
        def call(*arguments, **named):
            result = train(*arguments, **named)
            save_reasoner(result.model, Path(os.environ["DUMP"]) / os.environ["RANK"] / stage)
            return result

        return call

    for stage in ("pretrain", "ppo", "distill"):
        train = getattr(mcot_torch, stage)
        watched = watch(stage, train)
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "mcot_torch" and vars(module).get(stage) is train:
                setattr(module, stage, watched)
"""

TINY = """\
graph: {n_clusters: 4, cluster_size: 5, epsilon: 0.02, epsilon_max: 0.1}
reasoner: {kind: linear}
pretrain: {steps: 200, steps_after_cut: 100, transitions: 2000000}
search: {rounds: 40}
ppo: {rounds: 6, epochs: 2, transitions: 4000, path_length: 16, log_every: 2}
distill: {transitions: 200000, path_length: 64, steps: 60}
evaluation: {walks: 20, figures: false}
trainer: {accelerator: cpu, progress: false, save_every: 0.000001}
"""


@pytest.fixture
def start(tmp_path):
    """Starts train.py in tmp_path with the settings above; what still runs at the end of the test is ended."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "sitecustomize.py").write_text(EACH_RANK)
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DUMP": str(tmp_path / "dump")}
    started = []

    def begin(words, devices=2, **variables):
        command = [sys.executable, str(ROOT / "train.py"), "--config", "tiny.yaml", *words.split()]
        process = subprocess.Popen(
            [*command, "--trainer.devices", str(devices)],
            cwd=tmp_path,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def finished(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def models(folder):
    return {path.parent.name: load_file(path) for path in sorted(Path(folder).glob("*/model.safetensors"))}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for stage in ours:
        assert ours[stage].keys() == theirs[stage].keys()
        assert all(torch.equal(ours[stage][key], theirs[stage][key]) for key in ours[stage])


def noise_of_hitting_time(graph, task, transitions, path_length):
    """Standard deviation of the hitting time of the empirical chain, by the delta method.

    h(P̂) − h(P) ≈ Σ_x G(x) Σ_y (P̂ − P)(x, y) h(y), with G(x) the expected visits to x before the target; row x of P̂ is
    a mean of n(x) independent steps, so that the variance is Σ_x G(x)² Var_{y ~ P(x, ·)} h(y) / n(x).
    """
    p, n = graph.kernel(), graph.n_states
    going = np.setdiff1d(np.arange(n), task.target)
    q = p[np.ix_(going, going)]
    h = np.zeros(n)
    h[going] = np.linalg.solve(np.eye(len(going)) - q, np.ones(len(going)))
    visits = np.linalg.solve((np.eye(len(going)) - q).T, task.start[going])
    law, seen = np.full(n, 1 / n), np.zeros(n)
    for _ in range(path_length):
        seen += law * transitions / path_length
        law = law @ p
    spread = (p @ h**2 - (p @ h) ** 2)[going]
    return float(task.start @ h), float(np.sqrt((visits**2 * spread / seen[going]).sum()))


def counts_of_ranks(graph, ranks):
    """(N, N) counts of the steps that pretraining with the settings above samples: each rank its share of the walks."""
    table, walks = StepTable.from_graph(graph), round(2_000_000 / 256)
    counts = torch.zeros(graph.n_states, graph.n_states, dtype=torch.float64)
    for r in range(ranks):
        draw = generator(0, "pretrain", "counts", *(("rank", r) if ranks > 1 else ()))
        own = walks * (r + 1) // ranks - walks * r // ranks
        starts = torch.bincount(torch.randint(graph.n_states, (own,), generator=draw), minlength=graph.n_states)
        counts.scatter_add_(1, table.successors, walk_counts(table, starts.double(), 256, draw))
    return counts


def descend(counts):
    """(logits, support) of a table after Algorithm 1 on these counts: plain gradient descent at rate 5, as one loop."""
    logits = torch.zeros(counts.shape, dtype=torch.float64, requires_grad=True)
    support = torch.ones(counts.shape, dtype=torch.bool)
    for step in range(301):
        log_p = logits.masked_fill(~support, -torch.inf).log_softmax(-1)
        if step in (200, 300):
            support &= log_p.detach().exp() >= 0.35 * 0.02
            log_p = logits.masked_fill(~support, -torch.inf).log_softmax(-1)
        if step < 300:
            (slope,) = torch.autograd.grad(negative_log_likelihood(log_p, counts), logits)
            with torch.no_grad():
                logits -= 5.0 * slope
    return logits.detach(), support


# ---- the whole of it --------------------------------------------------------------------------------------------


def test_two_ranks_through_the_command_line(start, tmp_path):
    """All stages; both ranks hold the same bits; pretraining is that of one process on the counts of both."""
    status, out, err = finished(start("--run_dir two --pretrain.optimizer gd --pretrain.learning_rate 5"))
    assert (status, err) == (0, "")
    assert "on 2 x CPU" in out
    assert out.count("Graph ") == 1  # the second rank is silent
    run = tmp_path / "two"
    assert all((run / stage / "metrics.json").exists() for stage in ("pretrain", "search", "ppo", "distill"))
    evaluated = json.loads((run / "evaluation.json").read_text())["models"]
    assert evaluated["tuned"]["hard_step_recall"] == 1
    first, second = (models(tmp_path / "dump" / rank) for rank in "01")
    assert list(first) == ["distill", "ppo", "pretrain"]
    assert_equal(first, second)
    assert_equal(first, models(run))

    graph = MetastableGraph.load(run / "graph.npz")
    counts = counts_of_ranks(graph, 2)
    assert int(counts.sum()) == round(2_000_000 / 256) * 256
    logits, support = descend(counts)
    assert torch.equal(support, first["pretrain"]["support"])
    # the same sums in another order, through 300 steps of a contraction
    assert torch.allclose(logits, first["pretrain"]["logits"], rtol=0, atol=1e-10)


def test_one_process_descends_the_likelihood_of_its_counts():
    """What two ranks are compared with above is what one process does."""
    graph = build_graph(GraphConfig(n_clusters=4, cluster_size=5, epsilon=0.02))
    alone = LinearReasoner(graph.n_states)
    config = PretrainConfig(200, 100, optimizer="gd", learning_rate=5.0, transitions=2_000_000)
    pretrain(alone, graph, config, Context(trainer=TrainerConfig(accelerator="cpu", progress=False)))
    logits, support = descend(counts_of_ranks(graph, 1))
    assert torch.equal(alone.support.mask, support)
    assert torch.allclose(alone.logits, logits, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_hitting_time_is_that_of_one_process_up_to_sampling_noise(start, tmp_path):
    """Adam fits the table to the sampled frequencies; what is left is their noise, in both runs."""
    words = "--pretrain.steps 1500 --pretrain.steps_after_cut 1500 --stages [pretrain]"
    for name, devices in (("one", 1), ("two", 2)):
        status, _, err = finished(start(f"{words} --run_dir {name}", devices))
        assert (status, err) == (0, "")
    graph, time_of = MetastableGraph.load(tmp_path / "two" / "graph.npz"), {}
    task = build_task(Config().task, graph)
    exact, noise = noise_of_hitting_time(graph, task, 2_000_000, 256)
    for name in ("one", "two"):
        models_there = json.loads((tmp_path / name / "evaluation.json").read_text())["models"]
        time_of[name] = models_there["pretrained"]["hitting_time_exact"]
    counts = counts_of_ranks(graph, 2).numpy()
    empirical = hitting_time(counts / counts.sum(1, keepdims=True), task.start, task.target)
    assert time_of["two"] == pytest.approx(empirical, abs=noise / 20)  # converged: what follows is about sampling
    assert abs(time_of["one"] - exact) < 5 * noise
    assert abs(time_of["two"] - exact) < 5 * noise
    assert 0 < abs(time_of["one"] - time_of["two"]) < 5 * noise * 2**0.5
    assert noise < 0.02 * exact  # or the above would say little


# ---- stopped, killed, failed ------------------------------------------------------------------------------------

CASES = {
    "table, one step": "",
    "table, walkers that go on": "--ppo.reward outcome --ppo.target_kl 0.01 --ppo.transitions 4016",
    "transformer, fresh pairs": "--reasoner.kind transformer --reasoner.width 16 --pretrain.data pairs",
    "window 4": "--reasoner.kind transformer --reasoner.width 16 --reasoner.window 4 --pretrain.batch_size 5 "
    "--pretrain.steps 40 --pretrain.steps_after_cut 20 --pretrain.threshold 0.0001 --ppo.gamma 0.5 --ppo.minibatches 2 "
    "--ppo.transitions 404 --search.min_votes 1 --search.max_steps 200 --stages [pretrain,search,ppo]",
    "RL mode": "--search.mode rl --search.rounds 12",
}


def ranks_of(process):
    """Process ids of the ranks that the launcher `process` started."""
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in out.stdout.split()]


def gone(pids, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


def wait_for_step(process, folder, stage, step):
    """Until the state of a stage has passed a step; False if the run ended first."""
    path = folder / stage / "state.safetensors"
    while process.poll() is None:
        try:
            state = load_state(path)
        except InputError:  # gone between two looks
            state = None
        if state is not None and state[1].get("step", 0) >= step:
            return True
        time.sleep(0.005)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_and_continued_ends_with_the_same_numbers(case, start, tmp_path):
    words = CASES[case]
    status, _, err = finished(start(f"{words} --run_dir whole"))
    assert (status, err) == (0, "")
    caught = 0
    for stage, step in (("pretrain", 25), ("ppo", 2), ("distill", 20)):
        process = start(f"{words} --run_dir killed")
        if wait_for_step(process, tmp_path / "killed", stage, step):
            caught += 1
            pids = ranks_of(process)
            assert len(pids) == 2
            os.kill(pids[caught % 2], signal.SIGKILL)
            status, _, err = finished(process)
            assert status == 1
            told = rf"train.py: error: rank {caught % 2} of 2 was killed by SIGKILL, and the others were ended; .*\n"
            assert re.fullmatch(told, err)
            assert gone(pids)
    assert caught >= 2
    status, _, err = finished(start(f"{words} --run_dir killed"))
    assert (status, err) == (0, "")
    assert_equal(models(tmp_path / "whole"), models(tmp_path / "killed"))
    for stage in [path.parent.name for path in (tmp_path / "whole").glob("*/metrics.json")]:
        there, again = (
            json.loads((tmp_path / name / stage / "metrics.json").read_text()) for name in ("whole", "killed")
        )
        assert again == there


@pytest.mark.slow
def test_signals_and_the_launchers_own_death(start, tmp_path):
    """SIGTERM and Ctrl-C to the launcher save and end all; where it is killed, the ranks end by themselves."""
    words = "--run_dir run --stages [pretrain] --pretrain.steps 100000"
    step = 20
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        process = start(words)
        assert wait_for_step(process, tmp_path / "run", "pretrain", step)
        pids = ranks_of(process)
        process.send_signal(number)
        if number == signal.SIGKILL:
            process.communicate()
        else:
            status, _, err = finished(process)
            assert (status, err) == (130, "train.py: interrupted; the same command continues where this one stopped\n")
        assert gone(pids)
        saved = load_state(tmp_path / "run" / "pretrain" / "state.safetensors")[1]["step"]
        assert saved >= step
        step = saved + 1


@pytest.mark.slow
def test_errors_of_ranks_are_told_once(start, tmp_path):
    for words, line in (
        (
            "--run_dir a --reasoner.kind transformer --reasoner.width 16 --pretrain.learning_rate 1e15",
            r"pretrain: loss .* at step \d+; .*",
        ),
        ("--run_dir b --task.start state:nowhere", r".*nowhere.*"),
        ("--run_dir tiny.yaml", r"tiny.yaml is a file; give another --run_dir"),
    ):
        status, _, err = finished(start(words))
        assert status == 2
        assert re.fullmatch(rf"train.py: error: {line}\n", err)


@pytest.mark.slow
def test_torchrun_starts_the_ranks(start, tmp_path):
    """The same numbers as under train.py's own ranks."""
    assert finished(start("--run_dir own --stages [pretrain]"))[0] == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = "--config tiny.yaml --run_dir other --stages [pretrain] --trainer.devices"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(devices):
        command = [*torchrun, str(ROOT / "train.py"), *words.split(), devices]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    other = run("2")
    assert other.returncode == 0
    assert other.stdout.count("Graph ") == 1
    assert_equal(models(tmp_path / "own"), models(tmp_path / "other"))
    assert "trainer.devices is 1, but 2 processes were started; use --trainer.devices 2" in run("1").stderr


@pytest.mark.slow
def test_srun_starts_the_ranks(start, tmp_path):
    """Two processes with the variables that srun sets."""
    slurm = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0"}
    slurm |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost"}
    words = "--run_dir run --stages [pretrain]"
    status, _, err = finished(start(words, **slurm, SLURM_PROCID="0", SLURM_LOCALID="0"))
    assert status == 2
    assert re.fullmatch(r"train.py: error: srun: .*--ntasks-per-node=2.*\n", err)
    slurm["SLURM_NTASKS_PER_NODE"] = "2"
    ranks = [start(words, **slurm, SLURM_PROCID=str(r), SLURM_LOCALID=str(r)) for r in range(2)]
    results = [finished(process) for process in ranks]
    assert [(status, err) for status, _, err in results] == [(0, ""), (0, "")]
    assert ["Graph " in out for _, out, _ in results] == [True, False]


# ---- parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "world"), [(7, 3), (2, 5), (0, 2), (64, 1), (10, 10)])
def test_shares_are_a_partition(n, world, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world)
    parts, names = [], set()
    for r in range(world):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda r=r: r)
        parts.append(list(range(n))[distributed.own_rows(n)])
        assert distributed.share(n) == len(parts[-1])
        names.add(distributed.stream())
    assert [x for part in parts for x in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(names) == world
    assert (() in names) == (world == 1)  # one process keeps the streams that it always had


def test_one_process_is_left_alone():
    x = torch.arange(3.0)
    assert all(f(x) is x for f in (distributed.total, distributed.mean, distributed.largest))
    assert distributed.whole(x, 3) is x
    assert distributed.any_of(True, False) == [True, False]
    assert distributed.from_first(lambda: 5) == 5


def test_first_bad_step_is_remembered(tmp_path, unwatched_steps):
    """What a GPU's steps note without a look, the next look tells."""
    steps = unwatched_steps(Context(0, tmp_path, TrainerConfig(accelerator="cpu", progress=False)))
    for step, loss, norm in ((3, 2.0, 1.0), (4, 1.5, float("inf")), (5, 1.0, 1.0), (6, float("nan"), 1.0)):
        steps.note(step, loss, norm)
        if step == 3:
            steps.look()
    with pytest.raises(
        NonFiniteError, match=r"^pretrain: loss 1\.5 with gradient norm inf at step 4; the last good state"
    ):
        steps.save()
    assert not (tmp_path / "state.safetensors").exists()


def configured(**settings):
    config = Config()
    for key, value in settings.items():
        section, _, name = key.partition("__")
        setattr(getattr(config, section), name, value)
    return config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"trainer__strategy": "ddp"},
            r"trainer.strategy is ddp, but trainer.devices is 1; use --trainer.devices 2 .*",
        ),
        ({"trainer__devices": 0}, r"trainer.devices is 0; it must be at least 1"),
        (
            {"trainer__devices": 3, "reasoner__window": 4, "pretrain__batch_size": 2},
            r"pretrain.batch_size is 2; with trainer.devices 3 it must be at least 3",
        ),
        (
            {"trainer__devices": 2, "ppo__transitions": 300},
            r"ppo.transitions / ppo.path_length is 1; with trainer.devices 2 it must be at least 2",
        ),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        check(configured(**settings))


def test_devices_are_part_of_what_decides_the_numbers():
    one, two = configured(), configured(trainer__devices=2)
    assert differences(one, two) == {"trainer.devices": (1, 2)}
    assert config_hash(one) != config_hash(two)
    assert not differences(two, configured(trainer__devices=2, trainer__strategy="ddp", trainer__threads=2))


def test_srun_says_which_gpu_is_whose_before_one_is_picked(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # what read_slurm sets goes with the test
    slurm = {"NTASKS": 2, "STEP_NUM_TASKS": 2, "STEP_NUM_NODES": 1, "NODEID": 0, "NTASKS_PER_NODE": 2, "PROCID": 1}
    slurm |= {"JOB_ID": 7, "NODELIST": "localhost", "JOB_NODELIST": "localhost", "LOCALID": 1}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    picked = []

    def properties(device):
        """Asked for the memory of the GPU before anything is put there."""
        picked.append(device)
        raise InputError("far enough")

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    with pytest.raises(InputError, match="far enough"):
        run(configured(trainer__devices=2, trainer__accelerator="cuda"), [])
    assert picked == [torch.device("cuda", 1)]


def test_more_devices_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match=r"^trainer.devices is 4, and torch sees 1 CUDA device; .*cpu$"):
        pick_device("auto", 4)
    assert pick_device("cpu", 4) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("auto", 4) == torch.device("cuda", 3)
    assert pick_device("auto") == torch.device("cuda", 0)

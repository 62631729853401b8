"""Each benchmark runs at tiny sizes and writes well-formed JSON; the page says what the JSON says. No time is asserted."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import documentation, hitting, large, ppo, run, timing
from benchmarks.timing import Benchmark, Mark, Settings, Work, race

ROOT = Path(__file__).parents[2]
ENTRIES = {
    "walks": {"torch.multinomial", "counts of the same walkers"},
    "hitting_2000": {"block elimination (GTH)", "SciPy spsolve"},
    "hitting_10000": {"block elimination (GTH)", "SciPy spsolve"},
    "pretrain_window_1": {"on counts", "the same network on sequences", "nanoGPT's model"},
    "pretrain_sequences": {"ours", "nanoGPT's model"},
    "rollout_table": {"walk of the table", "uncached decoding"},
    "rollout_cached": {"with key-value cache", "uncached, our model", "nanoGPT's generate"},
    "ppo_round": {"the same PPO on sampled steps", "plain loop in CleanRL's manner"},
    "distill": {"ours, on counts", "walking and training pair by pair"},
}
STAND_IN = """
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn import functional as F

@dataclass
class GPTConfig:
    block_size: int; vocab_size: int; n_layer: int; n_head: int; n_embd: int; dropout: float; bias: bool

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)
    def forward(self, x, y):
        logits = self.table(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), y.flatten())
    def generate(self, x, n):
        for _ in range(n):
            x = torch.cat([x, torch.multinomial(self.table(x[:, -1]).softmax(-1), 1)], 1)
        return x
"""


def rows_of(folder):
    return {row["name"]: row for row in timing.load(folder)}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The rows of every stage that needs no process of its own."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "model.py").write_text(STAND_IN)
    for stage in ("walks", "pretrain", "rollout", "ppo", "distill", "scaling"):
        assert run.main([stage, "--quick", "--nanogpt", str(folder / "model.py"), "--out", str(folder / "out")]) == 0
    for name in ("hitting_2000", "hitting_10000"):
        settings = Settings(quick=True, runs=2)
        timing.save(hitting.ROWS[name](settings), settings, folder / "out")
    return folder / "out"


def test_rows_are_well_formed(measured):
    rows = rows_of(measured)
    assert set(rows) == {*ENTRIES, "scaling"}
    for name, names in ENTRIES.items():
        row = rows[name]
        assert names <= {e["name"] for e in row["entries"]}
        assert any(e["ours"] for e in row["entries"])
        assert row["marks"]
        for e in row["entries"]:
            assert len(e["seconds"]) == 2
            assert min(e["seconds"]) > 0
            assert e["rate"] == pytest.approx(e["amount"] / np.median(e["seconds"]), rel=1e-12)
        assert row["machine"]["cpu"]
        assert row["settings"]["threads"] == 1
        assert row["settings"]["device"] == "cpu"


def test_curves(measured):
    exponents = rows_of(measured)["scaling"]["data"]["exponents"]
    assert {e["axis"] for e in exponents} == {"K", "M", "path length"}
    assert len({e["stage"] for e in exponents}) == 8
    assert all(math.isfinite(e["exponent"]) and len(e["points"]) == 2 for e in exponents)


def test_errors_of_the_solvers(measured):
    pytest.importorskip("mpmath")
    errors = {e["name"]: e["error"] for e in rows_of(measured)["hitting_2000"]["entries"]}
    assert errors["block elimination (GTH)"] < 1e-12
    assert errors["SciPy spsolve"] > 1e-9  # ε = 1e-12: the answer of LU is known to be wrong


def test_truth_of_the_solvers():
    """Against elimination in 60 digits of a chain small enough for it."""
    mpmath = pytest.importorskip("mpmath")
    graph, target = hitting.circulant(4, 6)
    n = graph.n_states
    mpmath.mp.dps = 60
    P = mpmath.matrix(n, n)
    for (x, y), p in np.ndenumerate(graph.kernel()):
        P[x, y] = mpmath.mpf(float(p)) if x != y else mpmath.mpf(0)
    rest = [x for x in range(n) if x not in set(target.tolist())]
    system = mpmath.matrix(len(rest), len(rest))
    for i, x in enumerate(rest):
        for j, y in enumerate(rest):
            system[i, j] = -P[x, y] if i != j else mpmath.fsum(P[x, z] for z in range(n))
    exact = mpmath.lu_solve(system, mpmath.ones(len(rest), 1))
    found = hitting.truth(graph, target)
    assert found[rest] == pytest.approx([float(v) for v in exact], rel=1e-15)
    assert (found[target] == 0).all()


def test_turns_interleave_and_the_first_does_not_count():
    order = []
    works = [Work("a", lambda: order.append("a"), 6.0), Work("b", lambda: order.append("b"))]
    entries = race(works, Settings(runs=3))
    assert order == ["a", "b"] * 4
    assert [len(e["seconds"]) for e in entries] == [3, 3]


def test_marks_and_ratios():
    row = Benchmark("walks", "r", "", "steps", [timing.summary(Work("ours", None, 12.0, True), [2.0, 1.0, 3.0])])
    row.entries.append(timing.summary(Work("peer", None, 1.0), [1.0, 4.0, 0.5]))
    assert row.entries[0]["quartiles"] == [1.5, 2.5]
    assert row.ratio("ours", "peer") == 6.0
    assert row.ratio("ours", "absent") is None
    assert Mark("", 6.0, 6.0).met
    assert not Mark("", 6.0, 7.0).met
    assert Mark("", 6.0, 7.0, at_least=False).met
    assert Mark("", None, 7.0).met is None


def test_missing_peers_are_skipped_with_a_word(tmp_path):
    skipped = []
    assert timing.peer("no_such_library.part", skipped) is None
    assert timing.load_nanogpt(Settings(), skipped) is None
    assert "no_such_library" in skipped[0]
    assert "mcot_torch[bench]" in skipped[0]
    assert "--nanogpt" in skipped[1]
    with pytest.raises(timing.InputError, match=r"no model\.py there"):
        timing.load_nanogpt(Settings(nanogpt=tmp_path), skipped)


def test_all_keeps_what_is_there_and_goes_on_after_a_failure(tmp_path, monkeypatch, capsys):
    calls = []

    def fine(settings):
        calls.append("fine")
        return Benchmark("walks", "fine", "a row", "steps", race([Work("x", lambda: None, ours=True)], settings))

    def broken(settings):
        calls.append("broken")
        raise RuntimeError("a peer fell over")

    monkeypatch.setattr(run, "STAGES", ("walks",))
    monkeypatch.setattr("benchmarks.walks.ROWS", {"broken": broken, "fine": fine})
    words = ["all", "--quick", "--out", str(tmp_path)]
    assert run.main(words) == 1
    assert run.main(words) == 1
    assert calls == ["broken", "fine", "broken"]
    assert "fine: kept" in capsys.readouterr().out
    assert run.main([*words, "--again"]) == 1
    assert calls[3:] == ["broken", "fine"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["walks", "--runs", "3"], "medians need at least 5"),
        (["walks", "--threads", "0"], "--threads is 0"),
        (["walk"], "invalid choice"),
    ],
)
def test_bad_command_lines(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run.main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["hitting", "large"])
def test_what_runs_on_the_cpu_is_not_saved_as_of_a_gpu(stage, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert run.main([stage, "--device", "cuda", "--quick", "--out", str(tmp_path)]) == 0
    assert "--device cpu" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_cuda(capsys):
    assert run.main(["walks", "--device", "cuda"]) == 2
    assert "--device cpu" in capsys.readouterr().err


def test_the_page_tells_the_rows(measured, tmp_path, capsys):
    assert run.main(["docs", "--out", str(tmp_path / "none")]) == 2
    assert run.main(["docs", "--out", str(measured)]) == 2  # quick ones
    assert "--quick" in capsys.readouterr().err
    for name, row in rows_of(measured).items():
        row["settings"]["quick"] = False
        (tmp_path / "full" / "cpu").mkdir(parents=True, exist_ok=True)
        (tmp_path / "full" / "cpu" / f"{name}.json").write_text(json.dumps(row))
    page = documentation.write(tmp_path / "full", tmp_path).read_text()
    assert "No row of this page is from a GPU" in page
    for name, names in ENTRIES.items():
        assert f"`{name}`" in page
        assert all(entry in page for entry in names)
    row = rows_of(measured)["walks"]
    assert row["machine"]["cpu"] in page
    for mark in row["marks"]:
        assert f"| {mark['text']} | {timing.value(mark)} | {timing.verdict(mark)} |" in page
    assert (tmp_path / "docs" / "figures" / "benchmarks_scaling.png").stat().st_size > 10_000


def test_peers_of_ppo_learn():
    """The peers do the work they are timed for: both raise what is rewarded."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    agent, rewarded = ppo.ActorCritic(6), torch.zeros(6, 6, dtype=torch.bool)
    rewarded[:, 2] = True
    states = torch.arange(6)
    before = agent(states)[0].exp()[:, 2].mean()
    for _ in range(12):
        ppo.plain_loop(agent, rewarded, 2048, draw)
    assert float(agent(states)[0].exp()[:, 2].mean()) > 2 * float(before)


@pytest.mark.slow
def test_rows_with_processes_of_their_own(tmp_path):
    for name in ("hitting_100000", "hitting_1000000"):
        row = hitting.ROWS[name](Settings(quick=True, runs=2))
        assert row.entries[0]["peak_gib"] > 0.05
    row = large.stages(Settings(quick=True))
    assert [e["name"].split(":")[0] for e in row.entries[3:6]] == ["pretraining", "search", "PPO"]
    assert all(0.05 < e["peak_gib"] < 24 for e in row.entries)
    assert run.main(["pipeline", "--quick", "--out", str(tmp_path)]) == 0
    row = rows_of(tmp_path)["pipeline"]
    names = [e["name"] for e in row["entries"]]
    assert names[:3] == ["python train.py", "of which pretrain", "of which search"]
    profile = row["data"]["profile"]
    assert any(part["where"] == "torch" for part in profile["packages"])
    assert any("run_backward" in part["where"] for part in profile["functions"])
    for parts in profile.values():
        own = [part["own"] for part in parts]
        assert own == sorted(own, reverse=True)
        assert 0 < sum(own) < 300

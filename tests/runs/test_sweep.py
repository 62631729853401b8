"""Sweeps: which runs a file asks for, how they are carried out, what is told at the end."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mcot_torch.cli.sweep import main
from mcot_torch.report.figures.parallel import parallel_figure
from mcot_torch.runs.folders import find_runs
from mcot_torch.runs.sweeps import engines
from mcot_torch.runs.sweeps.spec import read_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """Writes a file in an empty working directory and gives its path."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        Path("sweep.yaml").write_text(text)
        return Path("sweep.yaml")

    return write


# ---- the file ---------------------------------------------------------------------------------------------------


def test_runs_are_list_times_grid_times_samples(spec):
    sweep = read_spec(
        spec(
            "name: many\nset: {ppo.rounds: 3}\ngrid: {graph.epsilon: [0.01, 0.02], seed: [0, 1]}\n"
            "list: [{reasoner.kind: linear}, {reasoner.kind: transformer, reasoner.width: 32}]\n"
            "random: {samples: 2, seed: 5, draw: {ppo.learning_rate: {log: [1.0e-4, 1.0e-2]}, ppo.epochs: {integers: [2, 3]}}}"
        )
    )
    assert sweep.folder == Path("runs/many")
    assert len(sweep.runs) == 2 * 4 * 2
    assert sweep.keys == (
        "reasoner.kind", "graph.epsilon", "seed", "ppo.learning_rate", "ppo.epochs", "reasoner.width"
    )  # fmt: skip
    assert len({run.name for run in sweep.runs}) == 16
    assert {run.config.ppo.rounds for run in sweep.runs} == {3}
    for run in sweep.runs:
        assert run.config.run_dir == f"runs/many/{run.name}"
        assert 1e-4 <= run.config.ppo.learning_rate <= 1e-2
        assert run.config.ppo.epochs in (2, 3)
        assert run.settings["graph.epsilon"] == run.config.graph.epsilon
        assert re.fullmatch(r"[\w.=+-]+", run.name)
    assert len({run.config.ppo.learning_rate for run in sweep.runs}) == 2
    assert read_spec(Path("sweep.yaml")) == sweep  # the draws are those of the seed


def test_a_name_depends_on_its_own_run_only(spec):
    few = read_spec(spec("grid: {seed: [0, 1]}")).runs
    more = read_spec(spec("grid: {seed: [7, 0, 1]}")).runs
    assert [run.name for run in few] == ["seed=0", "seed=1"] == [run.name for run in more[1:]]
    jumps = read_spec(spec("grid: {graph.jumps: [[1, 2], [1, -1]]}")).runs  # brackets are no characters of a name
    assert len({run.name for run in jumps}) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it must hold lines such as 'grid:'; see configs/sweep.yaml"),
        ("grid: [", r"sweep.yaml is not readable YAML: .*"),
        ("gird: {seed: [0]}", "unknown key gird; did you mean grid\\?"),
        ("name: x", "nothing varies; give grid, list or random"),
        ("grid: {seed: 3}", r"grid.seed is 3; it must be a list of values, such as \[0, 1\]"),
        ("grid: {seed: []}", r"grid.seed is \[\]; it must be a list of values, such as \[0, 1\]"),
        ("grid: {graph: {epsilon: [0.1]}}", "grid.graph is a section; write its settings with dots, such as graph.epsilon"),
        ("grid: {graph.epsilom: [0.1]}", "unknown key --graph.epsilom; did you mean --graph.epsilon\\?"),
        ("grid: {ppo.clip: [0.2, 1.5]}", r"ppo.clip is 1.5; it must be in \(0, 1\)"),
        ("grid: {seed: [zero]}", "seed is zero; it must be an integer"),
        ("grid: {seed: [1, 1]}", "seed=1 stands there twice; every run must differ from the others"),
        ("grid: {run_dir: [a]}", "grid sets run_dir, which a sweep chooses for each run"),
        ("set: {seed: 1}\ngrid: {seed: [1]}", "seed stands in two of set, grid and random; keep one"),
        ("list: {seed: 1}", r"list is {'seed': 1}; it must be a list of settings, .*"),
        ("config: none.yaml\ngrid: {seed: [1]}", r"none.yaml does not exist; .*"),
        ("random: {samples: 0, draw: {seed: {choice: [1]}}}", "random.samples is 0; it must be an integer of at least 1"),
        ("random: {samples: 2}", r"random is {'samples': 2}; it must hold samples, seed and draw"),
        ("random: {draw: {seed: 1}}", r"random.draw.seed is 1; it must be one of uniform, log, integers, choice .*"),
        ("random: {draw: {ppo.clip: {uniform: [0.4, 0.1]}}}", r"random.draw.ppo.clip is .*; uniform takes two numbers, .*"),
        ("random: {draw: {ppo.clip: {log: [0, 0.1]}}}", r"random.draw.ppo.clip is .*; log takes numbers above 0"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file_are_told_in_one_line(text, message, spec, capsys):
    path = spec(text)
    assert main([str(path)]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(rf"python -m mcot_torch.sweep: error: (sweep.yaml: )?{message}\n", err)
    assert list(Path().iterdir()) == [path]


def test_other_mistakes(spec, capsys, monkeypatch):
    assert main(["nothing.yaml"]) == 2
    assert "nothing.yaml does not exist; it must be a YAML file such as configs/sweep.yaml" in capsys.readouterr().err
    path = str(spec("grid: {seed: [0]}"))
    assert main([path, "--jobs", "0"]) == 2
    assert "jobs is 0; it must be at least 1" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([path, "--engine", "ray"]) == 2
    assert 'pip install "mcot_torch[sweep]"' in capsys.readouterr().err


# ---- carrying it out --------------------------------------------------------------------------------------------

# stands in for train.py: leaves what a run leaves, with a hitting time that says which run it was
FAKE = """\
import json, sys
from pathlib import Path
import yaml
config = yaml.safe_load(open(sys.argv[-1]))
folder = Path(config["run_dir"])
folder.mkdir(parents=True, exist_ok=True)
with open("calls", "a") as calls:
    print(folder.name, file=calls)
if config["seed"] == 1 and not Path("mended").exists():
    print("train.py: error: seed 1 is not to my taste")
    sys.exit(2)
(folder / "config.yaml").write_text(open(sys.argv[-1]).read())
for stage in config["stages"]:
    (folder / stage).mkdir(exist_ok=True)
    (folder / stage / "metrics.json").write_text('{"history": [], "transitions": 9, "edges": 3, "n_clusters": 3}')
base = 10 / config["graph"]["epsilon"]
def row(time):
    return {"hitting_time_exact": time, "hitting_time_sampled": {"mean": 4.5}, "speedup": base / (time or 4.5), "row_tv_max": 0.1,
            "hard_step_probability": {"mean": 0.01}, "hard_step_recall": None, "hard_step_precision": None}
models = {"base": row(base), "pretrained": row(base), "guided": {**row(9.0), "hard_step_recall": 0.5},
          "tuned": row(7.0 + config["seed"]), "student": row(None)}
result = {"models": models, "seconds": {"pretrain": 1.5, "ppo": 1.0}}
if not Path("an older version").exists():
    result["survival"] = {"tuned": {"times": [1, 9], "exact": [1.0, 0.1]}}
(folder / "evaluation.json").write_text(json.dumps(result))
"""


@pytest.fixture
def fake_train(tmp_path, monkeypatch):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(engines, "child_command", lambda prog, words, entry: [sys.executable, str(script), *words])


@pytest.mark.slow
def test_table_failure_and_resume(spec, fake_train, capsys):
    path = str(spec("name: s\ngrid: {graph.epsilon: [0.01, 0.02], seed: [0, 1, 2]}"))
    assert main([path, "--jobs", "2"]) == 1
    out = capsys.readouterr().out
    assert "6 runs; 2 at a time, engine local" in out
    assert out.count("FAILED: train.py: error: seed 1 is not to my taste") == 2
    assert "2 of 6 runs failed; what they printed is in runs/s/logs" in out
    assert len(Path("calls").read_text().split()) == 6

    with open("runs/s/sweep.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["graph.epsilon"], row["seed"], row["state"]) for row in rows] == [
        (e, s, "failed" if s == "1" else "done") for e in ("0.01", "0.02") for s in "012"
    ]
    assert [row["base_time"] for row in rows] == ["1000.0", "", "1000.0", "500.0", "", "500.0"]
    assert float(rows[0]["tuned_speedup"]) == 1000 / 7
    assert rows[0]["student_time"] == "4.5"  # no exact value: the sampled mean
    assert (rows[0]["hard_step_recall"], rows[0]["seconds"]) == ("0.5", "2.5")
    table = Path("runs/s/sweep.md").read_text().splitlines()
    assert (
        table[0]
        == "| epsilon | seed | state | base | tuned | tuned: speed-up | tuned: TV max | student: speed-up | recall | seconds |"
    )
    assert table[2] == "| 0.01 | 0 | done | 1,000 | 7 | 143 | 0.1 | 222 | 0.5 | 2.5 |"
    assert table[3] == "| 0.01 | 1 | failed | – | – | – | – | – | – | – |"
    assert Path("runs/s/parallel_coordinates.png").stat().st_size > 10_000

    Path("mended").touch()
    assert main([path]) == 0
    out = capsys.readouterr().out
    assert "6 runs, 4 of them done already" in out
    assert len(Path("calls").read_text().split()) == 8
    assert "state" not in Path("runs/s/sweep.md").read_text().splitlines()[0]
    assert main([path]) == 0
    assert len(Path("calls").read_text().split()) == 8


def test_finished_runs_are_compared(spec, fake_train, capsys):
    path = str(spec("name: s\ngrid: {graph.epsilon: [0.01, 0.02], seed: [0, 1, 4]}"))
    assert main([path, "--jobs", "2"]) == 1
    line = "compared runs/s/compare/compare.html: 4 runs in 2 groups that differ in more than the seed\n"
    assert capsys.readouterr().out.count(line) == 1
    assert sorted(p.name for p in Path("runs/s/compare").iterdir()) == [
        f"compare.{ending}" for ending in ("csv", "html", "md", "png", "tex")
    ]
    with open("runs/s/compare/compare.csv") as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["metric"]) == ("tuned", "time to the target")]
    assert [row["group"] for row in rows] == ["graph.epsilon=0.01", "graph.epsilon=0.02"]
    assert [(row["iqm"], row["low"], row["high"]) for row in rows] == [("9.0", "7.0", "11.0")] * 2  # seeds 0 and 4
    assert rows[0]["folders"] == "runs/s/epsilon=0.01_seed=0 runs/s/epsilon=0.01_seed=4"
    found = find_runs(["runs/s/*"])  # what evaluate.py compares: neither configs/ nor logs/ nor compare/
    assert sorted(p.name for p in found) == [f"epsilon={e}_seed={s}" for e in ("0.01", "0.02") for s in (0, 4)]


def test_what_is_not_compared(spec, fake_train, capsys):
    path = str(spec("name: s\nset: {graph.epsilon: 0.01}\ngrid: {seed: [0, 1]}"))
    assert main([path]) == 1  # one of the two fails
    assert "compared" not in capsys.readouterr().out
    Path("an older version").touch()
    path = str(spec("name: old\nset: {graph.epsilon: 0.01}\ngrid: {seed: [0, 2]}"))
    assert main([path]) == 0
    assert "not compared: runs/old/seed=0/evaluation.json says nothing of survival curves" in capsys.readouterr().out
    assert not list(Path().glob("runs/*/compare"))
    Path("an older version").unlink()
    path = str(spec("name: seeds\nset: {graph.epsilon: 0.01}\ngrid: {seed: [0, 2]}"))
    assert main([path]) == 0
    assert "compared runs/seeds/compare/compare.html: 2 runs in 1 group of seeds" in capsys.readouterr().out
    assert Path("runs/seeds/compare/compare.md").read_text().splitlines()[2].startswith("| seeds | base | 2 |")


def test_a_run_of_other_settings_is_not_taken_for_done(spec, fake_train, capsys):
    path = str(spec("name: s\nset: {ppo.rounds: 3, graph.epsilon: 0.01}\ngrid: {seed: [0, 2]}"))
    assert main([path]) == 0
    spec("name: s\nset: {ppo.rounds: 4, graph.epsilon: 0.01}\ngrid: {seed: [0, 2]}")
    sweep = read_spec(Path("sweep.yaml"))
    assert not any(engines.is_done(run) for run in sweep.runs)  # train.py then refuses the folder, and says why


@pytest.mark.slow
def test_interruption_ends_the_runs(spec, tmp_path):
    """SIGTERM to the sweep: its runs end too, and nothing is called done."""
    spec("name: s\nconfig: none\ngrid: {seed: [0]}")
    (tmp_path / "none").write_text("seed: 3\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code = (
        "import sys, time; from mcot_torch.runs.sweeps import engines; from mcot_torch.cli.sweep import main\n"
        'sleep = \'import os, time; open("pid", "w").write(str(os.getpid())); time.sleep(600)\'\n'
        "engines.child_command = lambda prog, words, entry: [sys.executable, '-c', sleep]\n"
        "sys.exit(main(['sweep.yaml']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
    process.terminate()
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert err.endswith("interrupted; the same command continues where this one stopped\n")
    assert not Path(f"/proc/{pid.read_text()}").exists()


TINY = """\
name: tiny
config: base.yaml
grid: {seed: [0, 1], search.rounds: [40, 2]}
"""
BASE = """\
graph: {n_clusters: 4, cluster_size: 5, epsilon: 0.02, epsilon_max: 0.1}
reasoner: {kind: linear}
pretrain: {steps: 200, steps_after_cut: 100, transitions: 200000}
ppo: {rounds: 3, epochs: 2, transitions: 4000, path_length: 16}
distill: {transitions: 200000, path_length: 64, steps: 60}
evaluation: {walks: 20, figures: false}
trainer: {accelerator: cpu, progress: false}
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_engines_run_train(engine, spec, tmp_path):
    """Real runs: two end, two find nothing in two rounds of search and say so; evaluate.py works on a finished one."""
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    spec(TINY)
    Path("base.yaml").write_text(BASE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(*command):
        return subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    first = run("-m", "mcot_torch.sweep", "sweep.yaml", "--engine", engine, "--jobs", "2")
    assert first.returncode == 1
    assert first.stdout.count("FAILED: train.py: error: search found no hard step") == 2
    with open("runs/tiny/sweep.csv") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert sorted(name for name in rows if rows[name]["state"] == "done") == ["seed=0_rounds=40", "seed=1_rounds=40"]
    folder = Path("runs/tiny/seed=1_rounds=40")
    exact = json.loads((folder / "evaluation.json").read_text())["models"]["tuned"]["hitting_time_exact"]
    assert float(rows["seed=1_rounds=40"]["tuned_time"]) == exact
    assert run(str(ROOT / "evaluate.py"), str(folder)).returncode == 0
    again = run("-m", "mcot_torch.sweep", "sweep.yaml", "--engine", engine, "--jobs", "2")
    assert "4 runs, 2 of them done already" in again.stdout


# ---- the figure -------------------------------------------------------------------------------------------------


def test_parallel_coordinates():
    """Levels stand evenly, numbers in proportion, a wide range by its logarithm; a gap where there is no value."""
    rows = [
        {"kind": "a", "seed": 0, "x": 1.0, "y": 1.0},
        {"kind": "b", "seed": 5, "x": 2.0, "y": 10.0},
        {"kind": "a", "seed": 7, "x": 4.0, "y": None},
        {"kind": "a", "seed": 7, "x": 3.0, "y": 100.0},
    ]
    axes = parallel_figure(rows, "y", levels=["seed"]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["kind", "seed", "x", "y"]
    lines = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) > 2]
    heights = [[lines[3 * i][0], *(lines[3 * i + j][-1] for j in range(3))] for i in range(4)]
    assert heights[0] == pytest.approx([0.25, 1 / 6, 0, 0])
    assert heights[1] == pytest.approx([0.75, 0.5, 1 / 3, 0.5])
    assert heights[2] == pytest.approx([0.25, 5 / 6, 1, float("nan")], nan_ok=True)
    assert heights[3] == pytest.approx([0.25, 5 / 6, 2 / 3, 1])

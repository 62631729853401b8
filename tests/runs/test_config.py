"""The configuration: every mistake is one line that names key, value and rule; YAML and dataclasses say the same."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from mcot_torch.errors import InputError
from mcot_torch.graphs import build_graph, build_task
from mcot_torch.runs.config import (
    _DOMAINS,
    STAGES,
    Config,
    EvaluateOptions,
    _flat,
    check,
    config_hash,
    differences,
    load_config,
    parse_evaluate,
    parse_train,
    resolve_run_dir,
    to_yaml,
)
from mcot_torch.system.arguments import _key_types

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(set((ROOT / "configs").glob("*.yaml")) - {ROOT / "configs/sweep.yaml"})
LINEAR = "--reasoner.kind=linear"

BAD_COMMAND_LINES = [
    # keys that do not exist
    ("--graph.n_cluster 8", "unknown key --graph.n_cluster; did you mean --graph.n_clusters?"),
    ("--graph.n_cluster=8", "unknown key --graph.n_cluster; did you mean --graph.n_clusters?"),
    ("--grap.n_cluster 8", "unknown key --grap.n_cluster; did you mean --graph.n_clusters?"),
    ("--epsilon .1", "unknown key --epsilon; did you mean --graph.epsilon?"),
    (
        "--learning_rate 1",
        "unknown key --learning_rate; did you mean --pretrain.learning_rate, --ppo.learning_rate or --distill.learning_rate?",
    ),
    ("--confg a.yaml", "unknown key --confg; did you mean --config?"),
    ("--print-config", "unknown key --print-config; did you mean --print_config?"),
    ("--ppo.lr 1", "unknown key --ppo.lr; --help lists them all"),
    ("--graph 3", "--graph takes a YAML file of that section alone; single settings are --graph.KEY value"),
    ("ppo", "unknown argument ppo; settings are given as --key value"),
    ("-s 3", "unknown argument -s; settings are given as --key value"),
    # no value, or one of the wrong type
    ("--graph.epsilon", "--graph.epsilon lacks its value, a number or null"),
    ("--stages", "--stages lacks its value, a list of words"),
    ("--config", "--config lacks its value, a file"),
    ("--seed 1.5", "seed is 1.5; it must be an integer"),
    ("--seed true", "seed is True; it must be an integer"),
    ("--seed null", "seed is None; it must be an integer"),
    ("--graph.n_clusters ten", "graph.n_clusters is ten; it must be an integer"),
    ("--search.rounds x", "search.rounds is x; it must be an integer or null"),
    ("--ppo.clip small", "ppo.clip is small; it must be a number"),
    ("--ppo.gamma nan", "ppo.gamma is nan; it must be a number or null"),
    ("--graph.jumps 1,x", "graph.jumps holds x; it must be a list of integers"),
    ("--overwrite perhaps", "overwrite is perhaps; it must be true or false"),
    ("--ppo.form clipped", "ppo.form is clipped; it must be clip or sign"),
    ("--graph.cluster ring", "graph.cluster is ring; it must be random_regular, complete or cycle"),
    ("--trainer.accelerator tpu", "trainer.accelerator is tpu; it must be auto, cpu or cuda"),
    # numbers out of bounds
    ("--seed -1", "seed is -1; it must be at least 0"),
    ("--reasoner.window 0", "reasoner.window is 0; it must be from 1 to 65,536"),
    ("--reasoner.width -64", "reasoner.width is -64; it must be at least 1"),
    ("--pretrain.steps 0", "pretrain.steps is 0; it must be at least 1"),
    ("--pretrain.steps_after_cut -1", "pretrain.steps_after_cut is -1; it must be at least 0"),
    ("--pretrain.threshold 0", "pretrain.threshold is 0.0; it must be in (0, 1)"),
    ("--pretrain.threshold 1", "pretrain.threshold is 1.0; it must be in (0, 1)"),
    ("--pretrain.transitions 0", "pretrain.transitions is 0; it must be at least 1"),
    ("--pretrain.batch_size 0", "pretrain.batch_size is 0; it must be at least 1"),
    ("--pretrain.learning_rate 0", "pretrain.learning_rate is 0.0; it must be above 0"),
    ("--pretrain.beta2 1", "pretrain.beta2 is 1.0; it must be in [0, 1)"),
    ("--search.rounds 0", "search.rounds is 0; it must be at least 1"),
    ("--search.walks -3", "search.walks is -3; it must be at least 1"),
    ("--search.min_votes 0", "search.min_votes is 0; it must be at least 1"),
    ("--ppo.minibatches 0", "ppo.minibatches is 0; it must be at least 1"),
    ("--ppo.clip 0", "ppo.clip is 0.0; it must be in (0, 1)"),
    ("--ppo.clip 1", "ppo.clip is 1.0; it must be in (0, 1)"),
    ("--ppo.gamma 1.1", "ppo.gamma is 1.1; it must be in [0, 1]"),
    ("--ppo.gae_lambda -0.1", "ppo.gae_lambda is -0.1; it must be in [0, 1]"),
    ("--ppo.learning_rate -1", "ppo.learning_rate is -1.0; it must be above 0"),
    ("--ppo.kl_coefficient 0", "ppo.kl_coefficient is 0.0; it must be above 0"),
    ("--ppo.entropy_coefficient -1", "ppo.entropy_coefficient is -1.0; it must be at least 0"),
    ("--ppo.target_kl 0", "ppo.target_kl is 0.0; it must be above 0"),
    ("--distill.label_walks 0", "distill.label_walks is 0; it must be at least 1"),
    ("--distill.beta -1", "distill.beta is -1.0; it must be at least 0"),
    ("--evaluation.walks 1", "evaluation.walks is 1; it must be at least 2, or no interval can be given"),
    ("--evaluation.horizon_factor 0", "evaluation.horizon_factor is 0.0; it must be above 0"),
    ("--trainer.threads 0", "trainer.threads is 0; it must be from 1 to 1,024"),
    ("--trainer.save_every 0", "trainer.save_every is 0.0; it must be above 0"),
    # NaN and infinity
    ("--ppo.clip .nan", "ppo.clip is nan; it must be a finite number"),
    ("--graph.epsilon .inf", "graph.epsilon is inf; it must be a finite number"),
    ("--graph.weights [1,.nan]", "graph.weights is nan; it must be a finite number"),
    ("--trainer.save_every .inf", "trainer.save_every is inf; it must be a finite number"),
    ("--distill.beta=-.inf", "distill.beta is -inf; it must be a finite number"),
    # names
    ("--name a/b", "name is 'a/b'; it must be a plain folder name, such as my-run: set run_dir for a folder elsewhere"),
    ("--name ..", "name is '..'; it must be a plain folder name, such as my-run: set run_dir for a folder elsewhere"),
    ("--name=", "name is ''; it must be a plain folder name, such as my-run: set run_dir for a folder elsewhere"),
    ("--run_dir=", "run_dir is ''; it must be a folder, or null for runs/<name>"),
    # stages
    ("--stages=[]", "stages is empty; choose from pretrain,search,ppo,distill"),
    ("--stages pretrain,serach", "stages is pretrain,serach, but there is no stage 'serach'; did you mean search?"),
    ("--stages all", "stages is all, but there is no stage 'all'; choose from pretrain,search,ppo,distill"),
    (
        "--stages search,pretrain",
        "stages is search,pretrain; each may stand there once, in the order pretrain,search,ppo,distill",
    ),
    (
        "--stages pretrain,pretrain",
        "stages is pretrain,pretrain; each may stand there once, in the order pretrain,search,ppo,distill",
    ),
    (
        "--stages pretrain,ppo",
        "stages is pretrain,ppo, but ppo needs search; name it too: what is finished is not run again",
    ),
    ("--stages ppo", "stages is ppo, but ppo needs search; name it too: what is finished is not run again"),
    (
        "--stages pretrain,search,distill",
        "stages is pretrain,search,distill, but distill.teacher is tuned, which needs ppo; add ppo or use "
        "distill.teacher: pretrained",
    ),
    # combinations
    (
        f"{LINEAR} --reasoner.window 2",
        "reasoner.window is 2, but the linear reasoner sees the current state only; use 1, or reasoner.kind: transformer",
    ),
    ("--reasoner.width 60", "reasoner.width is 60; it must be a multiple of 2 * reasoner.n_heads = 8"),
    (
        "--pretrain.optimizer gd",
        "pretrain.optimizer is gd, whose default rate N is for the linear reasoner; set pretrain.learning_rate, or use "
        "reasoner.kind: linear",
    ),
    (
        "--pretrain.data pairs --reasoner.window 4",
        "pretrain.data is pairs, but a reasoner.window of 4 learns from paths; use pretrain.data: paths",
    ),
    (
        "--search.cover_steps 50 --search.max_steps 50",
        "search.cover_steps is 50; it must be below search.max_steps = 50",
    ),
    ("--search.rounds 1", "search.min_votes is 2; it must be at most search.rounds = 1, else nothing counts"),
    (
        "--ppo.form sign",
        "ppo.form is sign, the paper's form for the linear reasoner; use reasoner.kind: linear, or ppo.form: clip",
    ),
    (
        f"{LINEAR} --ppo.form sign --ppo.reward outcome",
        "ppo.reward is outcome, but ppo.form sign knows the process reward only; use ppo.form: clip",
    ),
]

BAD_FILES = [
    ("graph:\n  n_cluster: 4\n", "F line 2: unknown key graph.n_cluster; did you mean graph.n_clusters?"),
    ("seed: 1\nppo:\n  form: clip\n  cilp: .1\n", "F line 4: unknown key ppo.cilp; did you mean ppo.clip?"),
    ("grpah:\n  n_clusters: 4\n", "F line 1: unknown key grpah; did you mean graph?"),
    ("epsilon: 0.1\n", "F line 1: unknown key epsilon; did you mean graph.epsilon?"),
    ("config: other.yaml\n", "F line 1: unknown key config; --help lists them all"),
    ("seed: 1\nseed: 2\n", "F line 2: seed stands there twice; keep one"),
    ("graph: 3\n", "F line 1: graph is a section; its settings follow on lines of their own, indented"),
    ("graph:\n", "F line 1: graph is a section; its settings follow on lines of their own, indented"),
    ("graph:\n  n_clusters: ten\n", "F: graph.n_clusters is ten; it must be an integer"),
    ("graph:\n  n_clusters: 4.5\n", "F: graph.n_clusters is 4.5; it must be an integer"),
    ("graph:\n  jumps: 3\n", "F: graph.jumps holds 3; it must be a list of integers"),
    ("ppo:\n  clip: [1]\n", "F: ppo.clip is [1]; it must be a number"),
    ("name: 3\n", "F: name is 3; it must be text"),
    ("trainer:\n  progress: often\n", "F: trainer.progress is often; it must be true or false"),
    ("graph: [1, 2\n", "F line 2: not YAML: expected ',' or ']', but got '<stream end>'"),
    ("graph:\n\tn_clusters: 4\n", "F line 2: not YAML: found character '\\t' that cannot start any token"),
    ("", "F: it must hold lines such as 'seed: 0'; see configs/default.yaml"),
    ("hello\n", "F: it must hold lines such as 'seed: 0'; see configs/default.yaml"),
    ("- seed: 0\n", "F: it must hold lines such as 'seed: 0'; see configs/default.yaml"),
    ("ppo:\n  clip: 2\n", "ppo.clip is 2.0; it must be in (0, 1)"),
]


@pytest.mark.parametrize(("line", "message"), BAD_COMMAND_LINES)
def test_bad_command_line(line, message):
    with pytest.raises(InputError) as error:
        parse_train(line.split())
    assert str(error.value) == message


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_bad_file(text, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        parse_train(["--config", str(file)])
    assert str(error.value) == re.sub(r"^F\b", str(file), message)


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml does not exist; --config takes a YAML file, such as"):
        parse_train([f"--config={tmp_path / 'none.yaml'}"])
    with pytest.raises(InputError, match=r" cannot be read: Is a directory$"):
        parse_train(["--config", str(tmp_path)])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.yaml is not a text file in UTF-8; --config takes a YAML file$"):
        parse_train(["--config", str(tmp_path / "binary.yaml")])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "RUN is missing; see --help"),
        ("a --wals 3", "unknown key --wals; did you mean --walks?"),
        ("a --walks 1", "walks is 1; it must be at least 2"),
        ("a --walks many", "walks is many; it must be an integer or null"),
        ("a --seed -1", "seed is -1; it must be at least 0"),
        ("a --figures some", "figures is some; it must be true or false or null"),
        ("a --device tpu", "device is tpu; it must be auto, cpu or cuda or null"),
    ],
)
def test_bad_evaluate_command_line(line, message):
    with pytest.raises(InputError) as error:
        parse_evaluate(line.split())
    assert str(error.value) == message


def test_evaluate_options():
    assert parse_evaluate(["runs/a"]) == EvaluateOptions(["runs/a"])
    assert parse_evaluate(["a", "--seed", "1", "b*", "c d"]) == EvaluateOptions(["a", "b*", "c d"], seed=1)
    expected = EvaluateOptions(["runs/a"], walks=50, seed=3, figures=False, device="cpu")
    assert parse_evaluate(["--walks", "50", "runs/a", "--seed=3", "--figures", "false", "--device", "cpu"]) == expected


def test_command_line_overrides_files_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1\nname: a\nppo:\n  clip: 0.1\n  epochs: 3\n")
    (tmp_path / "b.yaml").write_text("name: b\nppo:\n  epochs: 4\n")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    config = parse_train([*files, "--seed", "2", "--ppo.target_kl=1e-2"])
    assert (config.seed, config.name, config.ppo.clip, config.ppo.epochs, config.ppo.target_kl) == (
        2,
        "b",
        0.1,
        4,
        0.01,
    )


def test_forms_of_lists_and_switches():
    assert parse_train([]).stages == list(STAGES)
    for line in ("--stages pretrain,search", "--stages=pretrain,search", "--stages [pretrain,search]"):
        assert parse_train(line.split()).stages == ["pretrain", "search"]
    assert parse_train(["--graph.jumps", "-1,2"]).graph.jumps == [-1, 2]
    assert parse_train(["--graph.weights", "null"]).graph.weights is None
    assert parse_train(["--overwrite", "--seed", "1"]).overwrite
    assert parse_train(["--seed", "1", "--overwrite"]).overwrite
    assert not parse_train(["--overwrite", "false"]).overwrite
    teacher = ["--distill.teacher", "pretrained"]
    assert parse_train(["--stages", "pretrain,search,distill", *teacher]).stages == ["pretrain", "search", "distill"]


def test_every_number_has_a_domain():
    """GraphConfig's are checked where the graph is built."""
    numbers = {
        key
        for key, kind in _key_types(Config).items()
        if not key.startswith("graph.") and {int, float} & set(getattr(kind, "__args__", (kind,)))
    }
    listed = [key for _, _, keys in _DOMAINS for key in keys.split()]
    assert sorted(listed) == sorted(numbers)


def test_check_catches_what_never_was_parsed():
    with pytest.raises(InputError, match=r"^seed is -3; it must be at least 0$"):
        check(replace(Config(), seed=-3))
    check(Config())


def test_default_yaml_is_the_defaults():
    text = (CONFIGS[0].parent / "default.yaml").read_text()
    config = load_config(CONFIGS[0].parent / "default.yaml")
    assert differences(config, Config()) == {}, "configs/default.yaml differs from the dataclasses (there, here)"
    assert config == Config()
    missing = [key for key in _flat(config) if not re.search(rf"^ *{key.rpartition('.')[2]}:", text, re.MULTILINE)]
    assert missing == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs(path, monkeypatch):
    monkeypatch.chdir(path.parent.parent)
    config = load_config(path)
    assert config.name == path.stem
    if path.stem != "gpu":
        build_task(config.task, build_graph(config.graph))


@pytest.mark.parametrize("name", ["default", "1e3", "null", "yes", "007", "2024-01-01", "é", ".5", "-x", "a # b", "'"])
def test_yaml_round_trip(name, tmp_path):
    config = Config(name=name, stages=["pretrain"], seed=7)
    config.graph.epsilon, config.graph.weights, config.pretrain.learning_rate = 1e-4, [1.0, 2e-6, 3.0], 3e-5
    config.task.start, config.task.target = "state:read the problem", "states:1, 2"
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


def test_identity_of_a_run():
    base = Config()
    assert re.fullmatch(r"[0-9a-f]{16}", config_hash(base))
    same = parse_train(
        [
            "--name",
            "x",
            "--run_dir",
            "y",
            "--stages",
            "pretrain",
            "--overwrite",
            "--evaluation.walks",
            "5",
            "--trainer.threads",
            "2",
        ]
    )
    assert config_hash(same) == config_hash(base)
    assert differences(same, base) == {}
    other = parse_train(["--seed", "1", "--ppo.clip", "0.1"])
    assert config_hash(other) != config_hash(base)
    assert differences(base, other) == {"seed": (0, 1), "ppo.clip": (0.2, 0.1)}


def test_run_dir():
    assert resolve_run_dir(Config()) == Path("runs/default")
    assert resolve_run_dir(Config(name="x", run_dir="/a/b")) == Path("/a/b")


def test_help_and_print_config(capsys, tmp_path):
    with pytest.raises(SystemExit) as done:
        parse_train(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert done.value.code == 0
    assert text.startswith("usage: train.py")
    assert "K, number of clusters of a synthetic family. (type: int, default: 10)" in text
    with pytest.raises(SystemExit) as done:
        parse_train(["--seed", "5", "--print_config"])
    assert done.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "printed.yaml") == Config(seed=5)

"""What evaluate.py and train.py refuse: a run whose pieces do not belong together, crafted files, links out of the folder."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from mcot_torch.errors import InputError
from mcot_torch.graphs import MetastableGraph
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.reasoners import LinearReasoner, Student, TransformerReasoner, load_reasoner, save_reasoner
from mcot_torch.runs.config import config_hash, load_config, parse_train
from mcot_torch.runs.folder import RunFolder
from mcot_torch.runs.loading import load_run
from mcot_torch.runs.pipeline import run
from mcot_torch.system.files import digest, read_json, save_tensors, whole_file, write_text
from mcot_torch.training.state import load_state

WORDS = shlex.split(
    "--graph.n_clusters 4 --graph.cluster_size 4 --graph.cluster complete --graph.epsilon .02 --graph.epsilon_max .1 "
    "--reasoner.kind linear --pretrain.steps 60 --pretrain.steps_after_cut 20 --pretrain.transitions 1000000 --ppo.rounds 2 "
    "--ppo.transitions 1000 --ppo.path_length 10 --distill.transitions 100000 --distill.path_length 20 --distill.steps 20 "
    "--evaluation.walks 2 --evaluation.figures false --trainer.accelerator cpu --trainer.progress false"
)


def train(folder: Path, *words: str) -> Path:
    arguments = [*WORDS, "--run_dir", str(folder), *words]
    return run(parse_train(arguments), ["train.py", *arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the same sizes and different seeds."""
    home = tmp_path_factory.mktemp("runs")
    return train(home / "a"), train(home / "b", "--seed", "1", "--graph.seed", "1")


@pytest.fixture
def mine(runs, tmp_path):
    """A copy of the first run, and the second."""
    return Path(shutil.copytree(runs[0], tmp_path / "mine")), runs[1]


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        load_run(RunFolder(folder), "cpu")
    message = str(error.value)
    assert "\n" not in message
    return message


def forge(folder: Path) -> None:
    """Make the manifest's digests those of the files that lie there: only then what they hold is looked at."""
    manifest = read_json(folder / "manifest.json")
    for stage, pieces in manifest["pieces"].items():
        manifest["pieces"][stage] = {file: digest(folder / stage / file) for file in pieces}
    (folder / "manifest.json").write_text(json.dumps(manifest))


# ---- belonging ------------------------------------------------------------------------------------------------------


def test_a_run_as_it_was_made_is_read(mine):
    config, problem, models = load_run(RunFolder(mine[0]), "cpu")
    assert (config.seed, problem.graph.n_states, models.student.n_states) == (0, 16, 4)
    assert models.pretrained is not None
    assert models.tuned is not None
    assert len(models.prm.edges) == problem.graph.hard.sum()


@pytest.mark.parametrize(
    "piece",
    [
        *("pretrain/model.safetensors", "pretrain/metrics.json", "search/edges.csv", "search/metrics.json"),
        *("ppo/model.safetensors", "distill/model.safetensors", "distill/graph.npz"),
    ],
)
def test_a_piece_of_another_run_is_named(mine, piece):
    folder, other = mine
    assert (folder / piece).read_bytes() != (other / piece).read_bytes()
    shutil.copy(other / piece, folder / piece)
    assert refusal(folder).startswith(f"{folder / piece} is not the file that this run wrote there: its digest is not")


def test_a_missing_piece_is_named(mine):
    folder = mine[0]
    (folder / "ppo" / "model.json").unlink()
    assert refusal(folder).startswith(f"{folder / 'ppo' / 'model.json'} is not the file that this run wrote there")


def test_the_student_of_another_run_is_named(mine):
    folder, other = mine
    shutil.rmtree(folder / "distill")
    shutil.copytree(other / "distill", folder / "distill")
    assert refusal(folder).startswith(f"{folder / 'distill' / 'model.safetensors'} is not the file that this run wrote")


def test_another_graph_is_named(mine):
    folder, other = mine
    shutil.copy(other / "graph.npz", folder / "graph.npz")
    assert refusal(folder).startswith(f"{folder / 'graph.npz'} is not the graph of this run: its fingerprint is ")


@pytest.mark.parametrize(("old", "new"), [("seed: 0\n", "seed: 7\n"), ("  clip: 0.2", "  clip: 0.3")])
def test_an_edited_configuration_is_named(mine, old, new):
    folder = mine[0]
    text = (folder / "config.yaml").read_text()
    assert text.count(old) >= 1
    (folder / "config.yaml").write_text(text.replace(old, new, 1))
    assert refusal(folder).startswith(f"{folder / 'config.yaml'} is not the configuration of this run: its hash is ")


def test_an_edit_that_changes_no_number_is_none(mine):
    folder = mine[0]
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("  walks: 2\n", "  walks: 9\n").replace("name: ", "name: x"))
    assert load_run(RunFolder(folder), "cpu")[0].evaluation.walks == 9


def test_hard_steps_over_another_number_of_states(mine):
    folder = mine[0]
    path = folder / "search" / "edges.csv"
    path.write_text(path.read_text().replace("over 16 states", "over 9 states"))
    forge(folder)
    assert "edges.csv: does not begin as the hard steps found by search over 16 states do" in refusal(folder)


def test_models_of_other_kinds_and_sizes(mine):
    folder = mine[0]
    save_reasoner(LinearReasoner(9), folder / "ppo")
    forge(folder)
    assert refusal(folder) == f"{folder / 'ppo'}: the model has 9 states and the run's graph has 16"
    save_reasoner(Student(LinearReasoner(16), 16), folder / "ppo")
    forge(folder)
    assert "names a representative twice" in refusal(folder)
    save_reasoner(LinearReasoner(16), folder / "ppo")
    save_reasoner(LinearReasoner(16), folder / "distill")
    forge(folder)
    assert refusal(folder) == f"{folder / 'distill'}: a LinearReasoner is no model of this stage"


def test_the_manifest_records_what_made_the_numbers(mine):
    folder = mine[0]
    manifest = RunFolder(folder).manifest()
    assert manifest["packages"]["torch"] == torch.__version__
    assert manifest["threads"] == torch.get_num_threads()
    assert manifest["device"].startswith("cpu: ")
    assert manifest["seed"] == 0
    assert manifest["config_hash"] == config_hash(load_config(folder / "config.yaml"))
    assert manifest["graph"] == MetastableGraph.load(folder / "graph.npz").fingerprint()
    assert manifest["calls"][0]["command"][0] == "train.py"
    root = Path(__file__).resolve().parents[2]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert manifest["git_commit"] == (head.stdout.strip() if (root / ".git").exists() else None)


# ---- going on -------------------------------------------------------------------------------------------------------


def test_going_on_with_a_changed_graph_file_is_refused(tmp_path, runs):
    path = tmp_path / "graph.npz"
    graph = clustered_graph(4, 4, 0.02, cluster="complete")
    graph.save(path)
    words = ("--graph.family", "saved", "--graph.path", str(path), "--graph.epsilon", "null")
    train(tmp_path / "run", *words, "--stages", "pretrain")
    graph.with_epsilon(0.03).save(path)
    with pytest.raises(InputError, match=r"holds a run on the graph [0-9a-f]{16}, and that of .*graph\.npz now is "):
        train(tmp_path / "run", *words, "--stages", "pretrain")
    train(tmp_path / "run", *words, "--stages", "pretrain", "--overwrite", "true")
    assert load_run(RunFolder(tmp_path / "run"), "cpu")[1].graph.epsilon == 0.03


def test_overwrite_keeps_what_is_of_the_same_configuration(mine):
    folder = mine[0]
    before = (folder / "pretrain" / "metrics.json").stat().st_mtime_ns
    train(folder, "--overwrite", "true")
    assert (folder / "pretrain" / "metrics.json").stat().st_mtime_ns == before
    train(folder, "--overwrite", "true", "--seed", "3", "--stages", "pretrain")
    assert not (folder / "ppo" / "model.json").exists()
    assert load_run(RunFolder(folder), "cpu")[0].seed == 3


def test_a_folder_that_a_kill_left_with_half_a_file_is_a_new_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml.tmp").write_text("name: de")
    train(folder, "--stages", "pretrain")
    assert not list(folder.rglob("*.tmp"))


def test_links_are_refused_before_anything_is_written(mine, tmp_path):
    folder = mine[0]
    secret = tmp_path / "secret"
    secret.write_text("mine")
    for name in ("evaluation.json.tmp", "figures", "ppo/state.safetensors"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret)
        assert refusal(folder) == (
            f"{folder / name} is a link out of the run folder; replace it by what it points to, or delete it"
        )
        with pytest.raises(InputError, match="is a link out of the run folder"):
            train(folder)
        (folder / name).unlink()
    assert secret.read_text() == "mine"


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    outside = tmp_path / "outside"
    outside.write_text("mine")
    write_text(path, "good")
    path.with_name("file.tmp").symlink_to(outside)
    with suppress(KeyError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "good"
    assert outside.read_text() == "mine"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


# ---- crafted files --------------------------------------------------------------------------------------------------


def npz(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: np.ndarray, **kwargs) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **kwargs)
    return buffer.getvalue()


def header(shape: str, dtype: str = "'<i8'") -> bytes:
    """An .npy header that claims what it likes."""
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"indptr.npy": header("(1000000000001,)")}, "indptr is no plain array of the size that it claims"),
        ({"indptr.npy": header("(-1,)") + bytes(8)}, "indptr is no plain array of the size that it claims"),
        ({"indptr.npy": b"\0" * 20_000_000}, "indptr unpacks to 20,000,000 bytes; 16,777,216 are the most"),
        ({"../../x.npy": npy(np.zeros(2))}, "an unexpected member '../../x.npy'"),
        ({"/etc/passwd": b"root"}, "an unexpected member '/etc/passwd'"),
        ({"indptr": b""}, "an unexpected member 'indptr'"),
        ({"names.npy": npy(np.array([print], object), allow_pickle=True)}, "names is no plain array of the size that it"),
        ({"indptr.npy": b"\x80\x04cos\nsystem\n."}, "the magic string is not correct"),
        ({"indptr.npy": header("(" * 3000)}, ""),
    ],
)  # fmt: skip
def test_crafted_graphs(tmp_path, members, message):
    path = npz(tmp_path / "graph.npz", members)
    with pytest.raises(InputError) as error:
        MetastableGraph.load(path)
    assert f"{path}: not a readable graph file (" in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["graph.npz"]


def test_a_bomb_is_not_unpacked(tmp_path):
    """Half a gibibyte of zeros in half a megabyte; a member twice."""
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("weights.npy", "w", force_zip64=True) as f,
    ):
        f.write(header(f"({2**26},)", "'<f8'"))
        for _ in range(512):
            f.write(bytes(2**20))
    with pytest.raises(InputError, match=r"weights unpacks to 536,871,040 bytes; 400,001,000 are the most"):
        MetastableGraph.load(path)
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        archive.writestr("hard.npy", npy(np.zeros(3)))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("hard.npy", npy(np.zeros(3)))
    with pytest.raises(InputError, match=r"an unexpected member 'hard\.npy'"):
        MetastableGraph.load(tmp_path / "twice.npz")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_states": 10**12}, "model.json: n_states is 1000000000000; it must be a whole number from 1 to 2,000,000"),
        ({"n_states": 1_000_000}, "model.safetensors does not fit model.json at support"),  # a support of 10^12 bytes
        ({"width": 2_000_000}, "model.safetensors does not fit model.json at embedding.weight"),
        ({"window": 10**9}, "model.json: window is 1000000000; it must be a whole number from 1 to 65,536"),
        ({"n_layers": 10**9}, "model.json: n_layers is 1000000000; it must be a whole number from 1 to"),
        ({"n_heads": -1}, "model.json: n_heads is -1; it must be a whole number from 1"),
        ({"width": 8.5}, "model.json: width is 8.5; it must be a whole number"),
        ({"kind": "student", "model": {"kind": "student"}, "n_teacher_states": 3}, "model.json describes no model"),
        (
            {"kind": "../../evil"},
            "model.json: no class is known for the kind '../../evil'; import the module that defines it",
        ),
        ({"kind": ["linear"]}, "kind is ['linear']"),
    ],
)
def test_crafted_settings_of_a_model_take_no_memory(tmp_path, settings, message):
    save_reasoner(TransformerReasoner(6, width=8, n_layers=1, n_heads=1), tmp_path)
    path = tmp_path / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(InputError) as error:
        load_reasoner(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2])}, "labels a state with a cluster outside 0 .. 1"),
        ({"labels": torch.tensor([0, -1, 1])}, "labels a state with a cluster outside 0 .. 1"),
        ({"representatives": torch.tensor([0, 3])}, "names a representative outside the states 0 .. 2"),
        ({"representatives": torch.tensor([1, 1])}, "names a representative twice"),
        ({"beta": torch.tensor(float("nan"), dtype=torch.float64)}, "holds a non-finite number in beta"),
        ({"support": torch.zeros(2, 2, dtype=torch.bool)}, "leaves a state without any supported step"),
    ],
)
def test_crafted_students(tmp_path, change, message):
    student = Student(LinearReasoner(2), 3)
    student.representatives.copy_(torch.tensor([0, 2]))
    save_reasoner(student, tmp_path)
    assert load_reasoner(tmp_path).n_states == 2
    save_tensors(tmp_path / "model.safetensors", {**student.state_dict(), **change})
    with pytest.raises(InputError) as error:
        load_reasoner(tmp_path)
    assert str(error.value) == f"{tmp_path}: model.safetensors {message}"


def test_a_student_with_more_clusters_than_states(tmp_path):
    save_reasoner(Student(LinearReasoner(3), 2), tmp_path)
    with pytest.raises(InputError, match="holds 3 clusters, more than the 2 states that they are made of"):
        load_reasoner(tmp_path)


HOSTILE_JSON = {
    "[" * 100_000: "cannot be read (maximum recursion depth exceeded",
    '{"seed": ' + "9" * 5000 + "}": "cannot be read (Exceeds the limit",
    "[]": "holds a JSON list; it must be a dict",
    '"pieces"': "holds a JSON str; it must be a dict",
    "": "cannot be read (Expecting value",
    '{"pieces": {}}': "mcot_torch is 'None', not a str; the run is damaged or of an older version",
}


@pytest.mark.parametrize("text", HOSTILE_JSON, ids=lambda text: text[:12])
def test_hostile_manifests(mine, text):
    path = mine[0] / "manifest.json"
    path.write_text(text)
    assert refusal(mine[0]).startswith(f"{path}: {HOSTILE_JSON[text]}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seconds", {"ppo": "long"}, "seconds holds what is no number"),
        ("pieces", {"ppo": "all"}, "pieces holds what is no list of files"),
        ("calls", 3, "calls is '3', not a list"),
    ],
)
def test_manifests_of_wrong_types(mine, key, value, message):
    path = mine[0] / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert message in refusal(mine[0])


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (None, "its history is no list"),
        ([3], "its history holds a line without a step"),
        ([{"step": 1.5}], "its history holds a line without a step"),
        ([{"step": 1, "loss": "low"}], "its history holds what is no number"),
        ([{"step": 10**30}], "its history holds what is no number"),
    ],
)
def test_hostile_histories(mine, tmp_path, history, message):
    path = mine[0] / "ppo" / "metrics.json"
    path.write_text(json.dumps({"history": history}))
    with pytest.raises(InputError, match=message):
        RunFolder(mine[0]).history("ppo")
    if history is not None:
        save_tensors(tmp_path / "state.safetensors", {}, {"json": json.dumps({"history": history})})
        with pytest.raises(InputError, match=f"the saved state cannot be read .{message}.; delete it to begin"):
            load_state(tmp_path / "state.safetensors")


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (3, "its cost must hold forward_passes, rounds, transitions"),
        ({"transitions": 3}, "its cost must hold forward_passes, rounds, transitions"),
        ({"transitions": -1, "forward_passes": 0, "rounds": 0}, "its cost.transitions is no whole number"),
        ({"transitions": 0, "forward_passes": True, "rounds": 0}, "its cost.forward_passes is no whole number"),
        ({"transitions": 0, "forward_passes": 0, "rounds": 10**400}, "its cost.rounds is no whole number"),
    ],
)
def test_hostile_costs(mine, cost, message):
    (mine[0] / "ppo" / "metrics.json").write_text(json.dumps({"cost": cost, "history": []}))
    with pytest.raises(InputError, match=message):
        RunFolder(mine[0]).metrics("ppo")


BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases (*name) are not read here; write the value out"),
        ("seed: " + "[" * 5000, "has more than 500 brackets"),
        ("seed: " + "[" * 450, "not YAML: "),
        ("seed: " + "9" * 5000, "Exceeds the limit"),
        ("seed: 0\n" + "#" * 1_000_001, "has more than 1,000,000 bytes"),
        ("? [a, b]\n: 1\n", "unknown key"),
        ("seed: !!python/object/apply:os.system [echo]\n", ""),
    ],
)
def test_hostile_configurations(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_config(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)

"""Fuzz the readers of foreign files: edge lists, graphs (.npz), run folders with their saved states, other tools' formats.

    python tools/fuzz.py --inputs 100000 --seed 0

Hypothesis draws each input: files written from a grammar of near misses, good files with some of their parts exchanged, and
good files with some of their bytes changed. A reader may read an input or refuse it with an `InputError` of one line;
anything else, and memory beyond a gibibyte, is a failure. Of a run folder's changed files half are noted in its manifest, so
that the digests do not turn all of them away at the door.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from fuzz_inputs import (
    ANY_BYTES,
    GOOD_LIST,
    HEADERS,
    LINE,
    array,
    arrays,
    changed,
    exchanged,
    frame,
    market,
    tensors,
    xml,
)
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from scipy import sparse as sp

import mcot_torch.runs.folder
from mcot_torch import Context
from mcot_torch.algorithms.config import PPOConfig, SearchConfig
from mcot_torch.algorithms.ppo import ppo
from mcot_torch.algorithms.prm import PRM
from mcot_torch.algorithms.search import search
from mcot_torch.errors import InputError
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.formats.edge_list import read_edge_list
from mcot_torch.graphs.formats.interchange import from_pandas, load_graph, save_graph, to_pandas
from mcot_torch.graphs.graph import MetastableGraph
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import LinearReasoner
from mcot_torch.runs.config import STAGES, load_config, parse_train
from mcot_torch.runs.folder import RunFolder
from mcot_torch.runs.loading import load_run
from mcot_torch.runs.pipeline import run
from mcot_torch.system.files import digest
from mcot_torch.system.progress import console
from mcot_torch.training.config import TrainerConfig

READERS = ("edge list", "graph", "run folder", "state", "GraphML", "Matrix Market", "SciPy", "pandas")
ROOM = 2**30  # bytes that reading may take beyond what importing took

# ---- readers --------------------------------------------------------------------------------------------------------


def edge_list(data: st.DataObject, home: Path) -> None:
    """An edge list, with or without a file of clusters."""
    kind = data.draw(st.sampled_from(["grammar", "changed", "bytes"]))
    delimiter = data.draw(st.sampled_from([",", "\t", ";", " "]))
    if kind == "grammar":
        lines = data.draw(st.lists(LINE, max_size=10))
        text = data.draw(HEADERS) + data.draw(st.sampled_from(["", GOOD_LIST]))
        content = (text + "".join(delimiter.join(line) + "\n" for line in lines)).encode("utf-8", "surrogatepass")
    else:
        content = changed(data, GOOD_LIST.encode()) if kind == "changed" else data.draw(ANY_BYTES)
    path = home / data.draw(st.sampled_from(["g.csv", "g.tsv", "g"]))
    path.write_bytes(content)
    clusters = None
    if data.draw(st.integers(0, 2)) == 0:
        clusters = home / "k.csv"
        clusters.write_bytes(changed(data, b"state,cluster\na,0\nb,0\nc,1\nd,1\n"))
    read_edge_list(path, clusters, data.draw(st.none() | st.floats()) if clusters is None else None)


def saved_graph(data: st.DataObject, home: Path) -> None:
    """An .npz: arrays exchanged, members added, bytes changed."""
    path, good = home / "graph.npz", GOOD["graph"]
    kind = data.draw(st.sampled_from(["array", "values", "bytes", "raw"]))
    if kind in ("array", "values"):
        with np.load(io.BytesIO(good)) as file:
            arrays: dict[str, Any] = dict(file)
        for _ in range(data.draw(st.integers(1, 3))):
            key = data.draw(st.sampled_from(sorted(arrays)))
            if kind == "array" or not arrays[key].size:
                key = data.draw(st.sampled_from([key, "names", "../../x", "", "file"]))
                arrays[key] = array(data)
            else:
                at = data.draw(st.integers(0, arrays[key].size - 1))
                number = data.draw(st.sampled_from([0, 1, -1, 2, 7, 2**62, 10**12, float("nan"), 1e-320, 0.5]))
                values = arrays[key].copy().reshape(-1)
                values[at] = number if values.dtype.kind == "f" or number == number else 3
                arrays[key] = values.reshape(arrays[key].shape)
        arrays = {key: value for key, value in arrays.items() if key and key != "file"}
        (np.savez if data.draw(st.booleans()) else np.savez_compressed)(path, **arrays)
        if not data.draw(st.integers(0, 3)):
            path.write_bytes(changed(data, path.read_bytes()))
    else:
        path.write_bytes(changed(data, good) if kind == "bytes" else data.draw(ANY_BYTES))
    MetastableGraph.load(path)


def run_folder(data: st.DataObject, home: Path) -> None:
    """A finished run, one or two of its files changed."""
    files = dict(GOOD["run"])
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(sorted(files)))
        if name == "config.yaml" and data.draw(st.integers(0, 9)):  # reading YAML takes a hundred times as long
            name = sorted(files)[-1]
        other = data.draw(st.sampled_from(sorted(files)))
        content = files[name]
        kind = data.draw(st.sampled_from(["part", "part", "bytes", "raw", "other", "drop"]))
        try:
            if kind == "part" and name.endswith(".json"):
                files[name] = json.dumps(exchanged(data, json.loads(content))).encode("utf-8", "surrogatepass")
            elif kind == "part" and name.endswith(".safetensors"):
                files[name] = tensors(data, content)
            elif kind in ("part", "bytes"):
                files[name] = changed(data, content, files[other])
            else:
                files[name] = {"raw": data.draw(ANY_BYTES), "other": files[other], "drop": b""}[kind]
        except (ValueError, SafetensorError):  # a file that was changed before and is no JSON or safetensors any more
            files[name] = changed(data, content, files[other])
        if kind == "drop":
            del files[name]
    folder = home / "run"
    for name, content in GOOD["run"].items():
        path = folder / name
        if name not in files:
            path.unlink(missing_ok=True)
        elif files[name] != content or not path.exists() or WRITTEN.get(name) != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[name])
        WRITTEN[name] = files.get(name, b"")
    if data.draw(st.booleans()) and files.get("manifest.json") == GOOD["run"]["manifest.json"]:
        manifest = json.loads(files["manifest.json"])
        for stage, pieces in manifest["pieces"].items():
            manifest["pieces"][stage] = {file: digest(folder / stage / file) for file in pieces}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        WRITTEN["manifest.json"] = b""
    config = GOOD["config"]
    same = files.get("config.yaml") == GOOD["run"]["config.yaml"]
    reader = (lambda path: config) if same else load_config
    with patch.object(mcot_torch.runs.folder, "load_config", reader):
        load_run(RunFolder(folder), "cpu")
        for stage in STAGES:
            RunFolder(folder).history(stage)


class Asked(Exception):
    """A state was taken up, and the stage goes on."""


class Asking(PRM):
    """Ends PPO at its first question: what is fuzzed is the reading of its state, not what training makes of it."""

    def scores(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """No rewards: a round begins with them."""
        raise Asked


def state(data: st.DataObject, home: Path) -> None:
    """The saved state of a stage under way: PPO's, which holds most, and search's."""
    which = data.draw(st.sampled_from(["ppo", "search"]))
    content = GOOD[which]
    path = home / which / "state.safetensors"
    path.parent.mkdir(exist_ok=True)
    good = data.draw(st.booleans())
    path.write_bytes(tensors(data, content) if good else changed(data, content))
    graph, scales = GOOD["problem"]
    context = Context(0, path.parent, TrainerConfig(accelerator="cpu", progress=False))
    model = LinearReasoner(graph.n_states)
    if which == "search":
        search(model, scales, SearchConfig(rounds=4, walks=1, cover_steps=1, max_steps=2, min_votes=1), context)
    else:
        with suppress(Asked):
            ppo(model, Asking(graph.n_states, torch.zeros(0, 2)), scales, PPOConfig(gamma=0.5, rounds=4), context)


def read_file(data: st.DataObject, path: Path, good: bytes, drawn: Callable[[], bytes]) -> None:
    """Read a file that is `drawn`, or `good` with some of its bytes changed, or any bytes; without a warning."""
    kind = data.draw(st.sampled_from(["drawn", "drawn", "drawn", "bytes", "raw"]))
    path.write_bytes(drawn() if kind == "drawn" else changed(data, good) if kind == "bytes" else data.draw(ANY_BYTES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_graph(path, threshold=data.draw(THRESHOLDS))


def graphml(data: st.DataObject, home: Path) -> None:
    """GraphML: elements, attributes and bytes changed."""
    read_file(data, home / "g.graphml", GOOD["graphml"], lambda: xml(data, GOOD["graphml"]))


def matrix_market(data: st.DataObject, home: Path) -> None:
    """Matrix Market: by grammar, and bytes changed."""
    read_file(data, home / "g.mtx", GOOD["mtx"], lambda: market(data))


def scipy_file(data: st.DataObject, home: Path) -> None:
    """SciPy's .npz in its five formats: arrays and bytes changed."""
    good = GOOD["scipy"][data.draw(st.sampled_from(["csr", "csc", "coo", "bsr", "dia"]))]
    read_file(data, home / "g.scipy.npz", good, lambda: arrays(data, good))


def tables(data: st.DataObject, home: Path) -> None:
    """Two pandas tables: cells, columns and their kinds exchanged."""
    steps = frame(data, GOOD["steps"])
    steps.attrs["epsilon"] = data.draw(st.sampled_from([None, 0.02] * 9 + [0, "0.02", float("nan"), 1e-320, 2, [1]]))
    states = frame(data, GOOD["states"]) if data.draw(st.booleans()) else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_pandas(steps, states, threshold=data.draw(THRESHOLDS) if states is None else None)


THRESHOLDS = st.sampled_from([None, None, None, 0.1, 0.0, 1.0, float("nan")])
FOREIGN = (graphml, matrix_market, scipy_file, tables)
CASES: dict[str, Callable[[st.DataObject, Path], None]] = dict(
    zip(READERS, (edge_list, saved_graph, run_folder, state, *FOREIGN), strict=True)
)
GOOD: dict[str, Any] = {}
WRITTEN: dict[str, bytes] = {}


def prepare(home: Path) -> None:
    """The good files that inputs are made from."""
    graph = clustered_graph(4, 3, 0.02, jumps=[1, -1], cluster="complete")
    graph.save(home / "good.npz")
    GOOD["graph"] = (home / "good.npz").read_bytes()
    for suffix in ("graphml", "mtx"):
        save_graph(graph, home / f"good.{suffix}")
        GOOD[suffix] = (home / f"good.{suffix}").read_bytes()
    GOOD["scipy"] = {}
    for kind in ("csr", "csc", "coo", "bsr", "dia"):
        sp.save_npz(home / "good.scipy.npz", graph.to_scipy().asformat(kind))
        GOOD["scipy"][kind] = (home / "good.scipy.npz").read_bytes()
    GOOD["steps"], GOOD["states"] = (table.to_dict("list") for table in to_pandas(graph))
    words = (
        "--graph.n_clusters 4 --graph.cluster_size 4 --graph.cluster complete --graph.epsilon .02 --graph.epsilon_max .1 "
        "--reasoner.width 8 --reasoner.n_layers 1 --reasoner.n_heads 1 --pretrain.steps 150 --pretrain.steps_after_cut 50 "
        "--pretrain.transitions 1000000 --ppo.rounds 2 --ppo.transitions 1000 --ppo.path_length 10 --distill.transitions 100000 "
        "--distill.path_length 20 --distill.steps 20 --evaluation.walks 2 --evaluation.figures false --trainer.accelerator cpu "
        f"--trainer.progress false --run_dir {home / 'run'}"
    )
    GOOD["config"] = parse_train(words.split())
    with console.capture():
        run(GOOD["config"], ["train.py", *words.split()])
    names = [f for f in (home / "run").rglob("*") if f.suffix in (".json", ".safetensors", ".npz", ".csv", ".yaml")]
    names = [f for f in names if not f.name.startswith("evaluation")]
    GOOD["run"] = {str(f.relative_to(home / "run")): f.read_bytes() for f in names}
    scales = Scales.of(graph, 0.1)
    GOOD["problem"] = (graph, scales)
    model, context = (
        LinearReasoner(12),
        Context(0, home / "s", TrainerConfig(accelerator="cpu", progress=False, save_every=1e-9)),
    )
    search(model, scales, SearchConfig(rounds=4, walks=2, cover_steps=9, max_steps=200, min_votes=1), context)
    GOOD["search"] = (home / "s" / "state.safetensors").read_bytes()
    context = Context(0, home / "p", TrainerConfig(accelerator="cpu", progress=False, save_every=1e-9))
    config = PPOConfig(gamma=0.5, rounds=4, transitions=100, path_length=10, epochs=1, log_every=1)
    ppo(model, PRM(12, torch.from_numpy(graph.sparse_edges)), scales, config, context)
    GOOD["ppo"] = (home / "p" / "state.safetensors").read_bytes()


def fuzz(reader: str, inputs: int, number: int, home: Path) -> Counter[str]:
    """Read `inputs` inputs; returns how many were read and how many refused.

    Raises:
        whatever a reader raised that is not an `InputError` of one line, with the input that shows it.
    """
    ends: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        try:
            CASES[reader](data, home)
            ends["read"] += 1
        except InputError as error:
            if "\n" in str(error):
                raise AssertionError("more than a line") from error
            ends["refused"] += 1

    one()
    return ends


def main() -> int:
    """Fuzz the readers that the command line names; the status is 1 where memory grew beyond `ROOM`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--inputs", type=int, default=100_000, help="of each reader (a run folder counts its states in)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=READERS)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    try:
        prepare(home)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        for reader in options.readers:
            begin = time.perf_counter()
            ends = fuzz(reader, options.inputs, options.seed, home)
            print(
                f"{reader:<13} {sum(ends.values()):,} inputs: {dict(ends)}, {time.perf_counter() - begin:,.0f} s",
                flush=True,
            )
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        print(f"memory grew by {grown / 2**20:,.0f} MiB")
        return int(grown > ROOM)
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    sys.exit(main())

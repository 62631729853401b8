"""Memory that stays with the process; compilers that work and compilers that do not."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from mcot_torch import Context
from mcot_torch.algorithms.pretrain import PretrainConfig, pretrain
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.reasoners import TransformerReasoner
from mcot_torch.system.machine import compiled
from mcot_torch.training.config import TrainerConfig

FAULTS = """\
import resource, torch
from mcot_torch.system.machine import keep_memory
if {keep} and not keep_memory():
    raise SystemExit(3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    tensors = [torch.ones(2**20) for _ in range(8)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": str(2**17),
    }  # glibc's default, and no learning from what was freed
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    told = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if told.returncode == 3:
        pytest.skip("the C library is no glibc")
    return int(told.stdout)


def test_freed_memory_is_used_again():
    """20 rounds of 32 MiB: 163,840 pages of 4 KiB if each tensor comes fresh from the system, 8,192 if those of the first stay."""
    assert faults(True) < 50_000 < 150_000 < faults(False)


def trained(**options):
    graph = clustered_graph(4, 8, 0.02, seed=3)
    model = TransformerReasoner(32, 4, 16, 1, 2)
    model.reset_parameters(torch.Generator().manual_seed(0))
    config = PretrainConfig(steps=4, steps_after_cut=4, threshold=0.02, batch_size=6, log_every=1, **options)
    context = Context(trainer=TrainerConfig(accelerator="cpu", progress=False))
    return model, [line["loss"] for line in pretrain(model, graph, config, context).history]


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    def broken(function, **options):
        raise RuntimeError("no C++ compiler\nis here")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match=r"nothing is compiled.*\(no C\+\+ compiler\)"):
        model, losses = trained(compile=True)
    plain, expected = trained()
    assert losses == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_a_compiler_that_fails_when_it_is_called(monkeypatch):
    def broken(function, **options):
        def call(x):
            raise RuntimeError("gcc: not found")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="gcc: not found"):
        assert compiled(torch.neg, torch.device("cpu")) is torch.neg


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "nothing is compiled")
        model, losses = trained(compile=True)
    plain, expected = trained()
    assert losses == pytest.approx(expected, rel=1e-4)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)

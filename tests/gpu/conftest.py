"""The device of these tests: CUDA, without which they are skipped; MCOT_GPU_TESTS_ON=cpu rehearses them on a CPU.

A device is compared with the CPU. What is deterministic agrees to 1e-12 in float64 and to 1e-5 in float32, relative to the
largest entry. Samplers are compared with their law, within 5 standard deviations, and with fixed seeds.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA is first used; deterministic mode needs it

import pytest
import torch

from mcot_torch.graphs.families.clustered import clustered_graph

HERE = Path(__file__).parent
ON = os.environ.get("MCOT_GPU_TESTS_ON", "cuda")


def pytest_runtest_setup(item):
    if ON == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device; MCOT_GPU_TESTS_ON=cpu rehearses this test on the CPU")


@pytest.fixture(scope="session")
def device():
    """The device under test."""
    return torch.device(ON)


@pytest.fixture(scope="session")
def graph():
    """K = 4 clusters of M = 8 states, ε = 0.02: small enough that no state lists its successors."""
    return clustered_graph(4, 8, 0.02, seed=3)


@pytest.fixture(scope="session")
def listed_graph():
    """K = 4 clusters of M = 32 states, ε = 0.01: after the cut every state lists its successors."""
    return clustered_graph(4, 32, 0.01, seed=3)


@pytest.fixture(scope="session")
def close():
    """(found, expected, tolerance): every difference is at most the tolerance times the largest finite entry, or 1."""

    def check(found, expected, tolerance):
        found, expected = (torch.as_tensor(x).detach().cpu().double() for x in (found, expected))
        assert found.shape == expected.shape
        finite = expected.isfinite()
        assert torch.equal(found[~finite].nan_to_num(), expected[~finite].nan_to_num())
        largest = max(1.0, float(expected[finite].abs().max())) if finite.any() else 1.0
        difference = float((found - expected)[finite].abs().max()) if finite.any() else 0.0
        assert difference <= tolerance * largest, f"{difference:.2e} apart, {tolerance:g} x {largest:.3g} allowed"

    return check


@pytest.fixture(scope="session")
def follows():
    """(counts, expected): a chi-square test of counts whose rows sum as the expected ones do, with a bound of 5 sigma."""

    def check(counts, expected):
        counts, expected = (torch.as_tensor(x).detach().cpu().double() for x in (counts, expected))
        assert not counts[expected == 0].any(), "an impossible event happened"
        enough = expected >= 5
        statistic = float(((counts - expected)[enough] ** 2 / expected[enough]).sum())
        freedom = max(1, int(enough.sum()) - len(expected.reshape(-1, expected.shape[-1])))
        assert statistic <= freedom + 5 * (2 * freedom) ** 0.5 + 25, f"chi-square {statistic:.0f} of {freedom} degrees"

    return check


class Ranks:
    """Two processes that train together on the one device, started before the first test so that they run beside it."""

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # One process for each "machine", so that both take device 0: train.py itself asks for a GPU for each rank.
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        common |= {"LOCAL_RANK": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.folder, self.processes = folder, []
        for rank in range(2):
            environment = {**os.environ, **common, "RANK": str(rank), "GROUP_RANK": str(rank)}
            command = [sys.executable, str(HERE / "rank_on_device.py"), ON, str(folder)]
            with open(folder / f"rank{rank}.log", "w") as log:
                self.processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def finish(self, seconds):
        """Exit statuses and what the ranks printed; ranks that are not done in time are ended."""
        statuses = []
        for process in self.processes:
            try:
                statuses.append(process.wait(seconds))
            except subprocess.TimeoutExpired:
                statuses.append(None)
        self.kill()
        return statuses, [(self.folder / f"rank{r}.log").read_text()[-3000:] for r in range(2)]

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="session", autouse=True)
def ranks(request, tmp_path_factory):
    wanted = any("two_ranks" in item.name for item in request.session.items)
    if not wanted or (ON == "cuda" and not torch.cuda.is_available()):
        yield None
        return
    started = Ranks(tmp_path_factory.mktemp("ranks"))
    yield started
    started.kill()

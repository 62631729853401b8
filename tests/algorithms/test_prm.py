"""The process reward model and the tilt: Λ takes p^ε to p^ε_max exactly."""

import math

import numpy as np
import pytest
import torch

from mcot_torch.algorithms.prm import PRM, guidance, tilt, tilt_strength
from mcot_torch.errors import InputError
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import step_table


def true_edges(graph):
    return PRM(graph.n_states, torch.from_numpy(graph.sparse_edges))


GRAPHS = {
    "one a source": {},
    "two a source": {"d_out": 2},
    "three a source": {"d_out": 3, "n_out": 1},
    "weights": {"d_out": 3, "n_out": 1, "weights": (1.0, 0.25, 3.0)},
    "two sources, weights": {"d_out": 2, "weights": (2.0, 0.5, 1.0)},
}


@pytest.mark.parametrize(("epsilon", "epsilon_max"), [(0.002, 0.03), (1e-8, 0.05), (0.02, 0.09)])
@pytest.mark.parametrize("name", GRAPHS)
def test_tilt_of_the_exact_chain_is_the_chain_at_epsilon_max(name, epsilon, epsilon_max):
    graph = clustered_graph(5, 8, epsilon, **GRAPHS[name])
    prm, scales = true_edges(graph), Scales.of(graph, epsilon_max)
    raised = graph.with_epsilon(epsilon_max).kernel()
    log_p = torch.from_numpy(graph.kernel()).log()
    np.testing.assert_allclose(tilt(log_p, prm.scores(), prm.mask(), scales).exp(), raised, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("d_out", "epsilon_max"), [(1, 0.7), (1, 0.97), (3, 1 / 6), (3, 0.3)])
def test_tilt_ends_at_epsilon_max_also_where_hard_steps_fill_half_a_row(d_out, epsilon_max):
    """1/6 with three steps a source is the default cap, one half; every ε_max·W_x below 1 is allowed."""
    graph = clustered_graph(5, 8, 0.002, d_out=d_out)
    raised = graph.with_epsilon(epsilon_max).kernel()
    kernel = torch.from_numpy(graph.kernel())
    for error in (1.0, 1.005):  # as a pretrained model is a little off
        off = torch.where(true_edges(graph).mask(), error * kernel, kernel)
        got = tilt((off / off.sum(1, keepdim=True)).log(), true_edges(graph).scores(), true_edges(graph).mask(),
                   Scales.of(graph, epsilon_max)).exp()  # fmt: skip
        np.testing.assert_allclose(got, raised, rtol=1e-12 if error == 1 else 0.2, atol=0)


def test_guided_walks_are_those_of_epsilon_max(exact_reasoner):
    graph = clustered_graph(5, 8, 0.002, weights=(1.0, 0.5, 2.0), d_out=3)
    scales = Scales.of(graph, 0.05)
    model = exact_reasoner(graph)
    table = step_table(model, guidance(true_edges(graph), scales))
    raised = graph.with_epsilon(0.05).kernel()
    np.testing.assert_allclose(table.to_edges(table.probabilities), raised, rtol=1e-12, atol=0)
    np.testing.assert_allclose(model.kernel(), graph.kernel(), rtol=1e-12, atol=0)  # guidance changes no weights


def test_tilt_strength_by_hand():
    scales = Scales(10, 32, 0.002, 0.03)
    one, two = tilt_strength(torch.tensor([0.002, 0.004], dtype=torch.float64), scales).tolist()
    assert one == pytest.approx(math.log(0.03 * 0.998 / (0.002 * 0.97)), rel=1e-14)
    assert two == pytest.approx(math.log(0.03 * 0.996 / (0.002 * 0.94)), rel=1e-14)
    # hard mass that would fill its row at ε_max is no rare step
    for mass in (0.066, 0.25, 0.9, 1.0):
        strength = float(tilt_strength(torch.tensor([mass], dtype=torch.float64), scales))
        assert strength == pytest.approx(math.log(15), rel=1e-14)


def test_false_positive_on_a_dense_edge():
    """An easy step of .25 taken for a hard one ends near .84: odds times fifteen."""
    scales = Scales(10, 32, 0.002, 0.03)
    log_p = torch.tensor([[0.25, 0.25, 0.25, 0.25]], dtype=torch.float64).log()
    known = torch.tensor([[True, False, False, False]])
    raised = tilt(log_p, known.double(), known, scales).exp()[0]
    assert float(raised[0]) == pytest.approx(0.84, abs=0.01)
    assert float(raised[0]) == pytest.approx(15 / 18, rel=1e-12)
    np.testing.assert_allclose(raised[1:], (1 - float(raised[0])) / 3, rtol=1e-12)


def test_tilt_without_known_steps_changes_nothing():
    log_p = torch.tensor([[0.7, 0.3, 0.0]], dtype=torch.float64).log()
    none = torch.zeros(1, 3, dtype=torch.bool)
    np.testing.assert_allclose(tilt(log_p, none.double(), none, Scales(2, 4, 0.01, 0.1)).exp(), [[0.7, 0.3, 0]])


def test_tilt_leaves_forbidden_steps_forbidden():
    log_p = torch.tensor([[0.99, 0.01, 0.0]], dtype=torch.float64).log()
    known = torch.tensor([[False, True, True]])
    raised = tilt(log_p, known.double(), known, Scales(2, 4, 0.01, 0.1)).exp()
    np.testing.assert_allclose(raised, [[0.9, 0.1, 0]], rtol=1e-12)


# ---- simulated errors -----------------------------------------------------------------------------------------------


def test_simulated_without_errors_is_the_truth(small_graph):
    prm = PRM.simulated(small_graph)
    assert prm.edges.tolist() == small_graph.sparse_edges.tolist()
    scores = prm.scores()
    assert scores.dtype == torch.float64
    assert torch.equal(scores.bool(), prm.mask())
    assert scores.sum() == len(small_graph.sparse_edges)
    assert all(scores[x, y] == 1 for x, y in small_graph.sparse_edges)


def test_simulated_error_rates():
    """Binomial counts within 5.5 standard deviations: two tests at 4e-8."""
    graph = clustered_graph(40, 16, 0.002)
    true = {tuple(edge) for edge in graph.sparse_edges.tolist()}
    easy = {(int(x), int(y)) for x, y in zip(graph.sources[~graph.hard], graph.indices[~graph.hard], strict=True)}
    prm = PRM.simulated(graph, false_positive=0.05, false_negative=0.3, seed=1)
    taken = {tuple(edge) for edge in prm.edges.tolist()}
    assert taken <= true | easy  # errors fall on edges of the graph only
    missed, invented = len(true - taken), len(taken & easy)
    assert abs(missed - 0.3 * len(true)) < 5.5 * math.sqrt(0.21 * len(true))
    assert abs(invented - 0.05 * len(easy)) < 5.5 * math.sqrt(0.0475 * len(easy))
    assert torch.equal(PRM.simulated(graph, 0.05, 0.3, seed=1).edges, prm.edges)
    assert not torch.equal(PRM.simulated(graph, 0.05, 0.3, seed=2).edges, prm.edges)
    assert len(PRM.simulated(graph, false_negative=1.0).edges) == 0


def test_noise_of_scores(small_graph):
    prm = PRM.simulated(small_graph, noise=0.5, seed=3)
    first, second = prm.scores(), prm.scores()
    assert not torch.equal(first, second)  # fresh at every call
    errors = torch.stack([first, second]) - prm.mask().double()
    n = errors.numel()
    assert abs(float(errors.mean())) < 5.5 * 0.5 / math.sqrt(n)
    assert abs(float((errors**2).mean()) - 0.25) < 5.5 * 0.25 * math.sqrt(2 / n)
    again = PRM.simulated(small_graph, noise=0.5, seed=3)
    assert torch.equal(again.scores(), first)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", [[[3, 5], [0, 1], [7, 2]], []])
def test_save_and_load(edges, tmp_path):
    prm = PRM(8, torch.tensor(edges, dtype=torch.int64).reshape(-1, 2))
    prm.save(tmp_path / "prm.csv")
    loaded = PRM.load(tmp_path / "prm.csv", 8)
    assert loaded.edges.tolist() == edges
    assert loaded.n_states == 8
    assert loaded.edges.dtype == torch.int64
    assert torch.equal(loaded.mask(), prm.mask())
    assert loaded.scores().sum() == len(edges)
    assert [p.name for p in tmp_path.iterdir()] == ["prm.csv"]


HEAD = "# hard steps over 8 states\nsource,target\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "1,2\n3,8\n", "line 4: '3,8' is not a pair of states below 8"),
        (HEAD + "1,2,3\n", "line 3"),
        (HEAD + "1\n", "line 3"),
        (HEAD + "-1,2\n", "line 3"),
        (HEAD + "a,b\n", "line 3"),
        (HEAD + "²,1\n", "line 3"),
        (HEAD + "1,2\n\n3,4\n", "line 4"),
        (HEAD + "1," + "2" * 5000 + "\n", "line 3"),
        ("", "prm.csv"),
        ("1,2\n3,4\n", "prm.csv"),
        (HEAD.replace("8", "9") + "1,2\n", "prm.csv"),
    ],
)
def test_damaged_files_are_input_errors(text, message, tmp_path):
    path = tmp_path / "prm.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        PRM.load(path, 8)
    assert "\n" not in str(error.value)


def test_missing_and_binary_files_are_input_errors(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.csv"):
        PRM.load(tmp_path / "nothing.csv", 8)
    with pytest.raises(InputError, match="cannot be read"):
        PRM.load(tmp_path, 8)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="binary"):
        PRM.load(tmp_path / "binary", 8)

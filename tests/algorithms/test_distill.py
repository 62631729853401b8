"""Algorithm 4: labels against the true clusters, the student against the exact pair kernel, lifted paths."""

import itertools
import math

import numpy as np
import pytest
import torch

from mcot_torch import Context, chains
from mcot_torch.algorithms.distill import DistillConfig, cluster_counts, distill, label_states
from mcot_torch.algorithms.lift import lift
from mcot_torch.algorithms.prm import PRM
from mcot_torch.algorithms.rollouts import transition_counts
from mcot_torch.errors import InputError
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.graphs.scales import Scales
from mcot_torch.reasoners import LinearReasoner, Student, TransformerReasoner, load_reasoner, save_reasoner
from mcot_torch.sampling.datasets import count_batch
from mcot_torch.training.config import TrainerConfig


def context(seed=0, folder=None, report=None):
    return Context(seed, folder, TrainerConfig(accelerator="cpu", progress=False, save_every=0), report=report)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def true_prm(graph):
    return PRM(graph.n_states, torch.from_numpy(graph.sparse_edges))


# ---- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.002, 0.4])
@pytest.mark.parametrize("entries", ["single", "free"])
def test_labels_are_the_clusters(epsilon, entries, exact_reasoner):
    """With the known hard steps cut a walk cannot leave its cluster: no state is mislabelled, at any ε."""
    graph = clustered_graph(10, 16, epsilon, entries=entries, seed=1)
    found = label_states(exact_reasoner(graph), true_prm(graph), Scales.of(graph, 0.05), 9, seeded(0))
    assert torch.equal(found.labels, torch.from_numpy(graph.clusters))  # both number the clusters by their states
    heads = graph.sparse_edges[:, 1]
    smallest = [heads[graph.clusters[heads] == k].min() for k in range(10)]
    assert found.representatives.tolist() == smallest
    assert found.transitions > 0


def test_cluster_that_no_known_step_enters_gets_a_representative(exact_reasoner):
    graph = clustered_graph(5, 8, 0.002, seed=1)
    into = graph.clusters[graph.sparse_edges[:, 1]]
    known = PRM(40, torch.from_numpy(graph.sparse_edges[into != 3]))
    model = exact_reasoner(graph)
    found = label_states(model, known, Scales.of(graph, 0.05), 41, seeded(0))
    assert len(found.representatives) == 5
    agree = (found.labels[:, None] == found.labels[None, :]).numpy()
    same = graph.clusters[:, None] == graph.clusters[None, :]
    assert (agree == same).mean() > 0.95  # walks out of the cluster by the unknown steps' sources may stray


def table_of(kernel):
    return LinearReasoner.from_kernel(torch.as_tensor(kernel, dtype=torch.float64))


def test_most_walks_decide_the_label():
    """States 0 and 2 stay where they are, but for known hard steps; 1 goes to 0 and 3 to 2 four times in five."""
    kernel = [[0.9, 0, 0.1, 0], [0.8, 0, 0.2, 0], [0.1, 0, 0.9, 0], [0.2, 0, 0.8, 0]]
    prm = PRM(4, torch.tensor([[0, 2], [2, 0]]))
    found = label_states(table_of(kernel), prm, Scales(2, 2, 0.1, 0.2), 201, seeded(0))
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.representatives.tolist() == [0, 2]


def test_labels_and_their_cost_by_hand():
    """0 -> 1 -> 2 -> 0 and 3 -> 4 -> 3 with doors 2 -> 3 and 4 -> 0: from 1, 2 and 4 the heads are 2, 1 and 1 steps away.

    Then each head walks 4 ceil(2.5 M log M) = 36 steps, rounded up to a block of 64, with 33 walkers.
    """
    kernel = np.zeros((5, 5))
    kernel[[0, 1, 2, 3, 4], [1, 2, 0, 4, 3]] = [1, 1, 0.9, 1, 0.9]
    kernel[[2, 4], [3, 0]] = 0.1
    found = label_states(
        table_of(kernel.tolist()), PRM(5, torch.tensor([[2, 3], [4, 0]])), Scales(2, 3, 0.1, 0.2), 6, seeded(0)
    )
    assert found.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.representatives.tolist() == [0, 3]
    assert found.transitions == 6 * (2 + 1 + 1) + 2 * 33 * 64


# ---- counts ---------------------------------------------------------------------------------------------------------


def test_pair_counts_of_labels_by_a_loop():
    counts = torch.randint(0, 5, (6, 6), generator=seeded(1)).double()
    labels = torch.tensor([0, 2, 1, 1, 0, 2])
    after = torch.stack([torch.randperm(6, generator=seeded(x))[:4] for x in range(6)])
    pairs = cluster_counts(after, counts[:, :4], labels)
    expected = np.zeros((3, 3))
    for x in range(6):
        for j in range(4):
            expected[labels[x], labels[after[x, j]]] += counts[x, j]
    np.testing.assert_array_equal(pairs, expected)
    states, clusters, batch = count_batch(pairs, dtype=torch.float64)
    assert states.tolist() == [[0], [1], [2]]
    assert clusters[:, 0].tolist() == [[0, 1, 2]] * 3
    np.testing.assert_array_equal(batch[:, 0], expected)


def dense(recorded):
    """(N, N) counts of the listed ones."""
    after, counts = recorded.successors, recorded.counts
    n = len(counts)
    return torch.zeros(n, n, dtype=counts.dtype).scatter_add_(1, after.expand_as(counts), counts)


@pytest.mark.parametrize("window", [1, 4])
def test_recorded_counts(window, small_graph, exact_reasoner):
    if window == 1:
        model = exact_reasoner(small_graph)
    else:
        model = TransformerReasoner(32, window, 16, 1, 2)
        model.support.set(torch.from_numpy(small_graph.kernel() > 0))
    counts = dense(transition_counts(model, 200, 50, seeded(2)))
    assert float(counts.sum()) == 10_000
    assert (counts[~model.support.mask] == 0).all()


@pytest.mark.parametrize("window", [1, 4])
def test_counts_of_one_path(window):
    model = table_of(np.roll(np.eye(5), 1, axis=1)) if window == 1 else TransformerReasoner(5, window, 16, 1, 2)
    counts = dense(transition_counts(model, 1, 10, seeded(2)))
    assert float(counts.sum()) == 10
    if window == 1:  # twice round the ring, wherever it began
        np.testing.assert_array_equal(counts, 2 * np.roll(np.eye(5), 1, axis=1))


@pytest.mark.parametrize("window", [1, 4])
def test_fewer_steps_than_a_path_are_recorded_as_one_path(window, small_graph, exact_reasoner, monkeypatch):
    recorded = []

    def watched(*arguments):
        recorded.append(transition_counts(*arguments))
        return recorded[-1]

    monkeypatch.setattr("mcot_torch.algorithms.distill.transition_counts", watched)
    teacher = exact_reasoner(small_graph)
    if window > 1:
        teacher = TransformerReasoner(32, window, 16, 1, 2)
        teacher.support.set(torch.from_numpy(small_graph.kernel() > 0))
    config = DistillConfig(transitions=3, path_length=10, steps=1, beta=1.0)
    distill(teacher, true_prm(small_graph), Scales.of(small_graph, 0.06), config, context())
    assert [float(dense(x).sum()) for x in recorded] == [10]


# ---- the student ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["linear", "transformer"])
def test_student_learns_the_pair_kernel_and_rescales_time(student, exact_reasoner, tmp_path):
    graph = clustered_graph(10, 32, 0.002)
    teacher = graph.with_epsilon(0.03)
    config = DistillConfig(student=student, steps=1200, learning_rate=0.1 if student == "linear" else 0.01)
    result = distill(exact_reasoner(teacher), true_prm(graph), Scales.of(graph, 0.03), config, context())
    model, history = result.model, result.history
    assert history[-1]["step"] == config.steps
    assert float(model.beta) == pytest.approx(math.log(32 / 0.03), rel=0.01)
    exact = chains.rescale(chains.pair_kernel(teacher.to_scipy(), graph.clusters, 10), math.log(32 / 0.03))
    kernel = model.kernel().numpy()
    # uniform starts are not quite stationary at ε = .03, and 10^9 steps show each hop about 10^5 times
    np.testing.assert_allclose(kernel, exact, rtol=0.05, atol=0)
    times = chains.hitting_times(kernel, [5])
    assert times[0] / 10 == pytest.approx(1.39, rel=0.05)  # docs/specification.md#theorem-43-hops-of-the-student
    save_reasoner(model, tmp_path)
    loaded = load_reasoner(tmp_path)
    assert isinstance(loaded, Student)
    assert torch.equal(loaded.kernel(), model.kernel())
    assert torch.equal(loaded.labels, model.labels)
    assert torch.equal(loaded.representatives, model.representatives)


def test_hops_are_free_of_epsilon(exact_reasoner):
    times = []
    for epsilon in (1e-2, 1e-4):
        graph = clustered_graph(6, 16, epsilon)
        config = DistillConfig(transitions=10**10, steps=1000)
        model = distill(exact_reasoner(graph), true_prm(graph), Scales.of(graph, 0.05), config, context()).model
        times.append(chains.hitting_times(model.kernel().numpy(), [3])[0])
    np.testing.assert_allclose(times, times[0], rtol=0.05)


def test_teacher_that_takes_no_known_step_gives_no_beta(exact_reasoner):
    graph = clustered_graph(5, 8, 1e-9, seed=1)
    config = DistillConfig(transitions=1000, path_length=10, steps=1)
    with pytest.raises(InputError, match=r"none of the 15 known hard steps in 1,000 recorded steps.*distill.beta"):
        distill(exact_reasoner(graph), true_prm(graph), Scales.of(graph, 0.05), config, context())


def test_beta_by_hand():
    """β is added to the logits of hops only, and configured values are taken as they are."""
    inner = LinearReasoner(3)
    with torch.no_grad():
        inner.logits.copy_(torch.tensor([[0.9, 0.1, 1e-9], [0.3, 0.4, 0.3], [0.2, 0.2, 0.6]]).double().log())
    student = Student(inner, 7)
    before = student.kernel().numpy()
    student.beta.fill_(2.0)
    np.testing.assert_allclose(student.kernel().numpy(), chains.rescale(before, 2.0), rtol=1e-12)


class Stop(Exception):
    pass


def test_interrupted_distillation_ends_with_the_same_bits(small_graph, exact_reasoner, tmp_path):
    config = DistillConfig(transitions=100_000, steps=40, log_every=5)
    arguments = (exact_reasoner(small_graph), true_prm(small_graph), Scales.of(small_graph, 0.06), config)
    whole = distill(*arguments, context())

    def stop(line):
        if line["step"] == 20:
            raise Stop

    with pytest.raises(Stop):
        distill(*arguments, context(folder=tmp_path, report=stop))
    resumed = distill(*arguments, context(folder=tmp_path))
    assert resumed.history == whole.history
    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_student_begins_from_the_seed_alone(small_graph, exact_reasoner):
    config = DistillConfig(student="transformer", transitions=10_000, steps=1)
    arguments = (exact_reasoner(small_graph), true_prm(small_graph), Scales.of(small_graph, 0.06), config)
    states = []
    for seed, elsewhere in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(elsewhere)  # what other code draws plays no part
        states.append(distill(*arguments, context(seed)).model.model.state_dict())
    one, same, other = states
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


# ---- lifted paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 4])
def test_lifted_paths_are_valid_and_arrive(window, exact_reasoner):
    graph = clustered_graph(6, 8, 0.01, seed=2)
    table = exact_reasoner(graph)
    student = distill(
        table, true_prm(graph), Scales.of(graph, 0.06), DistillConfig(steps=300, transitions=10**8), context()
    ).model
    teacher = table
    if window > 1:  # untrained, but it knows which steps there are
        teacher = TransformerReasoner(48, window, 16, 1, 2)
        teacher.support.set(table.support.mask)
    start = torch.arange(48)
    target = torch.zeros(48, dtype=torch.bool)
    target[int(graph.entries[3])] = True
    paths, arrived = lift(student, teacher, true_prm(graph), start, target, seeded(3))
    assert arrived.all()
    allowed = graph.kernel() > 0
    for first, path in zip(start.tolist(), paths.tolist(), strict=True):
        length = path.index(-1) if -1 in path else len(path)
        assert set(path[length:]) <= {-1}
        states = path[:length]
        assert states[0] == first
        assert all(allowed[x, y] for x, y in itertools.pairwise(states))
        assert target[states[-1]]
        hops = graph.clusters[states]
        assert target[first] == (length == 1)
        if graph.clusters[first] != 3:
            assert list(hops).count(3) >= 1
            assert (hops[list(hops).index(3) :] == 3).all()  # it does not leave the last cluster again


def test_lifted_paths_by_hand():
    """0 -> 1 -> 0 and 2 -> 3 -> 2, with doors 1 -> 2 and 3 -> 0: where a walk stands at its door it goes through."""
    kernel = [[0, 1, 0, 0], [0.9, 0, 0.1, 0], [0, 0, 0, 1], [0.1, 0, 0.9, 0]]
    student = Student(LinearReasoner(2), 4)
    student.labels.copy_(torch.tensor([0, 0, 1, 1]))
    student.representatives.copy_(torch.tensor([0, 2]))
    prm, start = PRM(4, torch.tensor([[1, 2], [3, 0]])), torch.tensor([2, 3, 0, 1])
    to_one = [[2, 3, 0, 1], [3, 0, 1, -1], [0, 1, -1, -1], [1, -1, -1, -1]]
    to_three = [[2, 3, -1, -1], [3, -1, -1, -1], [0, 1, 2, 3], [1, 2, 3, -1]]
    for target, expected in ((1, to_one), (3, to_three)):
        paths, arrived = lift(student, table_of(kernel), prm, start, torch.arange(4) == target, seeded(0))
        assert paths.tolist() == expected
        assert arrived.all()


def test_hop_without_a_known_step_is_given_up(exact_reasoner):
    graph = clustered_graph(6, 8, 0.01, seed=2)
    table = exact_reasoner(graph)
    student = distill(
        table, true_prm(graph), Scales.of(graph, 0.06), DistillConfig(steps=100, transitions=10**7), context()
    ).model
    into = graph.clusters[graph.sparse_edges[:, 1]]
    unknown = PRM(48, torch.from_numpy(graph.sparse_edges[into != 3]))
    target = torch.zeros(48, dtype=torch.bool)
    target[torch.from_numpy(graph.members(3))] = True
    start = torch.tensor([0, 8, 16, 24])
    paths, arrived = lift(student, table, unknown, start, target, seeded(4), max_steps=5000)
    assert arrived.tolist() == [False, False, False, True]
    assert paths.shape[1] < 5000

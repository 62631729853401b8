"""What every reasoner promises: predictions, cut and raw, kernels, counts against pairs, walks, files."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from mcot_torch.algorithms.pretrain import negative_log_likelihood
from mcot_torch.errors import InputError
from mcot_torch.reasoners import (
    LinearReasoner,
    ReasonerConfig,
    TransformerReasoner,
    build_reasoner,
    generate,
    load_reasoner,
    save_reasoner,
    step_table,
)
from mcot_torch.sampling.datasets import count_batch, path_batch


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def randomised(model, seed=0, scale=0.4):
    """Every parameter random: as built, the projections into the stream are 0 and each block is the identity."""
    draw = seeded(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=scale, generator=draw)
    return model


def some_support(model, seed=1, share=0.5):
    """A random support with the diagonal in it."""
    mask = torch.rand(model.support.mask.shape, generator=seeded(seed)) < share
    model.support.set(mask.fill_diagonal_(True))
    return model


def make(kind, n=7, seed=0, **sizes):
    if kind == "linear":
        return randomised(LinearReasoner(n), seed, 1.0)
    return randomised(TransformerReasoner(n, **{"width": 16, "n_heads": 2, **sizes}), seed)


KINDS = [
    pytest.param("linear", {}, id="linear"),
    pytest.param("transformer", {}, id="window 1"),
    pytest.param("transformer", {"window": 5}, id="window 5"),
    pytest.param("transformer", {"window": 4, "tied": True}, id="tied"),
]


# ---- predictions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "sizes"), KINDS)
def test_cut_and_raw(kind, sizes):
    model = some_support(make(kind, **sizes))
    states = torch.randint(7, (6, model.window), generator=seeded(2))
    logits = model(states).double()
    raw, cut = model.log_probs(states, cut=False).double(), model.log_probs(states).double()
    for b in range(6):
        for t in range(model.window):
            weight = logits[b, t].exp()
            supported = model.support.mask[states[b, t]]
            for y in range(7):
                assert raw[b, t, y].exp().item() == pytest.approx((weight[y] / weight.sum()).item(), rel=1e-5)
                expected = (weight[y] / weight[supported].sum()).item() if supported[y] else 0.0
                assert cut[b, t, y].exp().item() == pytest.approx(expected, rel=1e-5, abs=0)


@pytest.mark.parametrize("kind", ["linear", "transformer"])
def test_kernel_of_window_1(kind):
    model = some_support(make(kind))
    kernel = model.kernel()
    assert kernel.dtype == torch.float64
    np.testing.assert_allclose(kernel.sum(1).numpy(), 1, rtol=1e-14)
    assert (kernel[~model.support.mask] == 0).all()
    assert (kernel[model.support.mask] > 0).all()
    assert (model.kernel(cut=False) > 0).all()
    for x in range(7):
        row = model.log_probs(torch.tensor([[x]]))[0, 0].double().exp()
        np.testing.assert_allclose(kernel[x].numpy(), row.detach().numpy(), rtol=1e-5)


def test_longer_window_has_no_kernel():
    model = make("transformer", window=3)
    with pytest.raises(ValueError, match=r"kernel\(\) needs window 1, and this reasoner has window 3.*context_kernel"):
        model.kernel()
    with pytest.raises(ValueError, match="context_kernel"):
        step_table(model)
    with pytest.raises(ValueError, match="4 states do not fit the window of 3"):
        model(torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize("cut", [True, False])
def test_context_kernel_against_a_loop(cut):
    model = some_support(make("transformer", window=4))
    paths = torch.randint(0, 6, (300, 4), generator=seeded(3))  # more than one block of 256; state 6 is never visited
    kernel, visits, spread = model.context_kernel(paths, cut=cut)
    rows = {x: [] for x in range(7)}
    for path in paths:
        for t in range(4):
            with torch.no_grad():
                prediction = model.log_probs(path[None, : t + 1], cut=cut)[0, -1].double().exp()
            rows[int(path[t])].append(prediction)
    for x in range(6):
        each = torch.stack(rows[x])
        assert visits[x] == len(each)
        np.testing.assert_allclose(kernel[x].numpy(), each.mean(0).numpy(), atol=1e-6)
        distance = (each - each.mean(0)).abs().sum(1).mean() / 2
        assert float(spread[x]) == pytest.approx(float(distance), rel=1e-4)
        assert float(spread[x]) > 1e-3
    assert visits[6] == 0
    assert (kernel[6] == 0).all()


def test_context_kernel_of_window_1_is_the_kernel():
    model = some_support(make("transformer"))
    kernel, visits, spread = model.context_kernel(torch.arange(7).repeat(3)[:, None])
    np.testing.assert_allclose(kernel.numpy(), model.kernel().numpy(), atol=1e-7)
    assert visits.tolist() == [3.0] * 7
    assert float(spread.max()) < 1e-7


def test_cut_drops_what_is_below_the_threshold():
    model = LinearReasoner(3)
    kernel = torch.tensor([[0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.05, 0.06, 0.89]], dtype=torch.float64)
    assert model.support.cut(kernel, 0.1) == 7  # what equals the threshold stays
    assert model.support.mask.tolist() == [[True, True, True], [True, True, True], [False, False, True]]
    assert model.support.cut(kernel, 0.45) == 3
    assert model.support.mask.tolist() == [[True, False, False], [False, True, False], [False, False, True]]
    assert model.support.cut(kernel, 0.0) == 3  # what was cut once stays cut
    fresh = LinearReasoner(3)
    assert fresh.support.cut(kernel, 0.99) == 3  # the likeliest step of a row stays whatever the threshold


def test_linear_starts_at_zero_as_in_the_paper():
    model = LinearReasoner(5)
    np.testing.assert_array_equal(model.kernel().numpy(), np.full((5, 5), 0.2))
    assert model.logits.dtype == torch.float64
    assert model.n_parameters == 25


# ---- counts are sufficient ------------------------------------------------------------------------------------------


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["linear", "transformer"])
def test_gradient_of_counts_is_that_of_the_list_of_pairs(kind):
    model = some_support(make(kind)).double()
    pairs = [(x, y) for x in range(7) for y in range(7) if model.support.mask[x, y]]
    pairs = [pairs[i] for i in torch.randint(len(pairs), (200,), generator=seeded(4))]
    counts = torch.zeros(7, 7, dtype=torch.float64)
    loss = 0.0
    for x, y in pairs:
        counts[x, y] += 1
        loss = loss - model.log_probs(torch.tensor([[x]]))[0, 0, y] / len(pairs)
    states, _, batch = count_batch(counts, dtype=torch.float64)
    by_counts = negative_log_likelihood(model.log_probs(states), batch)
    assert by_counts.item() == pytest.approx(loss.item(), rel=1e-12)
    expected, found = gradients(model, loss), gradients(model, by_counts)
    assert float(expected.abs().max()) > 1e-3
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-10)


def test_gradient_of_paths_is_that_of_cross_entropy():
    model = make("transformer", window=6).double()
    paths = torch.randint(7, (9, 7), generator=seeded(5))
    states, after, counts = path_batch(paths)
    loss = F.cross_entropy(model(paths[:, :-1]).flatten(0, 1), paths[:, 1:].flatten())
    by_counts = negative_log_likelihood(model.log_probs_of(states, after), counts.double())
    assert by_counts.item() == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(gradients(model, by_counts).numpy(), gradients(model, loss).numpy(), atol=1e-10)


# ---- walks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "sizes"), KINDS)
def test_generate_never_takes_an_unsupported_step(kind, sizes):
    model = some_support(make(kind, **sizes), share=0.3)
    start = torch.arange(7).repeat(150)
    paths = generate(model, start, 40, seeded(6))
    assert paths.shape == (1050, 41)
    assert torch.equal(paths[:, 0], start)
    taken = torch.zeros(7, 7, dtype=torch.bool)
    taken[paths[:, :-1], paths[:, 1:]] = True
    assert not taken[~model.support.mask].any()
    assert taken.sum() > 7


@pytest.mark.parametrize(("kind", "sizes"), KINDS)
def test_generate_is_a_function_of_the_generator(kind, sizes):
    model = make(kind, **sizes)
    start = torch.arange(7)
    first = generate(model, start, 30, seeded(7))
    assert torch.equal(first, generate(model, start, 30, seeded(7)))
    assert not torch.equal(first, generate(model, start, 30, seeded(8)))


@pytest.mark.parametrize(("kind", "sizes"), KINDS)
def test_policy_changes_the_walk_and_sees_log_probabilities(kind, sizes):
    model = some_support(make(kind, **sizes))
    model.support.set(model.support.mask.index_fill(1, torch.tensor([0]), True))
    seen = []

    def policy(states, log_p, listed):
        assert listed is None
        seen.append((states.shape, log_p.dtype, float((log_p.exp().sum(-1) - 1).abs().max())))
        assert (log_p[~model.support.mask[states]] == -torch.inf).all()
        return torch.full_like(log_p, -torch.inf).index_fill_(1, torch.tensor([0]), 0.0)

    paths = generate(model, torch.arange(7), 12, seeded(9), policy)
    assert (paths[:, 1:] == 0).all()
    assert all(shape == (7,) and dtype == torch.float64 and error < 1e-6 for shape, dtype, error in seen)


@pytest.mark.parametrize(("kind", "sizes"), KINDS)
def test_sampled_frequencies_follow_the_predictions(kind, sizes):
    """First and second step from state 3: chi-square of each context, 8 tests at 1e-7."""
    model = some_support(make(kind, **sizes), share=0.7)
    paths = generate(model, torch.full((40_000,), 3), 2, seeded(10))
    contexts = [torch.tensor([3]), *(torch.tensor([3, y]) for y in paths[:, 1].unique())]
    for context in contexts:
        inside = (paths[:, : len(context)] == context).all(1)
        found = torch.bincount(paths[inside, len(context)], minlength=7).double()
        with torch.no_grad():
            p = model.log_probs(context[None, -model.window :])[0, -1].double().exp()
        enough = p * inside.sum() >= 5
        assert (found[p == 0] == 0).all()
        if enough.sum() < 2:
            continue
        expected = (p / p[enough].sum())[enough] * found[enough].sum()
        statistic = ((found[enough] - expected) ** 2 / expected).sum()
        assert stats.chi2.sf(float(statistic), int(enough.sum()) - 1) > 1e-7


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "sizes"), KINDS)
def test_save_and_load_are_bitwise(kind, sizes, tmp_path):
    model = some_support(make(kind, **sizes))
    save_reasoner(model, tmp_path / "deep" / "er")
    loaded = load_reasoner(tmp_path / "deep" / "er")
    assert type(loaded) is type(model)
    assert loaded.settings() == model.settings()
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    states = torch.randint(7, (3, model.window), generator=seeded(11))
    assert torch.equal(model.log_probs(states), loaded.log_probs(states))
    assert sorted(p.name for p in (tmp_path / "deep" / "er").iterdir()) == ["model.json", "model.safetensors"]
    save_reasoner(randomised(model, seed=12), tmp_path / "deep" / "er")  # over an older one
    assert not torch.equal(load_reasoner(tmp_path / "deep" / "er").log_probs(states), loaded.log_probs(states))


def test_tied_embedding(tmp_path):
    model = make("transformer", tied=True)
    assert "head.weight" not in model.state_dict()
    save_reasoner(model, tmp_path)
    loaded = load_reasoner(tmp_path)
    assert loaded.head.weight is loaded.embedding.weight
    assert torch.equal(loaded.head.weight, model.head.weight)
    free = make("transformer")
    assert free.n_parameters - model.n_parameters == 7 * 16


def damaged(folder, how):
    weights, settings = folder / "model.safetensors", folder / "model.json"
    if how == "no folder":
        return folder / "nothing"
    if how == "no weights":
        weights.unlink()
    elif how == "no settings":
        settings.unlink()
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "empty":
        weights.write_bytes(b"")
    elif how == "garbage":
        weights.write_bytes(b"\xff" * 200)
    elif how == "half a JSON":
        settings.write_text(settings.read_text()[:20])
    elif how == "binary JSON":
        settings.write_bytes(b"\xff\xfe{}")
    elif how.startswith("JSON "):
        settings.write_text(how.removeprefix("JSON "))
    else:
        key, value = how.split("=")
        settings.write_text(json.dumps({**json.loads(settings.read_text()), key: json.loads(value)}))
    return folder


@pytest.mark.parametrize(
    "how",
    [
        *("no folder", "no weights", "no settings", "truncated", "empty", "garbage", "half a JSON", "binary JSON"),
        *("JSON 3", "JSON []", "JSON null", "JSON {}"),
        *("n_states=8", "n_states=-1", "n_states=\"seven\"", "width=20", "width=32", "n_heads=0", "n_layers=3"),
        *("kind=\"oracle\"", "kind=\"linear\"", "extra=1", "tied=true"),
    ],
)  # fmt: skip
def test_damaged_files_are_input_errors(how, tmp_path):
    save_reasoner(make("transformer"), tmp_path)
    folder = damaged(tmp_path, how)
    with pytest.raises(InputError, match=str(folder)) as error:
        load_reasoner(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["linear", "transformer"])
def test_non_finite_weights_are_input_errors(kind, value, tmp_path):
    model = make(kind)
    with torch.no_grad():
        next(model.parameters())[2, 3] = value
    save_reasoner(model, tmp_path)
    with pytest.raises(InputError, match=r"non-finite number in (logits|embedding.weight)"):
        load_reasoner(tmp_path)


def test_wrong_dtype_is_an_input_error(tmp_path):
    save_reasoner(make("linear").float(), tmp_path)
    with pytest.raises(InputError, match=r"does not fit model\.json at logits"):
        load_reasoner(tmp_path)


# ---- building -------------------------------------------------------------------------------------------------------


def test_build_is_a_function_of_the_seed():
    config = ReasonerConfig(width=16, n_heads=2, window=3)
    first, again, other = (build_reasoner(config, 9, seed) for seed in (1, 1, 2))
    assert torch.equal(first.embedding.weight, again.embedding.weight)
    assert torch.equal(first.blocks[1].up.weight, again.blocks[1].up.weight)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert (first.n_states, first.window, first.width, first.n_layers) == (9, 3, 16, 2)
    np.testing.assert_allclose(first.log_probs(torch.zeros(1, 3, dtype=torch.int64)).detach().exp(), 1 / 9, rtol=1e-6)
    assert isinstance(build_reasoner(ReasonerConfig("linear"), 9, 1), LinearReasoner)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ReasonerConfig(window=0), "reasoner.window is 0"),
        (ReasonerConfig(n_layers=0), "reasoner.n_layers is 0"),
        (ReasonerConfig(n_heads=-2), "reasoner.n_heads is -2"),
        (ReasonerConfig(width=20), "reasoner.width is 20"),
        (ReasonerConfig("linear", window=2), "reasoner.window is 2"),
    ],
)
def test_build_refuses(config, message):
    with pytest.raises(InputError, match=message):
        build_reasoner(config, 5, 0)

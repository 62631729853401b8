"""The export to Hugging Face: the same logits, also after a round trip through a folder, and in its own generation."""

from __future__ import annotations

import sys

import pytest
import torch

from mcot_torch.errors import InputError
from mcot_torch.integrations.huggingface import to_huggingface
from mcot_torch.reasoners import LinearReasoner, TransformerReasoner

SIZES = [
    {},
    {"window": 9, "width": 32, "n_heads": 2, "n_layers": 3},
    {"window": 5, "width": 12, "n_heads": 3, "tied": True},
    {"window": 6, "width": 8, "n_heads": 4},  # one plane a head: a single angle, 1
]


def randomised(**sizes):
    """Every matrix random and large: as built the blocks are identities, and errors of attention would not show."""
    model = TransformerReasoner(11, **sizes)
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.5, generator=draw)
    return model


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_logits_agree_also_after_a_round_trip(sizes, tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    ours = randomised(**sizes)
    states = torch.randint(11, (40, ours.window), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = ours(states)
        exported = to_huggingface(ours)
        exported.save_pretrained(tmp_path)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        for model in (exported, loaded):
            assert (model(input_ids=states).logits - expected).abs().max() <= 1e-5
    if ours.window > 1:  # the comparison can fail: the order of the states matters to the logits
        assert (ours(states.flip(1))[:, -1] - expected[:, -1]).abs().max() > 0.1
    assert sum(p.numel() for p in loaded.parameters()) == ours.n_parameters


def test_greedy_generation_is_ours():
    pytest.importorskip("transformers", minversion="5.0")
    ours = randomised(window=8, width=16)
    chain = [3]
    with torch.no_grad():
        while len(chain) < 8:
            chain.append(int(ours(torch.tensor([chain]))[0, -1].argmax()))
    told = to_huggingface(ours).generate(torch.tensor([[3]]), max_new_tokens=7, do_sample=False)
    assert told[0].tolist() == chain


def test_other_reasoners_are_refused():
    with pytest.raises(InputError, match="a LinearReasoner is no transformer"):
        to_huggingface(LinearReasoner(3))


def test_a_missing_transformers_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r'pip install "mcot_torch\[hf\]"'):
        to_huggingface(TransformerReasoner(3))

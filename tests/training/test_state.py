"""Checkpoint files appear whole and give back what was saved."""

import torch

from mcot_torch.training.state import load_state, save_state


def test_state_round_trip(tmp_path):
    tensors = {
        "a.b": torch.randn(3, 4, dtype=torch.float64),
        "mask": torch.tensor([True, False]),
        "number": torch.tensor(3),
        "view": torch.arange(10.0)[::2],
    }
    meta = {"step": 3, "history": [{"loss": 0.1 + 0.2, "step": 1}], "total": 7}
    path = tmp_path / "deep" / "state.safetensors"
    save_state(path, tensors, meta)
    read, read_meta = load_state(path)
    assert read_meta == meta
    assert set(read) == set(tensors)
    assert all(torch.equal(read[k], tensors[k]) and read[k].dtype == tensors[k].dtype for k in tensors)
    assert [p.name for p in path.parent.iterdir()] == ["state.safetensors"]
    save_state(path, {}, {"step": 4})
    assert load_state(path) == ({}, {"step": 4})
    assert load_state(tmp_path / "nothing") is None

"""One of two gloo ranks that train on the same device; run by conftest.py with torchrun's variables.

`train.py` gives each rank a GPU of its own and exchanges tensors over NCCL, which refuses two ranks on one GPU. This program
joins a gloo group itself, below that check.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import mcot_torch as mt
from mcot_torch.graphs.families.clustered import clustered_graph
from mcot_torch.training.config import TrainerConfig


def main(device: str, folder: Path) -> None:
    """Pretrain over two ranks and save what this rank ended with."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    graph = clustered_graph(4, 8, 0.02, seed=3)
    trainer = TrainerConfig(accelerator=device, devices=2, progress=False)
    reasoner = mt.LinearReasoner(graph.n_states).to(device)
    config = mt.PretrainConfig(steps=150, steps_after_cut=50, transitions=2_000_000)
    result = mt.pretrain(reasoner, graph, config, mt.Context(trainer=trainer))
    mt.save_reasoner(result.model, folder / f"rank{dist.get_rank()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

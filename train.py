"""Train a reasoner on a state graph and evaluate it; `python train.py --help`."""

from mcot_torch.cli import train

if __name__ == "__main__":
    raise SystemExit(train())

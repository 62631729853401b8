"""The loop that all training shares: checkpoints, resume, signals, logging, devices and precision."""

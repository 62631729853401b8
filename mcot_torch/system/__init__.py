"""Nothing scientific: files, ranks, processes, progress, randomness, the machine."""

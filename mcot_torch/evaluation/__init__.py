"""Every model of a run beside the exact chain: numbers only, no drawing and no run folder."""

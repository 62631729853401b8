"""Models of p̂(next state | states so far)."""

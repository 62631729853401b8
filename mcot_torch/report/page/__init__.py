"""report.html: one interactive page a run."""

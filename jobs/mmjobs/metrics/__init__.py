"""Metrics: their totals over ranks, the throughput of a run, and the TensorBoard curves."""

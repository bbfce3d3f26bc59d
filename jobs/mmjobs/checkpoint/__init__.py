"""Checkpoints: what a run keeps on disk so that any attempt can go on from it."""

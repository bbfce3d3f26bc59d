"""Experiment trackers: each file here connects one; `tracker` is what they have in common."""

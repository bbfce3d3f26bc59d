"""Submission: the only rooms that know submitit."""

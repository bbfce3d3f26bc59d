"""Submission: from a loaded recipe to a run directory and a job, and going on with a run."""

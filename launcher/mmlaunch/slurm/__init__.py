"""Slurm behind one seam: nothing else calls its commands or knows its text formats."""

"""Slurm: its commands and its words; nothing else in mmlaunch knows them."""

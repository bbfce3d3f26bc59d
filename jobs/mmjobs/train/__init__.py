"""The trainer: the loop, its engine, checkpoints and what it writes down."""

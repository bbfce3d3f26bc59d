"""What a rank, or a command that needs torch, can be asked to do; one file for each task."""

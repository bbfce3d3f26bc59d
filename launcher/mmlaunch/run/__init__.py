"""The run directory: the only interface between the launcher and the job."""

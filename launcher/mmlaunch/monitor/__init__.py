"""What a run is doing: its status, the reason for its end, its report and its curves."""

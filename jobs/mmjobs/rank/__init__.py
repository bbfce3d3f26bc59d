"""One rank of a job: its signals, its watchdog, its error record, and what all ranks agree on."""

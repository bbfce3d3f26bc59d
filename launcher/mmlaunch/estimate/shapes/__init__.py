"""Parameter shapes of each kind of part, from its configuration alone."""

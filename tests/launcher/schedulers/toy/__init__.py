"""A third scheduler, as someone else would write it."""

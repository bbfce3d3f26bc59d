"""The restart policy: why an attempt ended, and whether another one begins."""

"""Training: builders, sources, learners, and the loop that runs them."""

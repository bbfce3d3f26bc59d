"""Toys: tiny models of the classes that recipes name, with random weights; `--toy` and the tests train them."""

"""The data formats, one file each; `registry` has them by the names that recipes call them."""

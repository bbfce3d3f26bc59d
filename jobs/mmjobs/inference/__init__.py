"""Inference: rows of data go through a model or through functions, shard by shard, and each leaves one record."""

"""Readers: how rows are read from files, shared by the data formats."""

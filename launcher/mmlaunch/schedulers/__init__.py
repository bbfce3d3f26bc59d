"""Schedulers: one folder for each, behind the protocol of `base.py`."""

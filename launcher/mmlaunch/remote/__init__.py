"""Runs on another machine: recipes are sent over ssh, and commands on such runs are given there."""

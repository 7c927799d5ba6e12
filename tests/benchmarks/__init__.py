"""Compares this package with others: `python -m tests.benchmarks --help`."""

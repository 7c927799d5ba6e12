"""Compares this package with the released taskiq: `python -m tests.benchmarks`."""

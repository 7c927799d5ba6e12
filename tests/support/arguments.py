"""What the commands among the tests are given: `python -m tests.benchmarks`, ..."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """Read a number of things.

    :raises argparse.ArgumentTypeError: when it is none.
    """
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number

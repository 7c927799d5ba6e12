"""Warnings that taskiq emits."""


class TaskiqDeprecationWarning(UserWarning):
    """Something is used that a later taskiq will not have.

    Not a `DeprecationWarning`: Python hides those by default.
    """

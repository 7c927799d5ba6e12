"""Receiving messages and running their tasks."""

from taskiq.receiver.receiver import Receiver

__all__ = ["Receiver"]

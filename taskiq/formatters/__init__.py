"""Formatters for messages."""

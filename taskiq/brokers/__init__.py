"""Brokers that come with the package."""

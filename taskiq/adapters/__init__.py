"""Brokers and result backends of plugins that do many operations in one round trip.

Each module here has the classes of one plugin under their own names, with the same
arguments, keys and bytes. It needs that plugin; nothing else imports it.
"""

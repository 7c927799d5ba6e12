"""Published plugins, unmodified, over real servers and through the command line."""

"""Dependencies that tasks can ask for."""

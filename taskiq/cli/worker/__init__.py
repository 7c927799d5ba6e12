"""The `worker` subcommand."""

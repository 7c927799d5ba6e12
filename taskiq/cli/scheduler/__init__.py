"""The `scheduler` subcommand."""

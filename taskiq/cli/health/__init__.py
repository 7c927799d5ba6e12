"""Health of workers: heartbeats in files, over HTTP, and the `health` subcommand."""

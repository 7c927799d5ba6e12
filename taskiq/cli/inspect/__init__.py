"""The `inspect` subcommand: tasks, workers and queues, for people and for scripts."""

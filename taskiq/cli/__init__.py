"""The subcommands of the `taskiq` command."""

"""The `dead` subcommand: dead letters, shown, sent again or dropped."""

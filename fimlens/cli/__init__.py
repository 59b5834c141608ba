"""The command `fimlens`, one file a subcommand."""

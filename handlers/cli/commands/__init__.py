"""The functions that run the commands of `handlers.cli.command_table`."""

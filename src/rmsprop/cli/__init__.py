"""The command line: `rmsprop COMMAND`, one file a command.

A command is a module of this package with a function of the same name; its signature and docstring are its options
and its help. Modules import typer and nothing heavy at the top. Anything wrong with what the user gave is a
ValueError or OSError: `__main__` turns it into one line on standard error and exit code 2.
"""

"""The command line of data preparation, one module per command; nothing heavy is imported.

Each has a docstring (the summary in its help), EXAMPLES (the end of its help, which a test runs), add_flags, run, and
next_step: the words of the command that usually follows, or none.
"""

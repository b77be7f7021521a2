"""What the exit codes of a command mean."""

OK = 0
SOME_FAILED = 1
BAD_INPUT = 2
"""Bad input, or a faulty set-up; nothing was done."""
INTERRUPTED = 130
"""Ctrl+C; finished pictures were kept."""

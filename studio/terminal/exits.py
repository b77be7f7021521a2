"""What the exit codes of a command mean."""

OK = 0
SOME_FAILED = 1
BAD_INPUT = 2
"""Or a fault of the set-up; nothing was done."""
INTERRUPTED = 130
"""What is finished was kept."""

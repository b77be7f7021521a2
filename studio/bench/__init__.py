"""Measurements anyone can repeat: every rival is timed in the same run, every ratio is of medians."""

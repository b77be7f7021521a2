"""Measurements anyone can repeat: every rival is timed in the same run, every ratio is of medians.

`speed` and `quality` are commands of `lora-studio`. The files beside them are for developers, who run each by
`python -m`.
"""

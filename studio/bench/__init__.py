"""Measurements that anyone can repeat. Every rival is measured in the same run, and every ratio is one of medians.

`speed` and `quality` are commands of `lora-studio`. The files beside them are for the studio's developers, who run each
with `python -m`.
"""

"""The commands of the command line, one file each: its flags, what is read from them, and its run.

A file here imports the standard library, `composers`, `flags.py` and the exit codes; only its `read` and `run` import
more. So the flags of all commands cost nothing. `registry.py` finds the files: adding one adds its command.
"""

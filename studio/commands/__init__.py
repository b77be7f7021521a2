"""The commands of the command line, one file each: its flags, how they are read, and its run.

At its top, a file here imports only the standard library, `composers`, `flags.py` and the exit codes; functions import
the rest when they are called. So --help is quick. `registry.py` finds the files: adding one adds its command.
"""

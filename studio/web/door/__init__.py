"""The door: who comes in, by which ways, and which files are whose."""

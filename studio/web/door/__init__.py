"""The door: who comes in, by which ways, and whose each file is."""

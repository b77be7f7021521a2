"""The contents of the Compose form as plain values, and its components."""

"""What stands in the Compose form, as plain values; its components, by name."""

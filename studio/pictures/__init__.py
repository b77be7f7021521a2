"""Pictures on the disk: writing and reading what they say of themselves, and restoring settings from them."""

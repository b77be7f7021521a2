"""Pictures on the disk: what they say of themselves, written and read; how settings come back from them."""

"""The user's LoRA files: found, read by their headers, searched, and matched with models and pictures."""

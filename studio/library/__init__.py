"""The user's LoRA and model files: found, listed, searched, and matched with each other and with pictures."""

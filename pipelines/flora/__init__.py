"""Training true FLoRA adapters (the type itself is `pipelines/adapters/kinds/flora.py`)."""

"""Training true FLoRA adapters. The type itself is in `pipelines/adapters/kinds/flora.py`."""

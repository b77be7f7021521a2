"""The model families: their blocks, their text encoders, their conditions, and how their UNet runs."""

"""Thousands of pictures from a job file: different mixes, methods and models, in full UNet calls, resumable."""

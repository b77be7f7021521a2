"""Batches: thousands of pictures from a job file, with different mixes, methods and models. UNet calls are kept full,
and a run that was ended can be resumed."""

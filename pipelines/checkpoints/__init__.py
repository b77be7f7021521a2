"""A model by any name -> its parts, ready to run."""

from pipelines.checkpoints.loading import Checkpoint, load_checkpoint

__all__ = ["Checkpoint", "load_checkpoint"]

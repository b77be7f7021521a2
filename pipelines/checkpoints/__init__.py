"""From a model's name, path or hub id to its parts, ready to run."""

from pipelines.checkpoints.loading import Checkpoint, load_checkpoint

__all__ = ["Checkpoint", "load_checkpoint"]

"""Jobs: what users ask the web studio to render. They are kept in SQLite and rendered by one worker thread."""

from studio.jobs.job import (
    GalleryPicture,
    JobHead,
    JobState,
    JobView,
    ModelState,
    PictureView,
)
from studio.jobs.lock import HomeLock
from studio.jobs.queue import LIVE
from studio.jobs.training import Lesson, Trainings, TrainingView
from studio.jobs.worker import Worker

__all__ = [
    "LIVE",
    "GalleryPicture",
    "HomeLock",
    "JobHead",
    "JobState",
    "JobView",
    "Lesson",
    "ModelState",
    "PictureView",
    "TrainingView",
    "Trainings",
    "Worker",
]

"""Rendering many mixes of LoRAs in one pass: models, adapters, requests and sessions."""

from pipelines.adapters.adapter import LoadReport
from pipelines.errors import StudioError
from pipelines.events import Cancelled, Event, Failed, Finished, Started, Stepped
from pipelines.flight import Ticket
from pipelines.pipeline import Result, StudioPipeline
from pipelines.record import Record
from pipelines.request import Request
from pipelines.session import Session

__all__ = [
    "Cancelled",
    "Event",
    "Failed",
    "Finished",
    "LoadReport",
    "Record",
    "Request",
    "Result",
    "Session",
    "Started",
    "Stepped",
    "StudioError",
    "StudioPipeline",
    "Ticket",
]

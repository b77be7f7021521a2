"""Unforeseen errors, and memory that runs out: how they are told to the owner of a picture."""

from __future__ import annotations

import logging
import traceback

import torch

from pipelines.errors import RenderError, StudioError

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
)
"""Words by which torch's allocators on the CPU and on Apple's GPUs report it, in a plain RuntimeError."""
SMALLER = "make the picture smaller, use a half-precision dtype, or turn on low memory mode"


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _OUT_OF_MEMORY)


def own_error(error: Exception, doing: str) -> StudioError:
    """The error as the picture's owner is told it: a StudioError as it is, any other as the cause of a RenderError.

    doing: what failed, as in "its text could not be encoded". An error that is neither a StudioError nor a lack of
    memory is logged with its traceback. The error itself loses its traceback, which would keep tensors alive.
    """
    if isinstance(error, StudioError):
        own = error
    elif out_of_memory(error):
        own = RenderError(f"{doing}: memory ran out; {SMALLER}")
        own.__cause__ = error
    else:
        _log(error, doing)
        own = RenderError(
            f"{doing}: {type(error).__name__}: {error}; try it once more, and report it if it fails again"
        )
        own.__cause__ = error
    forget_tensors(error)
    return own


def log_shared(error: Exception, doing: str) -> None:
    """Log an error in work that several pictures share, before each does the work by itself.

    Where each then succeeds, the error fails no picture; without the log nobody would know that sharing does not work.
    As in `own_error`, a StudioError and a lack of memory are not logged.
    """
    if not isinstance(error, StudioError) and not out_of_memory(error):
        _log(error, f"{doing} for several pictures together, so each does it by itself")


def _log(error: Exception, doing: str) -> None:
    trace = "".join(traceback.format_exception(error))  # as text: a log that keeps the trace keeps tensors
    logging.getLogger(__name__).error("%s\n%s", doing, trace)


def forget_tensors(error: BaseException) -> None:
    """Remove the tracebacks of an error and its causes, whose frames keep tensors alive."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = None
        link = link.__cause__ or link.__context__

"""A model's files from the hub, by diffusers' own download: which files are fetched, and how progress is reported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipelines.checkpoints.components import first_line
from pipelines.checkpoints.folders import HALVES, UNUSED, weight_files
from pipelines.errors import ModelError

DownloadProgress = Callable[[int, int], None]
"""Is called during a download with (the bytes that are here, the bytes of all files begun so far). What it raises ends
the download. What is here by then is kept, and the next download goes on from there."""

_TELLING = threading.Lock()


def fetch(
    hub_id: str, dtype: torch.dtype, allow_downloads: bool, progress: DownloadProgress | None = None
) -> Path:
    """The local folder of a model on the hub, downloaded if need be and allowed.

    dtype: a half precision prefers the model's fp16 files. progress: is told how the download goes.
    Raises ModelError where the model cannot be had, and whatever `progress` raises.
    """
    import httpx
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import HfHubHTTPError

    for variant in ("fp16", None) if dtype in HALVES else (None,):
        try:
            with _told(progress):
                folder = DiffusionPipeline.download(
                    hub_id,
                    variant=variant,
                    use_safetensors=True,
                    local_files_only=not allow_downloads,
                    **UNUSED,
                )
        except (OSError, HfHubHTTPError, httpx.HTTPError) as error:
            raise _hub_error(hub_id, error, allow_downloads) from error
        except (ValueError, TypeError, KeyError) as error:
            if variant is None:
                raise ModelError(f"{hub_id} cannot be used: {first_line(error)}") from error
        else:
            if variant is None or weight_files(Path(folder) / "unet", variant):
                return Path(folder)
    raise AssertionError("the last variant returns or raises")


@contextmanager
def _told(progress: DownloadProgress | None) -> Iterator[None]:
    """Within: diffusers' download reports its progress.

    diffusers' function has no argument for that, but the function of huggingface_hub that it calls has one. So for the
    time being that function is replaced by one with this argument.
    """
    if progress is None:
        yield
        return
    import diffusers.pipelines.pipeline_utils

    module: Any = diffusers.pipelines.pipeline_utils
    with _TELLING:
        snapshot_download = module.snapshot_download
        module.snapshot_download = partial(snapshot_download, tqdm_class=_bar(progress))
        try:
            yield
        finally:
            module.snapshot_download = snapshot_download


def _bar(progress: DownloadProgress) -> type[Any]:
    """A class of progress bars for huggingface_hub that draws nothing. One download makes several of them: one counts
    files, one the bytes that come over the network, one the bytes that are written."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    bars: list[Any] = []

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "file": _Nowhere(), "leave": False})
            if self.unit == "B":
                bars.append(self)

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            """Do nothing. `progress` is not called here: tqdm holds a lock, which an exception would never release."""

        def update(self, n: float | None = 1) -> Any:
            drawn = super().update(n)
            totals = [int(bar.total) for bar in bars if bar.total]
            if totals:  # the network's total is a guess, but never too small
                progress(min(max(int(bar.n) for bar in bars), min(totals)), min(totals))
            return drawn

    return Bar


class _Nowhere:
    """A file that ignores what is written."""

    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...


def _hub_error(hub_id: str, error: Exception, allow_downloads: bool) -> ModelError:
    """The error to raise for a failed download. diffusers hides the hub's own error as the cause of another."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    answer = error.__cause__ or error
    if isinstance(answer, GatedRepoError):
        return ModelError(
            f"{hub_id} asks for its licence to be accepted: do so on its page on the hub, then log in with "
            "`hf auth login`"
        )
    if isinstance(answer, RepositoryNotFoundError):
        return ModelError(f"the hub has no model {hub_id!r} (or it is private); check the spelling")
    if not allow_downloads:
        return ModelError(
            f"{hub_id} is not in the local cache, and downloads are not allowed here; download it first, or "
            "give a model's folder or .safetensors file"
        )
    return ModelError(
        f"{hub_id} is not in the local cache and the hub cannot be reached ({first_line(error)}); check the "
        "network, or give a model's folder or .safetensors file"
    )

"""Latents into pictures; on a CUDA device, while the UNet's rounds go on.

On a CUDA device a decode is launched on a stream of its own and gathered when it is done, so that no round waits for
it. Calls of small batches leave most of the device idle, and the decoder's kernels fill the gap. The session's own
thread launches it: a second thread would compete with the first for Python's lock, and could launch work into a CUDA
graph that is being recorded. On a CPU the decoder would only take cores from the steps, so there it runs between the
rounds.

Memory is bounded. One call decodes at most `DECODED_PIXELS` (but always one picture), and fewer where memory runs out.
A single picture that does not fit is decoded tile by tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from pipelines.errors import RenderError
from pipelines.faults import forget_tensors, out_of_memory
from pipelines.memory import empty_cache
from pipelines.model import Model

OutputType = Literal["pil", "np", "pt", "latent"]

DECODED_PIXELS = 4 * 1024 * 1024
"""Pixels decoded in one VAE call."""
SMALLEST_TILE = 8
"""Latent cells of the smallest tile's side."""


@dataclass
class Decoding:
    """A decode under way.

    values: one tensor for each VAE call: [n, height, width, 3] uint8 for "pil", else [n, 3, height, width] float32 in
        0 … 1. For "latent", the latents as they are, on their own device.
    finite: one tensor [n] bool for each call: which of its pictures are finite. All but latents are on the host, and
        are filled once `event` has passed (None: they are filled already).
    tiled: a picture was decoded tile by tile, because memory was short. error: why there are no pictures.
    """

    output_type: OutputType
    values: list[Tensor] = field(default_factory=list)
    finite: list[Tensor] = field(default_factory=list)
    tiled: bool = False
    error: RenderError | None = None
    event: torch.cuda.Event | None = None

    @property
    def ready(self) -> bool:
        """Whether `pictures` returns without waiting."""
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]

    def pictures(self) -> list[object]:
        """The pictures in the latents' order, None for one that is not finite. Waits for the device.

        "pil": a PIL image; "np": [height, width, 3] float32 in 0 … 1; "pt": [3, height, width], the same; "latent":
        [channels, h, w]. Raises RenderError where the decode failed.
        """
        if self.error is not None:
            raise self.error
        if self.event is not None:
            self.event.synchronize()
        flags = [bool(flag) for call in self.finite for flag in call]
        values = [value for call in self.values for value in call]
        return [self._picture(value) if good else None for value, good in zip(values, flags, strict=True)]

    def _picture(self, value: Tensor) -> object:
        match self.output_type:
            case "pil":
                return Image.fromarray(value.numpy())
            case "np":
                return value.permute(1, 2, 0).contiguous().numpy()
            case _:
                return value


class Decoder:
    """Decodes for one session. It holds no thread and no memory between decodes."""

    def __init__(self, model: Model, output_type: OutputType = "pil") -> None:
        self.model = model
        self.output_type = output_type

    def start(self, latents: Tensor) -> Decoding:
        """Start to decode latents [n, channels, h, w] float32. A RenderError is raised later, by `pictures`."""
        if self.output_type == "latent":
            finite = latents.isfinite().flatten(1).all(dim=1)
            return Decoding("latent", [latents], [finite])
        stream = self.model.side_stream
        decoding = Decoding(self.output_type)
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(self.model.device))
            latents.record_stream(stream)  # their memory is not used again before the decode has read them
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            try:
                self._decode(latents, decoding)
            except RenderError as error:
                decoding.error = error
            if stream is not None:
                decoding.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                decoding.event.record(stream)
        return decoding

    @torch.inference_mode()
    def _decode(self, latents: Tensor, decoding: Decoding) -> None:
        model = self.model
        mean, std = model.latent_statistics(latents.device)
        scaled = latents * std / model.vae.config.scaling_factor + mean
        pixels = latents[0, 0].numel() * model.checkpoint.vae_scale_factor**2
        model.needs.require(model.needs.decoded * pixels)
        beside = model.side_stream is not None

        def decoded(some: Sequence[Tensor]) -> None:
            own = torch.stack(list(some))
            image, tiled = _pixels(model.vae, own)
            image = (image.float() / 2 + 0.5).clamp(0, 1)  # [n, 3, height, width]
            finite = own.isfinite().flatten(1).all(dim=1) & image.isfinite().flatten(1).all(dim=1)
            if self.output_type == "pil":
                image = (image.nan_to_num() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            decoding.tiled = decoding.tiled or tiled
            decoding.values.append(_on_host(image, beside=beside))
            decoding.finite.append(_on_host(finite, beside=beside))

        with model.at_work(model.vae):
            model.in_pieces(decoded, list(scaled), max(DECODED_PIXELS // pixels, 1))


def preview(model: Model, latents: Tensor) -> Image.Image:
    """The picture of latents [1, channels, h, w] as they are at a step. Raises RenderError where it is not finite."""
    image = Decoder(model).start(latents).pictures()[0]
    if image is None:
        raise RenderError("the picture is not finite at this step; lower its adapters' strengths")
    assert isinstance(image, Image.Image)
    return image


def _on_host(values: Tensor, *, beside: bool) -> Tensor:
    """The values in the host's memory. beside: they arrive only when the current stream has copied them."""
    if not beside:
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _pixels(vae: Any, latents: Tensor) -> tuple[Tensor, bool]:
    """Scaled latents [n, channels, h, w] as (pixels [n, 3, height, width] in -1 … 1, whether they were tiled).

    Where memory runs out for a single picture, it is cut into tiles, which are halved until they fit. Where it runs out
    for several, the error goes to the caller, who splits them.
    """
    latents = latents.to(vae.dtype)
    try:
        return vae.decode(latents, return_dict=False)[0], False
    except Exception as error:
        if not out_of_memory(error) or len(latents) > 1:
            raise
        forget_tensors(error)
    side = max(latents.shape[-2:]) // 2
    while True:
        empty_cache(latents.device)
        try:
            with tiles(vae, side):
                return vae.decode(latents, return_dict=False)[0], True
        except Exception as error:
            side //= 2
            if not out_of_memory(error) or side < SMALLEST_TILE:
                raise
            forget_tensors(error)


@contextmanager
def tiles(vae: Any, side: int) -> Iterator[None]:
    """Within: the VAE decodes larger latents in tiles of `side` x `side` cells, which overlap by a quarter."""
    before = (vae.use_tiling, vae.tile_latent_min_size, vae.tile_sample_min_size)
    cell = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.use_tiling, vae.tile_latent_min_size, vae.tile_sample_min_size = True, side, side * cell
    try:
        yield
    finally:
        vae.use_tiling, vae.tile_latent_min_size, vae.tile_sample_min_size = before

"""Inpainting: a mask says which part of an initial image is drawn anew. The rest is kept.

White (255) is drawn, black (0) is kept, and what lies between is mixed. After each step the kept part of the latents is
replaced by the initial image with the noise of the next step, as diffusers' inpainting does with text-to-image models
(Lugmayr et al. 2022, arXiv 2201.09865, without resampling). After the last step it is the initial image itself.

The area "only masked" draws the masked part and some padding at the picture's width and height, and pastes the result
into the initial image, whose other pixels stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from pipelines.errors import RequestError

if TYPE_CHECKING:
    from pipelines.request import Request

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom lie outside."""
FILL_SIDE = 512
"""The longer side, in pixels, at which masked content is filled."""


@dataclass(frozen=True)
class Blend:
    """What is kept of an initial image, in latents.

    mask: [1, 1, h, w] float32 in 0 … 1; 1 is drawn. original: [1, channels, h, w] float32. noise: the start noise, of
    the same shape. All are on one device.
    """

    mask: Tensor
    original: Tensor
    noise: Tensor

    def blended(self, latents: Tensor, scheduler: Any, next_timestep: Tensor | None) -> Tensor:
        """The latents after a step, with the kept part of the initial image in them.

        next_timestep: [1], of the next UNet call; None after the last one.
        """
        kept = self.original
        if next_timestep is not None:
            kept = scheduler.add_noise(kept, self.noise, next_timestep)
        return (1 - self.mask) * kept + self.mask * latents

    def to(self, device: torch.device) -> Blend:
        return Blend(self.mask.to(device), self.original.to(device), self.noise.to(device))


@dataclass(frozen=True)
class Canvas:
    """What a request with a mask draws.

    image: RGB, of the request's width and height, with its masked content as asked for. mask: "L", of the same size.
    box: where it lies in the initial image.
    """

    image: Image.Image
    mask: Image.Image
    box: Box

    @property
    def latent_mask(self) -> Tensor:
        """The mask in 0 … 1, [1, 1, height, width] float32."""
        return torch.from_numpy(np.asarray(self.mask, np.float32) / 255)[None, None]


def check_mask(request: Request) -> None:
    """Raises RequestError for a resolved request whose mask leaves nothing to draw where only that is drawn."""
    if request.draws_part:
        assert request.mask is not None
        _drawn(grey(request.mask))


def canvas(request: Request) -> Canvas:
    """What a resolved request with a mask draws. Raises RequestError as `check_mask` does."""
    assert request.init_image is not None
    assert request.width is not None
    assert request.height is not None
    size = request.width, request.height
    box, mask = _patch(request)
    image = request.init_image.convert("RGB").resize(size, Image.Resampling.LANCZOS, box)
    shrinks = mask.width > size[0] or mask.height > size[1]
    mask = mask.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
    if request.mask_content == "fill":
        image = filled(image, mask)
    return Canvas(image, mask, box)


def grey(mask: Image.Image) -> Image.Image:
    """The mask as "L". Where parts of it are transparent, its opacity is the mask, as in A1111."""
    if mask.mode in ("RGBA", "LA", "PA") or "transparency" in mask.info:
        opacity = mask.convert("RGBA").getchannel("A")
        if opacity.getextrema() != (255, 255):
            return opacity
    return mask if mask.mode == "L" else mask.convert("L")


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The image with its masked part filled by the colours around it, the nearest ones most. image: RGB. mask: "L".

    Averages over the known pixels of ever smaller cells are laid over each other; a cell counts by how much of it is
    known. This is done at `FILL_SIDE` pixels at most, as the filled part is smooth.
    """
    known = 1 - torch.from_numpy(np.asarray(mask, np.float32) / 255)[None, None]
    if not known.any():
        return image
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    side = max(image.size)
    size = tuple(max(length * min(FILL_SIDE, side) // side, 1) for length in known.shape[-2:])
    sums = F.adaptive_avg_pool2d(torch.cat([known, known * pixels], 1), (size[0], size[1]))
    around = torch.zeros_like(sums[:, 1:])
    cells = 1
    while cells < 2 * max(size):
        near = F.adaptive_avg_pool2d(sums, (min(cells, size[0]), min(cells, size[1])))
        share = (4 * near[:, :1]).clamp(max=1)
        colour = near[:, 1:] / near[:, :1].clamp(min=1e-6)
        over = F.interpolate(torch.cat([share, share * colour], 1), size, mode="bilinear")
        around = around * (1 - over[:, :1]) + over[:, 1:]
        cells *= 2
    found = torch.lerp(F.interpolate(around, known.shape[-2:], mode="bilinear"), pixels, known)
    return Image.fromarray(found[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())


def pasted(request: Request, image: Image.Image) -> Image.Image:
    """A drawn picture as it is shown. With the area "only masked" it lies in its place in the initial image."""
    if not request.draws_part:
        return image
    assert request.init_image is not None
    box, mask = _patch(request)
    whole = request.init_image.convert("RGB")  # a copy
    whole.paste(image.resize(mask.size, Image.Resampling.LANCZOS), box, mask)
    return whole


def started(blend: Blend, content: str, generator: torch.Generator) -> Blend:
    """The blend with the masked content that is asked for in latents: "noise" or "nothing". generator: draws noise."""
    if content == "noise":
        drawn = torch.randn(blend.original.shape, generator=generator).to(blend.original)
    elif content == "nothing":
        drawn = torch.zeros_like(blend.original)
    else:
        return blend
    return replace(blend, original=(1 - blend.mask) * blend.original + blend.mask * drawn)


def _patch(request: Request) -> tuple[Box, Image.Image]:
    """(the part of the initial image that is drawn, its mask with soft edges, "L"). Raises RequestError for a mask
    without white where only that is drawn.

    With "only masked" it is the masked part with its padding, widened to the ratio of width to height as far as the
    image goes.
    """
    assert request.mask is not None
    assert request.init_image is not None
    mask = grey(request.mask)
    if mask.size != request.init_image.size:
        mask = mask.resize(request.init_image.size, Image.Resampling.BILINEAR)
    if not request.draws_part:
        return (0, 0, *mask.size), _soft(mask, request.mask_blur)
    # no pixel farther away is blurred into
    area = _padded(_drawn(mask), 3 * (request.mask_blur + 1), mask.size)
    soft = _soft(mask.crop(area), request.mask_blur)
    left, top, right, bottom = soft.getbbox() or (0, 0, *soft.size)
    found = (area[0] + left, area[1] + top, area[0] + right, area[1] + bottom)
    left, top, right, bottom = _padded(found, request.mask_padding, mask.size)
    assert request.width is not None
    assert request.height is not None
    ratio = request.width / request.height
    left, right = _widened(left, right, round((bottom - top) * ratio), mask.width)
    top, bottom = _widened(top, bottom, round((right - left) / ratio), mask.height)
    patch = Image.new("L", (right - left, bottom - top))
    patch.paste(soft, (area[0] - left, area[1] - top))
    return (left, top, right, bottom), patch


def _soft(mask: Image.Image, blur: int) -> Image.Image:
    return mask.filter(ImageFilter.GaussianBlur(blur)) if blur else mask


def _drawn(mask: Image.Image) -> Box:
    """The part of a mask that is not black. Raises RequestError where all of it is."""
    found = mask.getbbox()
    if found is None:
        raise RequestError(
            "mask: it is black everywhere, so nothing would be drawn; paint white what is to be drawn anew"
        )
    return found


def _padded(box: Box, pad: int, size: tuple[int, int]) -> Box:
    """The box with so many pixels around it, within a picture of this size."""
    return max(box[0] - pad, 0), max(box[1] - pad, 0), min(box[2] + pad, size[0]), min(box[3] + pad, size[1])


def _widened(first: int, last: int, wanted: int, most: int) -> tuple[int, int]:
    """The span first … last, widened around its middle to `wanted`, within 0 … most. It never shrinks."""
    wanted = min(max(wanted, last - first), most)
    first = min(max(first - (wanted - (last - first)) // 2, 0), most - wanted)
    return first, first + wanted

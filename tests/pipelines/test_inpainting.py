"""A mask says what of an initial image is drawn anew. The judge is stock diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image
from torch import Tensor

from composers import Composite, Switch
from pipelines import Request, StudioPipeline
from pipelines.errors import RequestError
from pipelines.inpainting import Canvas, canvas, filled, grey
from pipelines.schedulers import make_scheduler
from pipelines.session import Session

from .lanes import relative

SIDE = 64


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"{request.param}_folder")
    return found


@pytest.fixture(scope="module")
def pipe(folder: Path, make_lora: Callable[..., Path]) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(folder)
    for seed, name in enumerate(("fox", "hat")):
        pipe.load_lora_weights(make_lora(folder, name, seed=seed), adapter_name=name)
    return pipe


@pytest.fixture(scope="module")
def cell(pipe: StudioPipeline) -> int:
    """Pixels of a latent cell's side."""
    return int(pipe.model.checkpoint.vae_scale_factor)


def noisy(size: tuple[int, int] = (SIDE, SIDE), seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values).resize((size[0] // 4, size[1] // 4)).resize(size, Image.Resampling.BICUBIC)


def masked(box: tuple[int, int, int, int], size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Black with a white box."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def ask(mask: Image.Image | None, image: Image.Image | None = None, **values: Any) -> Request:
    sizes = {} if values.get("mask_area") else {"width": SIDE, "height": SIDE}
    asked = {"seed": 7, "steps": 6, "strength": 0.7, "guidance_scale": 5.0, "mask_blur": 0, **sizes, **values}
    return Request("a fox", init_image=image or noisy(), mask=mask, **asked)


def latents(pipe: StudioPipeline, *requests: Request) -> list[Tensor]:
    return list(pipe(list(requests), output_type="latent").images)


def through_vae(pipe: StudioPipeline, image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.inference_mode():
        return pipe.model.encode_image(pixels, torch.Generator().manual_seed(7))[0]


@pytest.mark.parametrize("scheduler", ["Euler a", "Heun", "DPM++ 2M Karras", "DDIM", "UniPC", "LCM"])
def test_it_equals_diffusers_inpainting_with_a_text_to_image_model(
    pipe: StudioPipeline, folder: Path, stock: Any, scheduler: str, cell: int
) -> None:
    xl = "xl" in folder.name
    kind = StableDiffusionXLInpaintPipeline if xl else StableDiffusionInpaintPipeline
    judge = kind(**stock(folder).components, **({} if xl else {"requires_safety_checker": False}))
    judge.set_progress_bar_config(disable=True)
    judge.scheduler = make_scheduler(scheduler, judge.scheduler)
    mask = masked((cell, 2 * cell, 4 * cell, 5 * cell))
    request = ask(mask, scheduler=scheduler, steps=8)
    expected = judge(
        "a fox", image=request.init_image, mask_image=mask, strength=0.7, num_inference_steps=8,
        guidance_scale=5.0, width=SIDE, height=SIDE, output_type="latent",
        generator=torch.Generator().manual_seed(7),
        # else it would encode the masked image, which such a model never sees, and draw a sample for it
        masked_image_latents=torch.zeros(1, 4, SIDE // cell, SIDE // cell),
    ).images[0]  # fmt: skip
    found = latents(pipe, request)[0]
    assert relative(found, expected) < 1e-4
    assert relative(latents(pipe, ask(None, scheduler=scheduler, steps=8))[0], expected) > 1e-2


def test_a_white_mask_is_image_to_image(pipe: StudioPipeline) -> None:
    white = Image.new("L", (SIDE, SIDE), 255)
    one, other = latents(pipe, ask(white, scheduler="Euler a"), ask(None, scheduler="Euler a"))
    assert torch.equal(one, other)


def test_a_black_mask_is_the_original_through_the_vae(pipe: StudioPipeline) -> None:
    [found] = latents(pipe, ask(Image.new("L", (SIDE, SIDE))))
    assert relative(found, through_vae(pipe, noisy())) < 1e-5


def test_outside_the_mask_nothing_changes(pipe: StudioPipeline, cell: int) -> None:
    box = (0, 0, 3 * cell, 2 * cell)
    [found] = latents(pipe, ask(masked(box), adapters={"fox": 1.0}))
    original = through_vae(pipe, noisy())
    changed = (found - original).abs().amax(0) > 1e-4
    expected = torch.zeros_like(changed)
    expected[:2, :3] = True
    assert torch.equal(changed, expected)


def test_a_soft_edge_mixes(pipe: StudioPipeline, cell: int) -> None:
    half = SIDE // 2
    hard, soft = latents(
        pipe, ask(masked((0, 0, half, SIDE))), ask(masked((0, 0, half, SIDE)), mask_blur=cell)
    )
    differs = (hard - soft).abs().amax((0, 1)) > 1e-6
    assert differs[half // cell - 1]
    assert differs[half // cell]


def test_a_batch_of_all_kinds_equals_each_alone(pipe: StudioPipeline, cell: int) -> None:
    mask = masked((cell, cell, 3 * cell, 3 * cell))
    pair = {"fox": 0.8, "hat": 0.6}
    requests = [
        ask(mask, adapters=pair, composer=Switch(interval=1)),
        ask(mask, adapters=pair, composer=Composite(), mask_content="noise", scheduler="Euler a"),
        ask(None, adapters={"hat": 1.0}),
        Request("a fox", seed=3, steps=5, width=SIDE, height=SIDE, adapters={"fox": 1.0}),
    ]
    together = latents(pipe, *requests)
    for request, found in zip(requests, together, strict=True):
        assert relative(found, latents(pipe, request)[0]) < 5e-5


@pytest.mark.parametrize("content", ["original", "fill", "noise", "nothing"])
def test_what_is_drawn_starts_from_its_content(pipe: StudioPipeline, content: str, cell: int) -> None:
    mask = masked((cell, cell, 3 * cell, 3 * cell))
    own, original = latents(pipe, ask(mask, mask_content=content), ask(mask))
    inside = (slice(None), slice(1, 3), slice(1, 3))
    assert torch.equal(own[inside], original[inside]) == (content == "original")
    assert torch.equal(own[..., -1, -1], original[..., -1, -1]) == (content != "fill")


def test_content_is_filled_with_the_colours_around_it() -> None:
    image = Image.new("RGB", (64, 64), (200, 40, 10))
    image.paste((0, 255, 255), (20, 20, 40, 40))
    image.paste((10, 40, 200), (44, 0, 64, 64))
    found = np.asarray(filled(image, masked((16, 16, 44, 44))))
    assert abs(found[30, 18].astype(int) - (200, 40, 10)).max() < 12
    assert found[30, 40, 2] > found[30, 20, 2]
    assert found[..., 1].max() == 40
    assert filled(image, Image.new("L", (64, 64), 255)) is image


# -- only the masked area --------------------------------------------------------------------------------


def drawn(mask: Image.Image, image: Image.Image | None = None, **values: Any) -> Canvas:
    request = ask(mask, image or noisy((100, 60)), mask_area="only masked", **values)
    assert request.width is not None
    return canvas(request)


@pytest.mark.parametrize(
    ("box", "size", "padding", "expected"),
    [
        ((40, 20, 60, 40), (64, 64), 0, (40, 20, 60, 40)),
        ((40, 20, 60, 40), (64, 64), 8, (32, 12, 68, 48)),
        ((40, 20, 60, 40), (64, 32), 0, (30, 20, 70, 40)),
        ((0, 0, 10, 20), (64, 64), 0, (0, 0, 20, 20)),
        ((90, 50, 100, 60), (32, 64), 0, (90, 40, 100, 60)),
        ((10, 0, 20, 60), (64, 32), 0, (0, 0, 100, 60)),
        ((0, 0, 100, 60), (64, 64), 32, (0, 0, 100, 60)),
    ],
)
def test_the_area_is_the_masked_part_with_its_padding_in_the_pictures_ratio(
    box: tuple[int, int, int, int], size: tuple[int, int], padding: int, expected: tuple[int, ...]
) -> None:
    found = drawn(masked(box, (100, 60)), width=size[0], height=size[1], mask_padding=padding)
    assert found.box == expected
    assert (found.image.size, found.mask.size) == (size, size)


def test_only_the_masked_area_is_drawn_and_pasted_back(pipe: StudioPipeline) -> None:
    image, box = noisy((150, 90)), (40, 20, 70, 45)
    request = ask(
        masked(box, image.size), image, mask_area="only masked", mask_padding=8, width=SIDE, height=SIDE
    )
    found = pipe(request).images[0]
    assert found.size == (150, 90)
    changed = (np.asarray(found) != np.asarray(image)).any(-1)
    inside = np.zeros_like(changed)
    inside[box[1] : box[3], box[0] : box[2]] = True
    assert not changed[~inside].any()
    assert changed[inside].mean() > 0.5


def test_without_a_size_it_is_drawn_at_the_models_own(pipe: StudioPipeline) -> None:
    image = noisy((152, 88))
    session = Session(pipe.model)
    ticket = session.submit(ask(masked((4, 4, 9, 9), image.size), image, mask_area="only masked"))
    own = pipe.model.facts.defaults
    assert (ticket.request.width, ticket.request.height) == (own.width, own.height)


# -- what is refused, and how masks are read -------------------------------------------------------------


def test_a_mask_needs_a_picture_to_start_from() -> None:
    with pytest.raises(RequestError, match="give init_image too"):
        Request("a fox", mask=masked((0, 0, 8, 8)))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("mask", "a.png", "mask must be a PIL image, not a str"),
        ("mask_blur", -1, "mask_blur=-1 must be a whole number in 0 … 1024"),
        ("mask_content", "blue", "mask_content='blue' must be original, fill, noise or nothing"),
        ("mask_area", "half", "mask_area='half' must be whole picture or only masked"),
        ("mask_padding", 1.5, "mask_padding=1.5 must be a whole number"),
    ],
)
def test_values_that_make_no_sense_are_refused(field: str, value: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        ask(**{"mask": None, field: value})  # type: ignore[arg-type]


def test_an_area_without_white_is_refused_before_any_work(pipe: StudioPipeline) -> None:
    session = Session(pipe.model)
    with pytest.raises(RequestError, match="black everywhere"):
        session.submit(ask(Image.new("L", (8, 8)), mask_area="only masked"))
    assert session.idle


def test_a_mask_is_grey_or_its_opacity() -> None:
    assert grey(Image.new("RGB", (2, 2), "white")).getextrema() == (255, 255)
    painted = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    painted.putpixel((0, 0), (0, 0, 0, 255))
    assert list(grey(painted).get_flattened_data()) == [255, 0, 0, 0]
    assert grey(Image.new("RGBA", (2, 2), (255, 255, 255, 255))).getextrema() == (255, 255)
    assert grey(Image.new("1", (2, 2), 1)).getextrema() == (255, 255)


def test_a_mask_of_another_size_is_stretched_to_the_picture() -> None:
    large = Image.new("L", (200, 200))
    large.paste(255, (0, 0, 200, 100))
    found = canvas(ask(large)).mask.point(lambda value: 255 * (value > 127))
    assert found.tobytes() == masked((0, 0, SIDE, SIDE // 2)).tobytes()

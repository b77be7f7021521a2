"""How far a picture has moved from one prompt's picture towards another's: 0 is not at all, 1 is all the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines import assets
from pipelines.checkpoints.components import first_line, read_json
from pipelines.errors import SetupError

Part = Literal["content", "style"]
SMALLEST_SPAN = 0.02
"""Where the margins of the two prompts' pictures differ by less, the scorer cannot tell the prompts apart."""


class Scorer(Protocol):
    """Tells pictures of one prompt from pictures of another."""

    @property
    def name(self) -> str: ...

    def positions(
        self, pictures: Tensor, first: Tensor, second: Tensor, texts: tuple[str, str], part: Part
    ) -> list[float] | None:
        """Where `pictures` lie between `first` (0) and `second` (1), for each of n seeds.

        pictures, first, second: [n, 3, height, width] in 0 … 1. texts: the two prompts. part: in which they differ.
        Results may lie outside 0 … 1. None where the scorer cannot tell first and second apart.
        """
        ...


class PictureStatistics:
    """A scorer without an image-text model: by where edges lie (content), and by the colours (style).

    With features f, the position of x between a and b is <f(x) - f(a), f(b) - f(a)> / |f(b) - f(a)|^2. This is our own
    stand-in, and crude.
    """

    name = "picture statistics"

    def positions(
        self, pictures: Tensor, first: Tensor, second: Tensor, texts: tuple[str, str], part: Part
    ) -> list[float] | None:
        features = _edges if part == "content" else _colours
        start, end, here = features(first), features(second), features(pictures)  # [n, features]
        way = end - start
        length = way.square().sum(dim=1)
        if float(length.min()) < 1e-8:
            return None
        return [float(value) for value in ((here - start) * way).sum(dim=1) / length]


class OpenClip:
    """A scorer by an open_clip model on the CPU: by the margin sim(picture, second text) - sim(picture, first text)."""

    def __init__(
        self, name: str, model: Any, tokens: Any, size: tuple[int, int], mean: Any, std: Any
    ) -> None:
        self.name = name
        self._model = model
        self._tokens = tokens
        self._size = size
        self._mean = torch.tensor(mean).view(1, 3, 1, 1)
        self._std = torch.tensor(std).view(1, 3, 1, 1)

    def positions(
        self, pictures: Tensor, first: Tensor, second: Tensor, texts: tuple[str, str], part: Part
    ) -> list[float] | None:
        start, end, here = (self._margins(some, texts) for some in (first, second, pictures))
        span = end - start
        if float(span.mean()) < SMALLEST_SPAN:
            return None
        return [float(value) for value in (here - start) / span.clamp(min=SMALLEST_SPAN)]

    @torch.no_grad()
    def _margins(self, pictures: Tensor, texts: tuple[str, str]) -> Tensor:
        size = self._size
        pixels = F.interpolate(pictures, size=size, mode="bicubic", align_corners=False, antialias=True)
        seen = self._model.encode_image((pixels.clamp(0, 1) - self._mean) / self._std, normalize=True)
        read = self._model.encode_text(self._tokens(list(texts)), normalize=True)  # [2, width]
        similar: Tensor = seen @ read.T  # [n, 2]
        return similar[:, 1] - similar[:, 0]


class EdgesAndText:
    """A scorer that takes picture statistics for content, and an image-text model for style.

    It is for the image-text model that ships. That has seen each character only in its own colours. So it cannot say
    what an orange rabbit is, and would take a change of colour for a change of content.
    """

    def __init__(self, text: Scorer) -> None:
        self.name = f"where edges lie (content) and {text.name} (style)"
        self._text = text

    def positions(
        self, pictures: Tensor, first: Tensor, second: Tensor, texts: tuple[str, str], part: Part
    ) -> list[float] | None:
        scorer = PictureStatistics() if part == "content" else self._text
        return scorer.positions(pictures, first, second, texts, part)


def pick_scorer(folder: Path | None, *, embedded: bool, tokenizer: Any) -> Scorer:
    """The scorer in `folder`; else, for an embedded model, `EdgesAndText` with the one that ships; else statistics.

    folder: an open_clip folder (open_clip_config.json and its weights). embedded: the model to probe ships with the
        program, so that the shipped scorer knows its words. tokenizer: of the model to probe.
    Raises SetupError for a folder that open_clip cannot load.
    """
    if folder is not None:
        return _open(folder, tokenizer)
    shipped = assets.root() / "testbed" / "scorer"
    if embedded and (shipped / "open_clip_config.json").is_file():
        return EdgesAndText(_open(shipped, tokenizer))
    return PictureStatistics()


def _open(folder: Path, tokenizer: Any) -> OpenClip:
    import open_clip

    where = f"local-dir:{folder}"
    try:
        config = read_json(folder / "open_clip_config.json")
        model: Any = open_clip.create_model(where).eval().requires_grad_(False)
        text = config["model_cfg"]["text_cfg"]
        if text.get("vocab_size") == len(tokenizer):
            length, end = int(text["context_length"]), int(tokenizer.eos_token_id)
            tokens: Any = lambda texts: _own_tokens(tokenizer, texts, length, end)  # noqa: E731
        else:
            tokens = open_clip.get_tokenizer(where)
        size = model.visual.image_size
        pixels = dict(config.get("preprocess_cfg", {}))
    except Exception as error:  # open_clip raises anything
        raise SetupError(
            f"the scorer in {folder} cannot be loaded ({first_line(error)}); give an open_clip folder with "
            "open_clip_config.json and its weights, or none"
        ) from error
    mean, std = (
        pixels.get("mean", open_clip.OPENAI_DATASET_MEAN),
        pixels.get("std", open_clip.OPENAI_DATASET_STD),
    )
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return OpenClip(f"open_clip ({folder.name})", model, tokens, sides, mean, std)


def _own_tokens(tokenizer: Any, texts: Sequence[str], length: int, end: int) -> Tensor:
    """The texts' ids by the rendering model's tokenizer, zeros after the end token `end`: [texts, length]."""
    rows = []
    for text in texts:
        ids = [*tokenizer(text).input_ids[: length - 1]]
        ids = [*ids[: ids.index(end)], end] if end in ids else [*ids, end]
        rows.append(ids + [0] * (length - len(ids)))
    return torch.tensor(rows)


def _edges(pictures: Tensor) -> Tensor:
    """[n, 3, height, width] -> [n, 256]: how strong edges are in each field of a 16 x 16 grid, whatever their colour
    and overall contrast."""
    grey = pictures.float().mean(dim=1, keepdim=True)
    across = (grey[..., :, 1:] - grey[..., :, :-1]).abs()[..., :-1, :]
    down = (grey[..., 1:, :] - grey[..., :-1, :]).abs()[..., :, :-1]
    pooled = F.adaptive_avg_pool2d(across + down, 16).flatten(1)
    return F.normalize(pooled, dim=1)


def _colours(pictures: Tensor) -> Tensor:
    """[n, 3, height, width] -> [n, 30]: the mean, deviation and histogram (8 bins) of each channel."""
    flat = pictures.float().flatten(2)  # [n, 3, pixels]
    bins = (flat.clamp(0, 1) * 8).long().clamp(max=7)
    histogram = F.one_hot(bins, 8).float().mean(dim=2).flatten(1)
    return torch.cat([flat.mean(dim=2), flat.std(dim=2), histogram], dim=1)

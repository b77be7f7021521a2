"""The models that look at pictures: the embedded world's attribute classifier, and any open_clip model.

Each resizes pictures to its own size. The built-in ones were not trained on generated pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines import assets
from pipelines.errors import SetupError
from studio.bench.quality.elements import Element

PARTS = {"clothing": "clothes"}
"""Category -> the classifier's word for it, where it differs."""
BATCH = 64
EMBEDDED = "embedded"
Array = NDArray[np.float32]


def pixels(image: Image.Image, side: int | None = None) -> Tensor:
    """The pixels as [3, h, w] in 0 … 1. side: resize to this height and width."""
    image = image.convert("RGB")
    if side is not None and image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)


class WorldEye:
    """Reads the words of the built-in world from a picture: a ResNet with one softmax for each part."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import ResNetForImageClassification

        self._device = device
        network: Any = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32)
        self._model = network.to(device).eval()
        self._labels = [str(network.config.id2label[n]) for n in range(network.config.num_labels)]

    @cached_property
    def words(self) -> frozenset[str]:
        """All words that it knows, as "part:word"."""
        return frozenset(self._labels)

    def label(self, element: Element) -> str | None:
        """Its own word for an element; None if it does not know the element."""
        part, words = PARTS.get(element.category, element.category), element.words
        for word in (words, words.removeprefix("a ").removesuffix(" style")):
            if f"{part}:{word}" in self.words:
                return f"{part}:{word}"
        return None

    @torch.inference_mode()
    def read(self, pictures: Sequence[Image.Image]) -> list[dict[str, str]]:
        """For each picture: part -> word, "none" if the part is missing."""
        found: list[dict[str, str]] = []
        for x in _batches(pictures, lambda image: pixels(image, 128)):
            logits = self._model((x.to(self._device) - 0.5) / 0.5).logits.float().cpu()
            found += ({} for _ in logits)
            for part in dict.fromkeys(label.split(":")[0] for label in self._labels):
                own = [n for n, label in enumerate(self._labels) if label.startswith(f"{part}:")]
                for row, best in zip(found[-len(logits) :], logits[:, own].argmax(1).tolist(), strict=True):
                    row[part] = self._labels[own[best]].split(":", 1)[1]
        return found

    @torch.inference_mode()
    def features(self, pictures: Sequence[Image.Image]) -> Array:
        """[n, features]: mean and spread of every channel of every stage, each stage of length 1.

        They depend on what is there and how it is drawn, but not on where it is.
        """
        found = []
        for x in _batches(pictures, lambda image: pixels(image, 128)):
            stages = self._model.resnet(
                (x.to(self._device) - 0.5) / 0.5, output_hidden_states=True
            ).hidden_states
            rows = []
            for stage in stages[1:]:  # [n, channels, h, w]
                flat = stage.float().flatten(2)
                row = torch.cat([flat.mean(2), flat.std(2)], 1)
                rows.append(torch.nn.functional.normalize(row, dim=1))
            found.append(torch.cat(rows, 1) / len(rows) ** 0.5)
        return _array(found)


class ClipEye:
    """Compares pictures with texts and with each other: an open_clip model.

    name: for the record. tokenize: texts -> [n, length].
    """

    def __init__(
        self,
        name: str,
        model: Any,
        preprocess: Callable[[Image.Image], Tensor],
        tokenize: Callable[[list[str]], Tensor],
        device: torch.device,
    ) -> None:
        self.name = name
        self._model = model.to(device).eval()
        self._preprocess = preprocess
        self._tokenize = tokenize
        self._device = device

    @torch.inference_mode()
    def pictures(self, images: Sequence[Image.Image]) -> Array:
        """[n, width], each of length 1."""
        batches = _batches(images, self._preprocess)
        return _array([self._model.encode_image(x.to(self._device), normalize=True) for x in batches])

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Array:
        """[n, width], each of length 1."""
        ids = self._tokenize(list(texts)).to(self._device)
        return _array([self._model.encode_text(x, normalize=True) for x in torch.split(ids, BATCH)])


def world_eye(device: torch.device) -> WorldEye:
    return WorldEye(assets.root() / "testbed" / "classifier", device)


def clip_eye(name: str, device: torch.device) -> ClipEye:
    """ "embedded", or an open_clip model as ARCHITECTURE:WEIGHTS (a tag of open_clip's, or a file).

    Raises SetupError if it cannot be opened.
    """
    return _embedded_clip(device) if name == EMBEDDED else _open_clip(name, device)


def _embedded_clip(device: torch.device) -> ClipEye:
    import open_clip
    from safetensors.torch import load_file
    from transformers import CLIPTokenizer

    folder = assets.root() / "testbed" / "scorer"
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    length, side = config["text_cfg"]["context_length"], config["vision_cfg"]["image_size"]
    model = open_clip.CLIP(**config)
    weights = load_file(folder / "open_clip_model.safetensors")
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    words = CLIPTokenizer.from_pretrained(assets.root() / "models" / "tiny-sdxl" / "tokenizer")

    def tokenize(texts: list[str]) -> Tensor:
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            own = words(text, truncation=True, max_length=length).input_ids
            row[: len(own)] = torch.tensor(own)  # zeros behind the end mark
        return ids

    return ClipEye(EMBEDDED, model, lambda image: (pixels(image, side) - 0.5) / 0.5, tokenize, device)


def _open_clip(name: str, device: torch.device) -> ClipEye:
    import open_clip

    architecture, _, weights = name.partition(":")
    if not weights:
        raise SetupError(f"--clip {name}: write ARCHITECTURE:WEIGHTS, as in ViT-B-16:openai")
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=weights)
        tokenize = open_clip.get_tokenizer(architecture)
    except (RuntimeError, ValueError, OSError) as error:  # the hub's errors are OSErrors
        raise SetupError(
            f"--clip {name} cannot be opened ({str(error).splitlines()[0]}); give its weights as a file "
            "(--clip ViT-B-16:weights.safetensors), or go without by --clip none"
        ) from error
    return ClipEye(name, model, preprocess, tokenize, device)


def _batches(images: Sequence[Image.Image], make: Callable[[Image.Image], Tensor]) -> list[Tensor]:
    tensors = [make(image) for image in images]
    return [torch.stack(tensors[at : at + BATCH]) for at in range(0, len(tensors), BATCH)]


def _array(batches: Sequence[Tensor]) -> Array:
    return torch.cat([batch.float().cpu() for batch in batches]).numpy()

"""One checkpoint made ready: its parts on a device, its adapters in the bank, and UNet rows evaluated with them.

All work on the device passes through here. Where the device's memory runs out, the work is split and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, nn

from composers.plan import Band
from pipelines.adapters.adapter import LoadReport, model_layers
from pipelines.adapters.terms import ModelLayers
from pipelines.checkpoints import Checkpoint
from pipelines.checkpoints.components import vae_dtype
from pipelines.embeddings import Embeddings
from pipelines.engine.engine import Engine
from pipelines.engine.residency.bank import Bank, FormChoice
from pipelines.engine.residency.store import AdapterStore, KnownAdapter
from pipelines.errors import RenderError
from pipelines.families.family import Cut, FamilyName
from pipelines.families.unet import cuts_of, feature_shape
from pipelines.faults import SMALLER, forget_tensors, out_of_memory
from pipelines.memory import Needs, empty_cache, needs
from pipelines.request import Facts
from pipelines.text.encoder import Embedding, TextAsk, TextEncoder

Piece = TypeVar("Piece")
Out = TypeVar("Out")

ROWS_AT_ONCE = {"cpu": 32, "cuda": 64}
"""UNet rows a call may hold at the model's native size, as a first guess, by device type."""
LOW_CATEGORIES = ("background", "backgrounds")
"""Categories of adapters in the low frequency band (CMLoRA's table); all others are high."""
TEXTS_AT_ONCE = 64
"""Prompts encoded in one call of a text encoder."""


class Model:
    """A resident checkpoint. Its base weights are never changed. `store` keeps its adapters, `bank` applies them.

    offload: keep each part on the CPU while it does not work. row_limit: UNet rows a call may hold, None to guess.
    feature_limit: bytes for all remembered features, None for half of the free memory.
    """

    def __init__(self, checkpoint: Checkpoint, *, form: FormChoice = "auto") -> None:
        self.checkpoint = checkpoint
        self.unet: Any = checkpoint.unet
        self.vae: Any = checkpoint.vae
        self.device = torch.device("cpu")
        self.dtype = checkpoint.dtype
        self.offload = False
        self.row_limit: int | None = None
        self.feature_limit: int | None = None
        self.profiled: dict[str, Band] = {}  # adapter -> the band that its frequency profile gave
        self.found_limits: dict[tuple[int, int, int], int] = {}  # by latent shape, where memory ran out
        self._side: torch.cuda.Stream | None = None
        self._components: Mapping[str, nn.Module] = {"unet": checkpoint.unet, **checkpoint.text_encoders}
        self.bank = Bank(self._components, form)
        self.engine = Engine(self.unet, self.bank)
        self.layers: ModelLayers = model_layers(checkpoint.family, checkpoint.label, self._components)
        self.store = AdapterStore(self.bank, self.layers, self.dtype)
        self.text = TextEncoder(
            checkpoint.family,
            checkpoint.tokenizers,
            checkpoint.text_encoders,
            force_zeros_for_empty_prompt=checkpoint.force_zeros_for_empty_prompt,
            lanes=self.bank,
        )
        self.embeddings = Embeddings(checkpoint.family, self.text.widths)

    @property
    def facts(self) -> Facts:
        """What a request must know of this model to be resolved."""
        card = self.checkpoint.card
        blocks = {**self.checkpoint.family.block_map, **(card.block_map if card else {})}
        return Facts(
            label=self.checkpoint.label,
            defaults=self.checkpoint.defaults,
            adapters=tuple(self.store.known),
            size_unit=self.checkpoint.vae_scale_factor,
            block_map={f"@{part}": own for part, own in blocks.items()},
            unet_layers=self.layers.components["unet"].keys(),
            adapter_layers={name: known.layers for name, known in self.store.known.items()},
            cuts=cuts_of(self.unet.config, self.checkpoint.family.cut),
            bands={name: self._band(name) for name in self.store.known},
        )

    def _band(self, name: str) -> Band:
        """An adapter's frequency band: its profile's, else "low" for the category background, else "high"."""
        category = self.adapter(name).metadata.category.strip().lower()
        return self.profiled.get(name) or ("low" if category in LOW_CATEGORIES else "high")

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> None:
        """Move everything to a device. dtype: of the UNet and the text encoders; None keeps it.

        The VAE's dtype follows from it (`vae_dtype`). With `offload` on, a part is on the device only while it works.
        """
        self.device, self._side = torch.device(device), None
        self.dtype = dtype or self.dtype
        rest = torch.device("cpu") if self.offload else self.device
        for part in self._components.values():
            nn.Module.to(part, rest, self.dtype)
        nn.Module.to(self.vae, rest, vae_dtype(self.dtype, self.vae.config))
        self.bank.to(self.device)
        self.store.to(self.device, self.dtype)
        self.engine.reset()

    def load_adapter(self, path: Path, name: str, family: FamilyName | None = None) -> LoadReport:
        """Read an adapter file and keep it as `name`. Raises AdapterError, and then keeps nothing.

        family: the base family it was made for, where the file's own metadata is wrong.
        """
        return self.store.load(path, name, family)

    def adapter(self, name: str) -> KnownAdapter:
        """What is known of a loaded adapter, wherever its factors are. Raises KeyError for one that is not loaded."""
        return self.store.known[name]

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """[channels, h, w] of the latents of a picture of `width` x `height` pixels."""
        cell = self.checkpoint.vae_scale_factor
        return (int(self.vae.config.latent_channels), height // cell, width // cell)

    def rows_at_once(self, shape: tuple[int, int, int]) -> int:
        """How many UNet rows one call may hold at a latent shape.

        The number found when memory ran out, else `row_limit`, else a guess from the picture's size, bounded by the
        memory that is free on the CPU.
        """
        known = self.found_limits.get(shape, self.row_limit)
        if known is not None:
            return known
        defaults = self.checkpoint.defaults
        native = self.latent_shape(defaults.width, defaults.height)
        guess = ROWS_AT_ONCE.get(self.device.type, 8) * native[1] * native[2] // (shape[1] * shape[2])
        return self.needs.rows(shape[1] * shape[2], max(guess, 2))

    @property
    def needs(self) -> Needs:
        """The least memory that pictures need on this model."""
        return needs(self.unet, self.vae, self.checkpoint.vae_scale_factor, self.device, self.dtype)

    @property
    def side_stream(self) -> torch.cuda.Stream | None:
        """A CUDA stream for work beside the UNet's. None on other devices, and under `offload`."""
        if self.device.type != "cuda" or self.offload:
            return None
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return self._side

    def feature_bytes(self, shape: tuple[int, int, int], cut: Cut) -> int:
        """Bytes of one lane's remembered features at a latent shape."""
        channels, height, width = feature_shape(self.unet.config, shape, cut)
        return channels * height * width * self.dtype.itemsize

    def feature_room(self) -> int:
        """Bytes that all remembered features may take together: `feature_limit`, else half of what is free now."""
        if self.feature_limit is not None:
            return self.feature_limit
        if self.device.type == "cuda":
            held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return (int(torch.cuda.mem_get_info(self.device)[0]) + held) // 2
        return int(psutil.virtual_memory().available) // 2

    def encode_text(self, asks: Sequence[TextAsk]) -> list[Embedding]:
        """The asks' embeddings, in order, on the model's device.

        One call of a text encoder takes as many asks as the device has room for, their adapters included. Raises
        RequestError for a `clip_skip` beyond the encoder's layers, AdapterError, and RenderError where memory runs out.
        """
        names = [[use.adapter for use in ask.uses] for ask in asks]
        found: list[Embedding] = []
        for portion in self.store.portions(names):
            own = {name for place in portion for name in names[place]}
            some = [asks[place] for place in portion]
            with self.store.holding(own), self.at_work(*self.checkpoint.text_encoders.values()):
                pieces, _, _ = self.in_pieces(self.text.encode, some, TEXTS_AT_ONCE)
            found += [embedding.to(self.device) for piece in pieces for embedding in piece]
        return found

    def evaluate(
        self,
        evaluate: Callable[[Sequence[Piece]], Tensor],
        rows: Sequence[Piece],
        shape: tuple[int, int, int],
    ) -> tuple[Tensor, list[int]]:
        """All rows through the UNet, in calls of at most `rows_at_once`: (predictions [rows, …], rows of each call).

        evaluate: makes one call. shape: the rows' latent shape. Where memory runs out, the rows that fitted are
        remembered for this shape. Raises RenderError where not even one row fits.
        """
        asked = self.rows_at_once(shape)
        self.needs.require(self.needs.row(shape[1] * shape[2]))
        with self.at_work(self.unet):
            found, sizes, held = self.in_pieces(evaluate, rows, asked)
        if held < asked:
            self.found_limits[shape] = held
        return torch.cat(found), sizes

    @torch.inference_mode()
    def encode_image(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Pixels [1, 3, height, width] in -1 … 1 as latents [1, channels, h, w] float32, scaled for the UNet.

        generator: draws the sample from the VAE's distribution. Raises RenderError where memory is too small.
        """
        self.needs.require(self.needs.encoded * pixels.shape[-2] * pixels.shape[-1])
        with self.at_work(self.vae):
            distribution = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
            latents: Tensor = distribution.sample(generator).float()
        mean, std = self.latent_statistics(latents.device)
        scaled: Tensor = (latents - mean) * self.vae.config.scaling_factor / std
        return scaled

    def latent_statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation) of the VAE's latents, each [1, channels or 1, 1, 1].

        A VAE that states only a shift has that as its mean and the deviation 1; one that states neither, 0 and 1.
        """
        config = self.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            mean, std = [config.get("shift_factor") or 0.0], [1.0]
        shape = (1, -1, 1, 1)
        return torch.tensor(mean, device=device).view(shape), torch.tensor(std, device=device).view(shape)

    def in_pieces(
        self, work: Callable[[Sequence[Piece]], Out], rows: Sequence[Piece], at_once: int
    ) -> tuple[list[Out], list[int], int]:
        """Run `work` on the rows in equal pieces of at most `at_once`, and in smaller ones where memory runs out.

        Returns (the results, the pieces' sizes, the most rows that a piece may have by now). Raises RenderError where
        memory does not hold a single row.
        """
        found: list[Out] = []
        sizes: list[int] = []
        done = 0
        while done < len(rows):
            left = len(rows) - done
            piece = rows[done : done + -(-left // -(-left // at_once))]
            try:
                found.append(work(piece))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                forget_tensors(error)
                waited = self._side_settled()
                empty_cache(self.device)
                if waited:  # the work on the other stream held memory that is free now
                    continue
                if len(piece) == 1:
                    raise RenderError(
                        f"the device's memory does not hold even one row of this size; {SMALLER}"
                    ) from error
                at_once = len(piece) // 2
                continue
            sizes.append(len(piece))
            done += len(piece)
        return found, sizes, at_once

    def _side_settled(self) -> bool:
        """Wait for the side stream. Returns whether there was work on it, and whether it is not the current stream."""
        side = self._side
        if side is None or side == torch.cuda.current_stream(self.device) or side.query():
            return False
        side.synchronize()
        return True

    @contextmanager
    def at_work(self, *parts: nn.Module) -> Iterator[None]:
        """Within: the parts are on the device. Afterwards, under `offload`, they go back to the CPU."""
        if not self.offload:
            yield
            return
        for part in parts:
            part.to(self.device)
        try:
            yield
        finally:
            for part in parts:
                part.to("cpu")

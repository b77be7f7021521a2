"""The encoded texts of a session's pictures, each distinct one encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from composers.plan import Plan, Prompt
from pipelines.bounds import MOST_CHUNKS_OF_A_PICTURE
from pipelines.engine.residency.store import KnownAdapter
from pipelines.errors import PromptError
from pipelines.model import Model
from pipelines.request import Request
from pipelines.text.clip_skip import layers_skipped
from pipelines.text.encoder import Embedding, TextAsk

KEPT_BYTES = 128 * 2**20
"""Bytes of embeddings that are kept for later pictures. Those in flight hold their own."""

Asks = Mapping[Prompt, TextAsk]
"""What one picture needs encoded."""


@dataclass(frozen=True)
class PictureTexts:
    """The encoded texts of one picture.

    alone: they were encoded together and without any other text, so that they equal those of the picture by itself to
    the last bit.
    """

    embeddings: Mapping[Prompt, Embedding]
    alone: bool


@dataclass(frozen=True)
class _Key:
    """An ask, and all else that its embedding depends on. Adapters count by identity: a name may be loaded again."""

    ask: TextAsk
    adapters: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class _Kept:
    """An embedding that is kept. same_call: all that was encoded in the call that made it.

    adapters: referred to, so that no other object gets their identity while this is kept.
    """

    embedding: Embedding
    same_call: frozenset[_Key]
    adapters: tuple[KnownAdapter, ...]

    @property
    def bytes(self) -> int:
        pooled = self.embedding.pooled
        return self.embedding.tokens.nbytes + (0 if pooled is None else pooled.nbytes)


class Texts:
    """Encodes texts for one session. Keeps at most `kept_bytes` of them, and drops the least recently used first."""

    def __init__(self, model: Model, kept_bytes: int = KEPT_BYTES) -> None:
        self._model = model
        self._kept_bytes = kept_bytes
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()

    def asks(self, request: Request, plans: Sequence[Plan]) -> Asks:
        """What a resolved request needs encoded. All its texts get the same number of chunks.

        Raises PromptError for a text that cannot be encoded, and where all chunks together are too many.
        """
        prompts = list(dict.fromkeys(lane.prompt for plan in plans for lane in plan.lanes))
        level = self._model.text.level(self._ask(request, prompt) for prompt in prompts)
        chunks = sum(ask.chunks for ask in level)
        if chunks > MOST_CHUNKS_OF_A_PICTURE:
            raise PromptError(
                f"the picture's {len(level)} texts have {chunks} chunks of tokens, more than "
                f"{MOST_CHUNKS_OF_A_PICTURE}; shorten the prompts, or take text_mode=merged"
            )
        return dict(zip(prompts, level, strict=True))

    def has(self, asks: Asks) -> bool:
        """Whether all of it is kept already."""
        return all(self._key(ask) in self._kept for ask in asks.values())

    def encode(self, pictures: Sequence[Asks]) -> list[PictureTexts]:
        """The pictures' texts, in order. What is not kept yet is encoded together. Their adapters must be loaded.

        Raises what `Model.encode_text` raises; then nothing new is kept.
        """
        keys = [{prompt: self._key(ask) for prompt, ask in asks.items()} for asks in pictures]
        kept = {key: self._kept[key] for own in keys for key in own.values() if key in self._kept}
        kept |= self._encoded(dict.fromkeys(key for own in keys for key in own.values() if key not in kept))
        self._keep({key: kept[key] for own in reversed(keys) for key in own.values()})
        return [self._of_picture(own, kept) for own in keys]

    def _encoded(self, keys: Iterable[_Key]) -> dict[_Key, _Kept]:
        keys = list(keys)
        embeddings = self._model.encode_text([key.ask for key in keys]) if keys else []
        same_call = frozenset(key for key in keys if not self._model.text.is_zeros(key.ask))
        return {
            key: _Kept(embedding, same_call, self._adapters(key.ask))
            for key, embedding in zip(keys, embeddings, strict=True)
        }

    def _keep(self, kept: Mapping[_Key, _Kept]) -> None:
        """Keep these embeddings, and drop old ones beyond the limit. kept: the most recently used first."""
        for key, one in reversed(list(kept.items())):
            self._kept[key] = one
            self._kept.move_to_end(key)
        room = self._kept_bytes - sum(one.bytes for one in self._kept.values())
        while room < 0:
            _, dropped = self._kept.popitem(last=False)
            room += dropped.bytes

    def _of_picture(self, own: Mapping[Prompt, _Key], kept: Mapping[_Key, _Kept]) -> PictureTexts:
        encoded = frozenset(key for key in own.values() if not self._model.text.is_zeros(key.ask))
        return PictureTexts(
            {prompt: kept[key].embedding for prompt, key in own.items()},
            alone=all(kept[key].same_call == encoded for key in encoded),
        )

    def _ask(self, request: Request, prompt: Prompt) -> TextAsk:
        """What to encode for a prompt of a resolved request."""
        text = request.wording.texts[prompt.text]
        family = self._model.checkpoint.family.name
        skip = layers_skipped(request.clip_skip, request.clip_skip_as, family, prompt.role)
        adapters = [self._model.adapter(use.adapter) for use in request.uses]
        return TextAsk(text, prompt.text_uses, skip, embeddings=self._model.embeddings.of(text, adapters))

    def _key(self, ask: TextAsk) -> _Key:
        own = tuple(id(adapter) for adapter in self._adapters(ask))
        return _Key(ask, own, self._model.device, self._model.dtype)

    def _adapters(self, ask: TextAsk) -> tuple[KnownAdapter, ...]:
        return tuple(self._model.adapter(use.adapter) for use in ask.uses)

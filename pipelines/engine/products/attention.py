"""Attention whose query, key and value are computed together, and whose text keys and values can be kept.

Keys and values of cross-attention depend on the text and on the adapters' strengths, but not on the step. They are
computed once for a row, and kept until its text or its strengths change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from pipelines.engine.products.layers import together
from pipelines.engine.products.operands import side_by_side

Kept = tuple[Tensor, Tensor]
"""(keys, values) of one attention layer, each [rows, tokens, width]."""


class LaneAttention:
    """diffusers' AttnProcessor2_0 for transformer blocks. Where `kept` is set, it is used for keys and values."""

    def __init__(self) -> None:
        self.kept: Kept | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """hidden_states [rows, tokens, width], encoder_hidden_states [rows, text tokens, text width] for
        cross-attention -> [rows, tokens, width]."""
        rows, tokens, _ = hidden_states.shape
        if encoder_hidden_states is None:
            query, key, value = together([attn.to_q, attn.to_k, attn.to_v], hidden_states)
        else:
            query = attn.to_q(hidden_states)
            key, value = self.kept or together([attn.to_k, attn.to_v], encoder_hidden_states)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, key.shape[1], rows)
            attention_mask = attention_mask.view(rows, attn.heads, -1, attention_mask.shape[-1])
        heads = [
            part.view(rows, -1, attn.heads, part.shape[-1] // attn.heads).transpose(1, 2)
            for part in (query, key, value)
        ]  # [rows, heads, tokens, head]
        found = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=attention_mask)
        found = found.transpose(1, 2).reshape(rows, tokens, -1)
        found = attn.to_out[1](attn.to_out[0](found))
        if attn.residual_connection:
            found = found + hidden_states
        result: Tensor = found / attn.rescale_output_factor if attn.rescale_output_factor != 1 else found
        return result


def join_attention(model: nn.Module) -> dict[str, Any]:
    """Give every plain attention layer of `model` a LaneAttention, in place. Returns name -> layer for these."""
    found: dict[str, Any] = {}
    for name, attn in _attention(model):
        if (
            type(attn.processor) is AttnProcessor2_0
            and attn.group_norm is attn.spatial_norm is attn.norm_q is attn.norm_k is None
            and attn.to_k is not None
            and not attn.norm_cross
        ):
            attn.processor = LaneAttention()
            found[name] = attn
    return found


def restore_attention(model: nn.Module) -> None:
    """Give `model` diffusers' own processors back, in place: undoes `join_attention`."""
    for _, attn in _attention(model):
        if isinstance(attn.processor, LaneAttention):
            attn.processor = AttnProcessor2_0()  # type: ignore[no-untyped-call]


def join_weights(model: nn.Module) -> None:
    """Lay the weights of each self-attention's query, key and value side by side in memory, in place.

    So one product can serve all three (`operands.py`). They remain three parameters. Moving the model separates them
    again. What was recorded with the weights at their old place must be recorded anew.
    """
    for _, attn in _attention(model):
        if attn.to_k is not None and not attn.is_cross_attention:
            weights = [attn.to_q.weight, attn.to_k.weight, attn.to_v.weight]
            if len({weight.shape for weight in weights}) == 1 and side_by_side(weights) is None:
                joined = torch.stack([weight.detach() for weight in weights])
                for weight, part in zip(weights, joined, strict=True):
                    weight.data = part


def _attention(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Attention)]


@dataclass(frozen=True)
class RowText:
    """What a row's text keys and values depend on: its text (compared by identity) and the mix on the layers."""

    text: Tensor
    mix: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowText) and self.text is other.text and self.mix == other.mix

    def __hash__(self) -> int:
        return hash((id(self.text), self.mix))


class TextMemory:
    """The keys and values of some cross-attention layers, for the rows of the last call.

    layers: name -> attention layer with a LaneAttention processor. kept: name -> the layer's keys and values.
    """

    def __init__(self, layers: Mapping[str, Any]) -> None:
        self.kept: dict[str, Kept] = {}
        self._layers = dict(layers)
        self._seats: list[RowText] = []
        self._tokens = 0

    def missing(self, rows: Sequence[RowText], tokens: int) -> list[int]:
        """The places of rows whose keys and values are not known yet; of equal rows, the first.

        tokens: of each text.
        """
        if tokens == self._tokens and list(rows) == self._seats:
            return []
        known = set(self._seats) if tokens == self._tokens else set()
        found: dict[RowText, int] = {}
        for place, row in enumerate(rows):
            if row not in known:
                found.setdefault(row, place)
        return list(found.values())

    def seat(self, rows: Sequence[RowText], missing: Sequence[int], text: Tensor) -> None:
        """Keep the keys and values of exactly these rows. Known ones are carried over, missing ones are computed.

        missing: as the method of that name gives it. text: these rows' texts, [missing rows, tokens, width]. The
        adapters of these rows must be acting now.
        """
        if not missing and list(rows) == self._seats:
            return
        if text.shape[1] != self._tokens:
            self._seats, self.kept = [], {}
        source = {row: place for place, row in enumerate(self._seats)}
        first = len(self._seats)
        source |= {rows[place]: first + order for order, place in enumerate(missing)}
        index = [source[row] for row in rows]
        straight = index == list(range(first + len(missing)))
        kept: dict[str, Kept] = {}  # replaces the old one only once it is whole: memory may run out
        for name, layer in self._layers.items():
            parts = self.kept.get(name)
            if missing:
                new = together([layer.to_k, layer.to_v], text)
                parts = (
                    (new[0], new[1])
                    if parts is None
                    else (torch.cat([parts[0], new[0]]), torch.cat([parts[1], new[1]]))
                )
            assert parts is not None
            kept[name] = parts if straight else (parts[0][index], parts[1][index])
        self.kept, self._seats, self._tokens = kept, list(rows), text.shape[1]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within: the layers use the kept keys and values."""
        try:
            for name, kept in self.kept.items():
                self._layers[name].processor.kept = kept
            yield
        finally:
            for layer in self._layers.values():
                layer.processor.kept = None

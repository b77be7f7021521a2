"""Attention whose query, key and value are computed as one unit, and whose text keys and values can be kept.

Keys and values of cross-attention depend on the text and on the adapters' strengths alone, not on the step. They are
computed once for a row and kept while both stay as they are.
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
"""Keys and values of one attention layer, [rows, tokens, width] each."""


class LaneAttention:
    """diffusers' AttnProcessor2_0 for transformer blocks, with `kept` in place of keys and values where it is set."""

    def __init__(self) -> None:
        self.kept: Kept | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """hidden_states [rows, tokens, width], encoder_hidden_states [rows, text tokens, text width]."""
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
    """Give every plain attention layer of `model` a LaneAttention, in place; name -> layer. Others stay as they are."""
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
    """Give `model` diffusers' own processors back, in place."""
    for _, attn in _attention(model):
        if isinstance(attn.processor, LaneAttention):
            attn.processor = AttnProcessor2_0()  # type: ignore[no-untyped-call]


def join_weights(model: nn.Module) -> None:
    """Lay the weights of every self-attention's query, key and value side by side in memory, in place, so that one
    product can serve all three (`products.py`). They stay parameters of their own; moving the model parts them, and
    what was recorded with them before must be recorded anew."""
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
    """What a row's text keys and values depend on: its text (by identity) and what acts on the layers."""

    text: Tensor
    mix: object

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowText) and self.text is other.text and self.mix == other.mix

    def __hash__(self) -> int:
        return hash((id(self.text), self.mix))


class TextMemory:
    """Keys and values of some cross-attention layers, row by row.

    layers: name -> attention layer with a LaneAttention processor. kept: name -> what is kept of it.
    """

    def __init__(self, layers: Mapping[str, Any]) -> None:
        self.kept: dict[str, Kept] = {}
        self._layers = dict(layers)
        self._seats: list[RowText] = []
        self._tokens = 0

    def missing(self, rows: Sequence[RowText], tokens: int) -> list[int]:
        """Rows, each text once, whose keys and values are not known yet."""
        if tokens == self._tokens and list(rows) == self._seats:
            return []
        known = set(self._seats) if tokens == self._tokens else set()
        found: dict[RowText, int] = {}
        for place, row in enumerate(rows):
            if row not in known:
                found.setdefault(row, place)
        return list(found.values())

    def seat(self, rows: Sequence[RowText], missing: Sequence[int], text: Tensor) -> None:
        """Keep exactly these rows: known ones are carried over, the others are computed.

        text: [missing rows, tokens, width] of the rows that `missing` has named, whose adapters are acting now.
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
        kept: dict[str, Kept] = {}  # taken over as a whole: device memory may run out on the way
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
        """Within: the layers take what was kept."""
        try:
            for name, kept in self.kept.items():
                self._layers[name].processor.kept = kept
            yield
        finally:
            for layer in self._layers.values():
                layer.processor.kept = None

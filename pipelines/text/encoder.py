"""Prompts into embeddings: many asks, each with its own adapters, encoded together by each text encoder.

An unweighted prompt of at most 75 tokens, alone in its call, gives bit for bit what diffusers' `encode_prompt`
gives. For other prompts two rules of A1111's web UI apply, as its behaviour shows them:

- Long prompts are cut into chunks of at most 75 tokens. Each chunk gets begin and end tokens and is encoded by
  itself. Where a cut would fall within 20 tokens after a comma, it moves back to that comma. BREAK ends a chunk.
  The pooled embedding is that of the first chunk.
- Weights multiply the token embeddings that come out of each encoder. Then each chunk is rescaled to the mean that
  it had, within the bounds that `weigh` tells. Begin, end and padding tokens have weight 1. The pooled embedding is
  not weighted. Chunks without weights are left untouched.

diffusers applies `clip_skip` to the positive prompt only. Here the caller decides that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from composers.plan import Use
from pipelines.bounds import LONGEST_PROMPT, MOST_CHUNKS, check_text, check_words
from pipelines.errors import ModelError, PromptError, RequestError
from pipelines.families.family import Family
from pipelines.text.embeddings import TextualInversion, is_within, mentions, put_in, tokens_of
from pipelines.text.prompt import WeightedText, parse

COMMA_REACH = 20  # tokens that a cut may move back to reach a comma (A1111's default)
SMALLEST_GROWTH = 0.1  # rescaling multiplies by 10 at most, whatever the weights
ROWS_AT_ONCE = 64  # chunks in one forward; SDXL keeps all layers' states of each, 6.5 MB in 16 bits


@dataclass(frozen=True)
class TextAsk:
    """One prompt to encode. Equal asks are encoded once.

    text: in A1111's syntax, without adapter tags. None means "no negative prompt": zeros (pooled too) for a
        model with `force_zeros_for_empty_prompt`, else the encoded empty text.
    uses: the adapters on the text encoders. `weight` is their strength here.
    clip_skip: how many layers to skip from the family's usual one, which None takes; -1 is the layer after it.
    chunks: the least number of chunks; encoded empty chunks fill up. All asks of one picture need the same
        number: see `TextEncoder.level`.
    embeddings: those that the text mentions.
    """

    text: str | None
    uses: tuple[Use, ...] = ()
    clip_skip: int | None = None
    chunks: int = 1
    embeddings: tuple[TextualInversion, ...] = ()


@dataclass(frozen=True)
class Embedding:
    """An encoded prompt, on the encoder's device and in its dtype. Equal asks share one, so never write into it."""

    tokens: Tensor  # [77 * chunks, width]
    pooled: Tensor | None  # [pooled width]; None where the family has none

    def to(self, device: torch.device) -> Embedding:
        return Embedding(self.tokens.to(device), None if self.pooled is None else self.pooled.to(device))


class Lanes(Protocol):
    """Gives each row of a text encoder's forward its own adapters. `Bank` is one."""

    def active(self, component: str, rows: Sequence[tuple[Use, ...]]) -> AbstractContextManager[object]:
        """Within: one forward of `component` ("text_encoder", …), whose row i runs with the adapters rows[i]."""
        ...


class NoLanes:
    """For encoders without adapters."""

    def active(self, component: str, rows: Sequence[tuple[Use, ...]]) -> AbstractContextManager[object]:
        assert not any(rows), f"{component} has no adapters, yet {next(filter(None, rows))} is asked for"
        return nullcontext()


@dataclass(frozen=True)
class Chunk:
    """One row of a text encoder: begin token, up to 75 tokens, end token, padding; with a weight for each token.

    Tokens below 0 are vectors of embeddings (`pipelines.text.embeddings`).
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def weighted(self) -> bool:
        return any(weight != 1 for weight in self.weights)


@dataclass(frozen=True)
class _Encoder:
    """One text encoder with its tokenizer (transformers' CLIP classes)."""

    name: str
    model: Any
    tokenizer: Any

    @property
    def width(self) -> int:
        """Numbers in a token's vector."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def length(self) -> int:
        """Tokens in a row, begin and end included: 77 for CLIP, even if its tokenizer states no length."""
        return int(min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings))

    def tokens(self, text: str, embeddings: Sequence[TextualInversion] = ()) -> list[list[tuple[int, float]]]:
        """The prompt's (token id, weight) pairs, one list for each section between BREAKs.

        Raises PromptError as `parse` and `check_words` do, and RequestError as `check_text` does.
        """
        check_text("the prompt", text, LONGEST_PROMPT)
        sections = parse(text).sections
        return [[pair for run in section for pair in self._run(run, embeddings)] for section in sections]

    def _run(self, run: WeightedText, embeddings: Sequence[TextualInversion]) -> Iterator[tuple[int, float]]:
        check_words("the prompt", run.text)  # only now, as words may have joined where brackets were
        for part in mentions(run.text, embeddings):
            if isinstance(part, TextualInversion):
                ids = tokens_of(embeddings.index(part), part)
            else:
                ids = self.tokenizer(part, add_special_tokens=False, verbose=False).input_ids
            yield from ((token, run.weight) for token in ids)

    def chunks(
        self, text: str, at_least: int = 1, embeddings: Sequence[TextualInversion] = ()
    ) -> list[Chunk]:
        """The prompt's rows, filled up with empty ones to `at_least`. Raises PromptError for more than `MOST_CHUNKS`,
        and as `tokens` does."""
        size = self.length - 2
        comma = self.tokenizer.convert_tokens_to_ids(",</w>")
        sections = self.tokens(text, embeddings)
        if len(sections) > 1 and not sections[-1]:  # a BREAK at the end opens no chunk
            sections.pop()
        cut = [piece for section in sections for piece in cut_tokens(section, size, comma)]
        if len(cut) > MOST_CHUNKS:
            tokens = sum(map(len, sections))
            raise PromptError(
                f"the prompt has {tokens} tokens, {len(cut)} chunks of {self.length}; at most {MOST_CHUNKS} chunks are "
                f"encoded: shorten it to about {MOST_CHUNKS * size} tokens"
            )
        cut += [[]] * (at_least - len(cut))
        return [self._framed(piece, size) for piece in cut]

    def _framed(self, piece: list[tuple[int, float]], size: int) -> Chunk:
        tokenizer, padding = self.tokenizer, size - len(piece)
        ids = [tokenizer.bos_token_id, *(token for token, _ in piece), tokenizer.eos_token_id]
        ids += [tokenizer.pad_token_id] * padding
        return Chunk(tuple(ids), (1.0, *(weight for _, weight in piece), *[1.0] * (padding + 1)))


class _Row(NamedTuple):
    """One row of a forward: its tokens, and the adapters and embeddings that belong to it."""

    ids: tuple[int, ...]
    uses: tuple[Use, ...]
    embeddings: tuple[TextualInversion, ...]


@contextmanager
def _embedded(encoder: _Encoder, rows: Sequence[_Row], ids: Tensor) -> Iterator[None]:
    """Within: the rows' tokens below 0 get the vectors of their embeddings. ids: [rows, tokens]."""
    if not any(row.embeddings for row in rows):
        yield
        return
    embeddings = [row.embeddings for row in rows]
    hook = encoder.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, states: put_in(states, ids, embeddings, encoder.name)
    )
    try:
        yield
    finally:
        hook.remove()


class TextEncoder:
    """The text encoders of one model. It caches nothing; the caller keeps what it gets."""

    def __init__(
        self,
        family: Family,
        tokenizers: Mapping[str, Any],
        text_encoders: Mapping[str, Any],
        *,
        force_zeros_for_empty_prompt: bool = False,
        lanes: Lanes | None = None,
    ) -> None:
        """tokenizers, text_encoders: by the text encoder's component name ("text_encoder", …).

        lanes: what applies adapters; None allows none. Raises ModelError where a part that the family needs is missing.
        """
        self.family = family
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        self.lanes: Lanes = lanes or NoLanes()
        self._encoders: list[_Encoder] = []
        for name in family.text_encoders:
            model, tokenizer = text_encoders.get(name), tokenizers.get(name)
            if model is None or tokenizer is None:
                missing = name if model is None else f"tokenizer for its {name}"
                raise ModelError(f"this {family.label} model has no {missing}; take a complete one")
            self._encoders.append(_Encoder(name, model, tokenizer))

    def count_tokens(self, text: str) -> tuple[int, int]:
        """(tokens, chunks) of a prompt without tags. Begin, end and padding tokens are not counted.

        Raises PromptError and RequestError for one that is too long.
        """
        tokens = sum(len(section) for section in self._encoders[0].tokens(text))
        return tokens, self.chunks(TextAsk(text))

    def chunks(self, ask: TextAsk) -> int:
        """How many chunks of 77 tokens the ask's embedding has."""
        text = ask.text or ""
        return max(len(encoder.chunks(text, ask.chunks, ask.embeddings)) for encoder in self._encoders)

    @property
    def widths(self) -> dict[str, int]:
        """Component -> the width of its tokens' vectors."""
        return {encoder.name: encoder.width for encoder in self._encoders}

    def level(self, asks: Iterable[TextAsk]) -> tuple[TextAsk, ...]:
        """The asks of one picture, all with the number of chunks of the longest. Raises as `count_tokens` does."""
        asks = tuple(asks)
        most = max((self.chunks(ask) for ask in asks), default=1)
        return tuple(replace(ask, chunks=most) for ask in asks)

    def encode(self, asks: Sequence[TextAsk]) -> list[Embedding]:
        """The asks' embeddings, in order. Each text encoder makes one forward for every `ROWS_AT_ONCE` chunks.

        Raises RequestError where an ask skips more layers than an encoder has, and as `count_tokens` does.
        """
        asks = [replace(ask, chunks=self.chunks(ask)) for ask in asks]
        distinct = [ask for ask in dict.fromkeys(asks) if not self.is_zeros(ask)]
        with torch.no_grad():
            embeddings = dict(zip(distinct, self._encode(distinct), strict=True))
            embeddings |= {ask: self._zeros(ask) for ask in dict.fromkeys(asks) if self.is_zeros(ask)}
        return [embeddings[ask] for ask in asks]

    def is_zeros(self, ask: TextAsk) -> bool:
        """Whether the ask's embedding is zeros, without an encoder's work."""
        return ask.text is None and self.force_zeros_for_empty_prompt

    def _zeros(self, ask: TextAsk) -> Embedding:
        last = self._encoders[-1]
        place = {"device": last.model.device, "dtype": last.model.dtype}
        width = sum(encoder.model.config.hidden_size for encoder in self._encoders)
        tokens = torch.zeros(ask.chunks * last.length, width, **place)
        sized = self.family.size_conditioned
        return Embedding(tokens, torch.zeros(last.model.config.projection_dim, **place) if sized else None)

    def _encode(self, asks: list[TextAsk]) -> list[Embedding]:
        if not asks:
            return []
        parts = [self._encode_with(encoder, asks) for encoder in self._encoders]
        dtype = self._encoders[-1].model.dtype
        embeddings = []
        for per_encoder in zip(*parts, strict=True):
            tokens = torch.cat([part.tokens for part in per_encoder], dim=-1).to(dtype)
            embeddings.append(Embedding(tokens, per_encoder[-1].pooled))
        return embeddings

    def _encode_with(self, encoder: _Encoder, asks: list[TextAsk]) -> list[Embedding]:
        """One encoder's part of the asks' embeddings. Equal pairs of (tokens, adapters) share a row."""
        chunks = [encoder.chunks(ask.text or "", ask.chunks, ask.embeddings) for ask in asks]
        rows = [
            [_Row(chunk.ids, ask.uses, ask.embeddings if min(chunk.ids) < 0 else ()) for chunk in own]
            for ask, own in zip(asks, chunks, strict=True)
        ]
        order = {row: index for index, row in enumerate(dict.fromkeys(row for own in rows for row in own))}
        skips = dict.fromkeys(ask.clip_skip for ask in asks)
        layers, pooled = self._forwards(encoder, list(order), list(skips))
        embeddings = []
        for ask, own, own_rows in zip(asks, chunks, rows, strict=True):
            places = [order[row] for row in own_rows]
            states = layers[ask.clip_skip][places]  # [chunks, 77, width]
            if any(chunk.weighted for chunk in own):
                states = weigh(states, torch.tensor([chunk.weights for chunk in own], device=states.device))
            first = None if pooled is None else pooled[places[0]]
            embeddings.append(Embedding(states.flatten(0, 1), first))
        return embeddings

    def _forwards(
        self,
        encoder: _Encoder,
        rows: Sequence[_Row],
        skips: list[int | None],
    ) -> tuple[dict[int | None, Tensor], Tensor | None]:
        """Run the encoder on rows of (tokens, adapters), at most `ROWS_AT_ONCE` in one forward.

        Returns clip_skip -> the states that condition the UNet, [rows, 77, width]; and the pooled states, [rows, pooled
        width], which only SDXL's second encoder has (else None).
        """
        layers: dict[int | None, list[Tensor]] = {skip: [] for skip in skips}
        pooled: list[Tensor] = []
        layered = self.family.size_conditioned or any(skip is not None for skip in skips)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            ids = torch.tensor([row.ids for row in some], device=encoder.model.device)  # [rows, 77]
            known = ids.clamp(min=0)
            with self.lanes.active(encoder.name, [row.uses for row in some]), _embedded(encoder, some, ids):
                output = encoder.model(
                    known, attention_mask=self._mask(encoder, known), output_hidden_states=layered
                )
            for skip in skips:
                layers[skip].append(self._layer(encoder, output, skip))
            if self.family.size_conditioned and getattr(output, "text_embeds", None) is not None:
                pooled.append(output.text_embeds)
        return {skip: _joined(states) for skip, states in layers.items()}, _joined(pooled) if pooled else None

    def _layer(self, encoder: _Encoder, output: Any, clip_skip: int | None) -> Tensor:
        """The hidden states that condition the UNet.  # [rows, 77, width]

        As in diffusers' `encode_prompt` of each family: SDXL takes the states of the last layer but one, without the
        final norm. The others take the last layer's, with the norm. `clip_skip` counts back from there.
        """
        if clip_skip is None and not self.family.size_conditioned:
            last: Tensor = output.last_hidden_state
            return last
        nearest = 2 if self.family.size_conditioned else 1
        back, most = nearest + (clip_skip or 0), len(output.hidden_states)
        if not 1 <= back <= most:
            raise RequestError(
                f"clip skip: {clip_skip} layers cannot be skipped; this model's {encoder.name} can skip 0 to "
                f"{most - nearest}"
            )
        states: Tensor = output.hidden_states[-back]
        if not self.family.size_conditioned:
            # In some of transformers' classes and versions the norm is in `text_model`, in others in the model itself.
            states = getattr(encoder.model, "text_model", encoder.model).final_layer_norm(states)
        return states

    def _mask(self, encoder: _Encoder, ids: Tensor) -> Tensor | None:
        """Which tokens are attended to, [rows, 77]. None is all, padding included, as nearly every model wants it."""
        if self.family.size_conditioned or not getattr(encoder.model.config, "use_attention_mask", False):
            return None
        ends = (ids == encoder.tokenizer.eos_token_id).int().argmax(dim=-1, keepdim=True)  # [rows, 1]
        mask: Tensor = (torch.arange(ids.shape[1], device=ids.device) <= ends).long()  # [rows, 77]
        return mask


def cut_tokens(
    tokens: Sequence[tuple[int, float]], size: int, comma: int, reach: int = COMMA_REACH
) -> list[list[tuple[int, float]]]:
    """(token id, weight) pairs, cut into chunks of at most `size`, after a comma where one is near.

    comma: its token id. A cut moves back to just after the last comma of a full chunk if the comma is among the
    chunk's last `reach` tokens and the next token is no comma. It moves back to the beginning of an embedding that it
    would divide. No tokens make one empty chunk.
    """
    pieces: list[list[tuple[int, float]]] = []
    begin = 0
    while len(tokens) - begin > size:
        end = begin + size
        commas = [place for place in range(max(end - reach, begin), end) if tokens[place][0] == comma]
        if commas and tokens[end][0] != comma:
            end = commas[-1] + 1
        while end > begin and is_within(
            tokens[end - 1][0], tokens[end][0]
        ):  # an embedding stays in one chunk
            end -= 1
        pieces.append(list(tokens[begin:end]))
        begin = end
    return [*pieces, list(tokens[begin:])]


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def weigh(states: Tensor, weights: Tensor) -> Tensor:
    """Token embeddings times their weights, each chunk rescaled to the mean it had (A1111's rule).

    states: [chunks, tokens, width]; weights: [chunks, tokens]. Computed in fp32, returned in the states' dtype.

    The mean is over all numbers of a chunk. Where all tokens' means have the same sign, weighting changes it by a
    factor between the smallest and the largest weight. The factor is held within these bounds (and above
    `SMALLEST_GROWTH`). In models whose means cancel out, it would otherwise be noise of any size and sign.
    """
    plain = states.float()
    weighted = plain * weights.unsqueeze(-1)
    growth = weighted.mean(dim=(1, 2)) / plain.mean(dim=(1, 2))  # [chunks]
    growth = torch.where(growth.isnan(), torch.ones_like(growth), growth)
    lowest = weights.amin(dim=1).clamp(min=SMALLEST_GROWTH)
    growth = growth.maximum(lowest).minimum(weights.amax(dim=1))
    changed = (weights != 1).any(dim=1)[:, None, None]
    return torch.where(changed, weighted / growth[:, None, None], plain).to(states.dtype)

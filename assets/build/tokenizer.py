"""Make the CLIP-format tokenizer: byte-pair merges under which every world word is one token.

    python assets/build/tokenizer.py --out DIR       writes vocab.json, merges.txt, tokenizer.json

The three files agree (a test checks it), so any reader of any of them gets the same ids. The
vocabulary is laid out as CLIP's: 256 bytes, the same 256 at a word's end, the merges, two specials.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from vocab import all_words

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77


def byte_symbols() -> list[str]:
    """CLIP's printable stand-ins for the 256 bytes, in its order."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + k) for k in range(len(rest))]


def learn(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first (ties by spelling), until all words are whole."""
    pieces = {w: [*w[:-1], w[-1] + "</w>"] for w in words}
    merges: list[tuple[str, str]] = []
    while any(len(p) > 1 for p in pieces.values()):
        counts: Counter[tuple[str, str]] = Counter()
        for p in pieces.values():
            counts.update(pairwise(p))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = {w: merge(p, best) for w, p in pieces.items()}
    return merges


def merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    k = 0
    while k < len(pieces):
        if k + 1 < len(pieces) and (pieces[k], pieces[k + 1]) == pair:
            out.append(pieces[k] + pieces[k + 1])
            k += 2
        else:
            out.append(pieces[k])
            k += 1
    return out


@lru_cache
def tables() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """The vocabulary (token -> id) and the merges."""
    merges = tuple(learn(all_words()))
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), BOS, EOS]
    assert len(set(tokens)) == len(tokens)
    return {t: k for k, t in enumerate(tokens)}, merges


def encode(text: str, length: int = LENGTH) -> list[int]:
    """Ids of a caption of world words, begin and end marks around it, end-padded with the end mark."""
    vocabulary, _ = tables()
    words = text.lower().replace(",", " , ").replace("-", " - ").split()
    ids = [vocabulary[BOS], *(vocabulary[w + "</w>"] for w in words)][: length - 1]
    return ids + [vocabulary[EOS]] * (length - len(ids))


def save(folder: Path, pad: str = EOS) -> None:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = tables()
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=list(merges), unk_token=EOS, bos_token=BOS, eos_token=EOS,
        pad_token=pad, model_max_length=LENGTH,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pad", default=EOS)
    args = parser.parse_args()
    save(args.out, args.pad)
    print(len(tables()[0]), "tokens")

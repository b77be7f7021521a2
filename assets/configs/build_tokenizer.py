"""Writes CLIP's tokenizer (`tokenizer/vocab.json`, `tokenizer/merges.txt`) from the vocabulary in open_clip.

SD1.x, SD2.x and SDXL share this vocabulary; they differ in the token that fills a prompt up, which is set
where the tokenizer is loaded. Run from the repository's root: `python assets/configs/build_tokenizer.py`.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import open_clip

TARGET = Path(__file__).parent / "tokenizer"
MERGES = 49152 - 256 - 2
"""How many of the file's merges CLIP uses: 49,152 entries less the bytes and the two marks."""


def byte_letters() -> list[str]:
    """One printable letter for every byte: the printable ones stand for themselves and come first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + index) for index in range(256 - len(printable))]


def main() -> None:
    source = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    merges = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    letters = byte_letters()
    words = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
    ]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    TARGET.mkdir(exist_ok=True)
    compact = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    (TARGET / "vocab.json").write_text(compact, encoding="utf-8", newline="\n")
    (TARGET / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8", newline="\n"
    )


if __name__ == "__main__":
    main()

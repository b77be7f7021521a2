"""`config.toml` in the user's home: the model, the device, the precision, memory, and further folders to look into.

```toml
model = "tiny-sdxl"
device = "auto"            # auto, cpu, cuda, cuda:1, mps
dtype = "float16"          # float32, float16, bfloat16
lora_ram = 8.0             # GiB of the computer's memory for LoRAs; by default a quarter of it, at most 16
lora_vram = 2.0            # GiB of the device's memory for LoRAs; by default a quarter of it, at most 4

[folders]
models = ["/data/checkpoints"]
loras = ["/data/loras"]
vae = []
embeddings = ["/data/embeddings"]
```
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from composers.shown import shown
from pipelines.errors import SetupError
from pipelines.home.files import read_text, write_atomically
from pipelines.home.paths import expanded
from pipelines.home.plain import LONGEST_TOML, read_toml, reading, short

CONFIG_FILE = "config.toml"
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "half": "float16"}
"""Short names of the precisions -> their names in torch."""
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


@dataclass(frozen=True)
class Roots:
    """Folders to look into besides the home's own, in order."""

    models: tuple[Path, ...] = ()
    loras: tuple[Path, ...] = ()
    vae: tuple[Path, ...] = ()
    embeddings: tuple[Path, ...] = ()

    def __add__(self, other: Roots) -> Roots:
        """The folders of both, in order, each once."""
        return Roots(*(tuple(dict.fromkeys((*a, *b))) for a, b in zip(self.lists, other.lists, strict=True)))

    def __bool__(self) -> bool:
        return any(self.lists)

    @property
    def lists(self) -> tuple[tuple[Path, ...], ...]:
        return tuple(getattr(self, kind) for kind in KINDS)


KINDS = tuple(field.name for field in fields(Roots))
"""The kinds of folders, by their keys in config.toml."""


@dataclass(frozen=True)
class Settings:
    """What `config.toml` says; None where it says nothing. dtype: by torch's name. lora_ram, lora_vram: in GiB."""

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    folders: Roots = field(default_factory=Roots)
    lora_ram: float | None = None
    lora_vram: float | None = None


def read_settings(home: Path) -> Settings:
    """The settings in a home, all None if it has no config.toml. Raises SetupError for a faulty one, and NoAnswer."""
    file = home / CONFIG_FILE
    text = _text(file)
    content = read_toml(text, str(file), error=SetupError, remedy=_REMEDY)
    _refuse_unknown(file, "", content, [f.name for f in fields(Settings)])
    folders = content.get("folders", {})
    if not isinstance(folders, dict):
        raise SetupError(f"{file}: folders is {shown(folders)}; it must be a table, [folders]")
    _refuse_unknown(file, "folders.", folders, KINDS)
    for key in ("model", "device", "dtype"):
        if not isinstance(content.get(key, ""), str):
            raise SetupError(
                f'{file}: {key} is {shown(content[key])}; it must be a text in quotes, as in {key} = "…"'
            )
    return Settings(
        model=content.get("model"),
        device=_device(file, content.get("device")),
        dtype=_dtype(file, content.get("dtype")),
        folders=Roots(*(_folders(file, home, kind, folders.get(kind, [])) for kind in KINDS)),
        lora_ram=_gigabytes(file, "lora_ram", content.get("lora_ram")),
        lora_vram=_gigabytes(file, "lora_vram", content.get("lora_vram")),
    )


def write_folders(home: Path, roots: Roots) -> Path:
    """Put the folders into config.toml, which is made if need be. What is outside of [folders] stays as it is.

    Returns its path. Raises SetupError where config.toml cannot be read, OSError where it cannot be written.
    """
    file = home / CONFIG_FILE
    table = ["[folders]"]
    for kind, folders in zip(KINDS, roots.lists, strict=True):
        # a text in JSON is a valid text in TOML
        table.append(
            f"{kind} = [{', '.join(json.dumps(str(folder), ensure_ascii=False) for folder in folders)}]"
        )
    before = _text(file)
    others = re.sub(r"(?ms)^[ \t]*\[folders\].*?(?=^[ \t]*\[|\Z)", "", before).strip()
    text = "\n".join([*([others, ""] if others else []), *table, ""])
    home.mkdir(parents=True, exist_ok=True)
    return write_atomically(file, text)


_REMEDY = "mend it or take it away"


def _text(file: Path) -> str:
    """The file's text, "" where there is none. Raises SetupError."""
    with reading(str(file), SetupError, _REMEDY):
        try:
            return read_text(file, LONGEST_TOML)
        except FileNotFoundError:
            return ""


def _refuse_unknown(file: Path, prefix: str, content: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(key[:60], known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SetupError(
                f"{file}: unknown key '{prefix}{short(key)}'; {hint}Known are {', '.join(known)}"
            )


def _device(file: Path, value: str | None) -> str | None:
    if value is not None and not DEVICE.fullmatch(value):
        raise SetupError(
            f"{file}: device is {shown(value)}; it must be auto, cpu, cuda, cuda:<number> or mps"
        )
    return value


def _dtype(file: Path, value: str | None) -> str | None:
    name = DTYPES.get(value or "", value)
    if name is not None and name not in DTYPES.values():
        raise SetupError(f"{file}: dtype is {shown(value)}; it must be float32, float16 or bfloat16")
    return name


def _gigabytes(file: Path, key: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise SetupError(f"{file}: {key} is {shown(value)}; it must be a number of GiB, as in {key} = 2.5")
    return float(value)


def _folders(file: Path, home: Path, name: str, value: Any) -> tuple[Path, ...]:
    """The folders under a key; relative ones start from the home. Raises SetupError."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise SetupError(
            f'{file}: folders.{name} is {shown(value)}; it must be a list of texts, as in ["/data/loras"]'
        )
    if nul := [text for text in value if "\0" in text]:
        raise SetupError(
            f"{file}: folders.{name} holds {shown(nul[0])}, which no folder can be called; mend it"
        )
    return tuple(home / expanded(text) for text in value)

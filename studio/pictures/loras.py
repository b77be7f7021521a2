"""The LoRAs that other programs name beside the prompt, in all the forms in which they do. Types are checked; what
cannot be read is named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from composers.shown import shown
from pipelines.bounds import LONGEST_NAME
from studio.drafts.draft import Wanted
from studio.pictures.infotext import read_value
from studio.pictures.numbers import real

MOST_SAID = 1_000
"""Most LoRAs of one list that are looked at."""
_HASH = re.compile(r"(?:0x)?+([0-9a-fA-F]{8,64}+)")
_ENDING = re.compile(r"\.(?:safetensors|sft|ckpt|pt|bin)$", re.IGNORECASE)
_NETWORK = re.compile(r"AddNet Model ([0-9]{1,3})")
_NETWORK_HASH = re.compile(r"\(([0-9a-fA-F]{8,64})\)\Z")
_WEIGHT_FIRST = re.compile(r"([+-]?[0-9.]{1,20}) - (.+)", re.DOTALL)
_TAG = re.compile(r"<(?:lora:)?([^<>:]+):([^<>:]+)>")
AIR = re.compile(r"urn:air:[\w-]{1,40}:(?P<type>[\w-]{1,40}):civitai:[0-9]{1,20}@(?P<version>[0-9]{1,20})")
"""Civitai's name of a file: the family of models, the kind of file, its own numbers of model and version."""
_NO_NAMES = ("", "none")


@dataclass
class Loras:
    """wanted: the LoRAs. hashes: name -> hash. model: the checkpoint's name, where the same list gives it. ignored:
    what means nothing here. taken: settings that were read."""

    wanted: list[Wanted] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    model: str = ""
    ignored: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)

    def take(self, said: object, weights: object = None, text_weights: object = None) -> None:
        """LoRAs of a value from JSON, in any form: a name, or names with commas between them; a list of names, of
        [name, strength, hash], of [hash, "strength - name"] or of objects; an object of name -> strength; tags.

        weights, text_weights: their strengths, where these stand in lists of their own.
        """
        if isinstance(said, str) and (tags := _TAG.findall(said)):
            said = [[name, weight] for name, weight in tags]
        entries = list(_entries(said))
        own, text = list(_entries(weights)), list(_entries(text_weights))
        for place, entry in enumerate(entries[:MOST_SAID]):
            found = self._one(entry)
            if found is None:
                if entry not in (None, "") and not _said_none(entry):
                    self.ignored.append(f"LoRA {shown(entry)}")
                continue
            if found.weight is None and place < len(own):
                found = Wanted(found.adapter, self._weight(found.adapter, own[place]), found.text_weight)
            if found.text_weight is None and place < len(text):
                both = self._weight(found.adapter, text[place])
                found = Wanted(found.adapter, found.weight, None if both == found.weight else both)
            self.add(found)
        if len(entries) > MOST_SAID:
            self.ignored.append(f"{len(entries) - MOST_SAID} more LoRAs")

    def add(self, wanted: Wanted, digest: object = "") -> None:
        if isinstance(digest, str) and (hashed := _HASH.fullmatch(digest)):
            self.hashes.setdefault(wanted.adapter, hashed[1].lower())
        if wanted not in self.wanted:
            self.wanted.append(wanted)

    def _one(self, entry: object) -> Wanted | None:
        if isinstance(entry, str):
            name, colon, weight = entry.rpartition(" : ")  # Fooocus
            if colon and real(weight) is not None:
                return None if _said_none(name) else Wanted(stem(name), real(weight))
            return None if _said_none(entry) or len(entry) > LONGEST_NAME else Wanted(stem(entry))
        if isinstance(entry, Mapping):
            return self._object(entry)
        if isinstance(entry, list) and 1 <= len(entry) <= 4 and isinstance(entry[0], str):
            return self._row(entry)
        return None

    def _row(self, row: Sequence[Any]) -> Wanted | None:
        first, rest = row[0], row[1:]
        if len(rest) == 1 and isinstance(rest[0], str) and (said := _WEIGHT_FIRST.fullmatch(rest[0])):
            wanted = Wanted(stem(said[2]), real(said[1]))  # RuinedFooocus
            self.add(wanted, first)
            return wanted
        if _said_none(first) or len(first) > LONGEST_NAME:
            return None
        wanted = Wanted(stem(first), self._weight(first, rest[0]) if rest else None)
        self.add(wanted, rest[1] if len(rest) > 1 else "")
        return wanted

    def _object(self, said: Mapping[str, Any]) -> Wanted | None:
        within = next((said[key] for key in ("model", "lora", "file", "name") if said.get(key)), None)
        if isinstance(within, Mapping):  # InvokeAI
            digest = within.get("hash")
            within = within.get("name") or within.get("model_name")
        else:
            digest = next((said[key] for key in ("hash", "sha256", "model_hash") if said.get(key)), "")
        for key in ("model_name", "modelName", "modelFileName", "filename", "path"):
            within = within or said.get(key)
        if not isinstance(within, str) or _said_none(within) or len(within) > LONGEST_NAME:
            return None
        name = stem(within)
        weights = [
            self._weight(name, said[key])
            for key in ("weight", "strength", "scale", "multiplier", "model_weight", "strength_model")
            if said.get(key) is not None
        ]
        text = said.get("clip_weight", said.get("strength_clip"))
        wanted = Wanted(
            name, weights[0] if weights else None, None if text is None else self._weight(name, text)
        )
        kind, _, digits = digest.rpartition(":") if isinstance(digest, str) else ("", "", "")
        self.add(wanted, digits if kind in ("", "sha256") else "")  # a blake3 is no sha256
        return wanted

    def _weight(self, name: str, said: object) -> float | None:
        if said is None or said == "":
            return None
        found = real(said)
        if found is None:
            self.ignored.append(f"strength {shown(said)} of LoRA {shown(name)}")
        return found

    # -- settings of a line ---------------------------------------------------------------------------

    def take_hashes(self, said: str) -> bool:
        """`name: hash, …`, or `name: hash: strength, …`; whether there is any."""
        begun: list[str] = []  # of a name with commas in it
        for entry in said.split(","):
            name, colon, digest = entry.rpartition(":")
            weight = None
            if colon and _HASH.fullmatch(digest.strip()) is None and real(digest.strip()) is not None:
                weight = real(digest.strip())
                name, colon, digest = name.rpartition(":")
            if not colon:
                begun.append(entry)
                continue
            whole = ",".join([*begun, name]).strip()
            if hashed := _HASH.fullmatch(digest.strip()):
                self.hashes[whole] = hashed[1].lower()
                if weight is not None:
                    self.add(Wanted(whole, weight))
            begun = []
        return bool(self.hashes)

    def take_weights(self, said: str) -> bool:
        """`name: strength, …` of Fooocus; whether there is any."""
        before = len(self.wanted)
        for entry in said.split(",")[:MOST_SAID]:
            name, colon, weight = entry.rpartition(":")
            if colon and name.strip() and (found := real(weight.strip())) is not None:
                self.add(Wanted(name.strip(), found))
            else:
                self.ignored.append(f"Lora weights: {entry.strip()}")
        return len(self.wanted) > before

    def take_resources(self, said: object) -> bool:
        """Civitai's list of files, which it names by its own numbers; whether it can be read."""
        rows = read_value(said) if isinstance(said, str) else said
        if not isinstance(rows, list):
            return False
        for row in rows[:MOST_SAID]:
            if not isinstance(row, Mapping):
                self.ignored.append(f"Civitai resource {shown(row)}")
                continue
            if isinstance(air := row.get("air"), str) and (named := AIR.fullmatch(air)):
                row = {"type": named["type"], "modelVersionId": named["version"], **row}
            name, version = row.get("modelName"), row.get("modelVersionId")
            if not isinstance(name, str) and not isinstance(version, int | str):
                self.ignored.append(f"Civitai resource {shown(row)}")
                continue
            called = (
                name
                if isinstance(name, str) and name.strip()
                else f"Civitai's model version {shown(version)}"
            )
            called = called.strip()[:LONGEST_NAME]
            match str(row.get("type", "")).lower():
                case "checkpoint":
                    self.model = self.model or called
                case "lora" | "locon" | "dora" | "lycoris":
                    weight = row.get("weight", row.get("strength"))
                    self.add(Wanted(called, self._weight(called, weight)), row.get("hash"))
                case _:
                    self.ignored.append(f"Civitai resource {shown(called)}")
        return True

    def take_networks_of_sdnext(self, said: str, hashes: str | None) -> bool:
        """SD.Next's `LoRA networks: fox, hat`, and the hashes of these in the same order as `LoRA hashes`; whether they
        are in this order. The strengths are in the prompt's tags."""
        names = [name.strip() for name in said.split(",")[:MOST_SAID]]
        digests = [_HASH.fullmatch(one.strip()) for one in (hashes or "").split(",")[:MOST_SAID]]
        if len(names) != len(digests) or None in digests:
            return False
        self.hashes |= {
            name: digest[1].lower() for name, digest in zip(names, digests, strict=True) if digest
        }
        return True

    def take_networks(self, pairs: Mapping[str, str]) -> None:
        """The LoRAs of A1111's extension Additional Networks: `AddNet Model 1: name(hash), AddNet Weight A 1: 0.8`."""
        if pairs.get("AddNet Enabled", "").lower() != "true":
            return
        self.taken.add("AddNet Enabled")
        for key in pairs:
            if (number := _NETWORK.fullmatch(key)) is None or _said_none(pairs[key]):
                continue
            hashed = _NETWORK_HASH.search(pairs[key])
            name, digest = (pairs[key][: hashed.start()], hashed[1]) if hashed else (pairs[key], "")
            keys = [f"AddNet Weight {half} {number[1]}" for half in "AB"]
            unet, text = (real(pairs.get(one, pairs.get(f"AddNet Weight {number[1]}", ""))) for one in keys)
            self.add(Wanted(name.strip(), unet, None if text == unet else text), digest)
            self.taken |= {key, *keys, f"AddNet Module {number[1]}", f"AddNet Weight {number[1]}"}


def _entries(said: object) -> Iterable[Any]:
    if isinstance(said, Mapping):
        return ([name, weight] for name, weight in said.items())
    if isinstance(said, list):
        return said
    if isinstance(said, str):
        return (piece.strip() for piece in said.split(",")) if said.strip() else ()
    return () if said is None else (said,)


def _said_none(entry: object) -> bool:
    """Whether it is the name of no file, alone or with a strength."""
    if isinstance(entry, list) and entry:
        entry = entry[0]
    if not isinstance(entry, str):
        return False
    name, colon, weight = entry.rpartition(" : ")
    said = name if colon and real(weight) is not None else entry
    return stem(said).strip().lower() in _NO_NAMES


def hashes_of(said: object) -> tuple[str, dict[str, str]]:
    """The model's hash and the LoRAs' of an object as `Hashes` has it: {"model": …, "lora:fox": …, "embed:bad": …}."""
    model, found = "", {}
    for name, digest in said.items() if isinstance(said, Mapping) else ():
        hashed = _HASH.fullmatch(digest) if isinstance(digest, str) else None
        kind, _, of = str(name).partition(":")
        if hashed is None:
            continue
        if kind.lower() == "model":
            model = hashed[1].lower()
        elif kind.lower() in ("lora", "lyco") and of:
            found[of] = hashed[1].lower()
    return model, found


def stem(name: str) -> str:
    """A file's name without folders and ending, up to the longest name that a request takes."""
    return _ENDING.sub("", name.replace("\\", "/").rsplit("/", 1)[-1].strip())[:LONGEST_NAME]

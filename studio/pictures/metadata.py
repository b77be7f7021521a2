"""Writes and reads what a picture says about itself: two PNG text chunks.

`parameters` is A1111's convention, which every tool understands (`studio.pictures.a1111`). `lora-studio` is ours, JSON:

    {"version": 1, "request": {every field, as resolved}, "adapters": {name: {"sha256", "size", …}},
     "setup": {"vae", "low_memory"}, "record": {what was applied and what it cost}}

Only what was applied is written. Of an initial image, only size and hash are stored; a mask is stored whole, as a PNG
of at most `LONGEST_INLINE` characters (`studio.drafts.input_images`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from composers.shown import shown
from pipelines import Request
from pipelines.bounds import LONGEST_NAME, MOST_ADAPTERS, check_text
from pipelines.errors import RequestError, StudioError
from pipelines.families.family import FAMILIES
from pipelines.home.files import write_whole
from pipelines.home.plain import read_json
from pipelines.request import PROMPTS
from pipelines.text.editing import escaped
from pipelines.text.tags import sift_tags, write_tag
from studio.drafts import picture_file
from studio.drafts.draft import Draft, Wanted, wanted_of
from studio.drafts.entries import checked, plain_request, read_draft
from studio.drafts.fields import FIELDS
from studio.drafts.input_images import MASK, stored_mask
from studio.library.hashes import short_hash
from studio.library.known import Known
from studio.pictures import a1111, infotext
from studio.pictures.notes import LONGEST_NOTE, left_out, told
from studio.pictures.others import read_graph, read_other
from studio.pictures.taking import LONGEST_TAGGED
from studio.pictures.texts import CHUNK, PARAMETERS, doubled, is_object, read_texts

if TYPE_CHECKING:
    from pipelines import Record
    from studio.pictures.foreign import Foreign

VERSION = 2
EDITING = 2
"""The first version whose prompts know editing, alternation and AND. In those of before such words are mere words."""
OURS = "LoRA Studio"
OTHER = "made by {}, whose noise and rounding differ: expect a similar picture, not the same"
STRIPPED = (
    f"its text {CHUNK!r} was taken out; the one for other programs does not say which LoRAs were pinned, or acted with "
    "an edit of the prompt"
)
NO_MASK = "a mask said which part was drawn, and it is not stored here: give it again"
OF_MASKS = ("mask_blur", "mask_content", "mask_area", "mask_padding")
OF_IMAGES = ("strength", *OF_MASKS)
"""Fields that mean nothing without a picture to start from."""


@dataclass(frozen=True)
class Setup:
    """Settings that influence a picture and are in neither its request nor its record."""

    vae: str | None = None
    low_memory: bool = False


@dataclass(frozen=True)
class Remembered:
    """What a picture says it was made with.

    program: what made it. ours: whether this comes from our own chunk, which says everything. model, model_hash: ""
    where the picture does not give them.
    known: adapter's name in lower case -> its hash and size. init_image: size and hash of the initial image, if there
    was one. record: as it was written, {} where there is no chunk of ours. notes: what could not be taken over.
    """

    draft: Draft
    program: str
    ours: bool
    model: str = ""
    model_hash: str = ""
    known: Mapping[str, Known] = field(default_factory=dict)
    setup: Setup = field(default_factory=Setup)
    init_image: Mapping[str, Any] | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


# -- writing ---------------------------------------------------------------------------------------------


def save_picture(
    image: Image.Image,
    file: Path,
    *,
    request: Request,
    record: Record,
    adapters: Mapping[str, Path],
    setup: Setup | None = None,
    force: bool = False,
) -> Path:
    """Writes a finished picture with its texts; returns its path. Without `force`, an existing file stays, and the
    picture gets another name.

    request: the resolved one. adapters: name -> file of the loaded ones. Raises SetupError where it cannot be written.
    """
    texts = chunks(request, record, adapters, setup or Setup())
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text.encode("utf-8", "replace").decode("utf-8"))
    return write_whole(file, lambda path: image.save(path, format="PNG", pnginfo=info), force=force)


def chunks(request: Request, record: Record, adapters: Mapping[str, Path], setup: Setup) -> dict[str, str]:
    """The picture's texts, by the names of their chunks."""
    applied = {use.name: {"sha256": use.sha256} for use in record.adapters}
    content = {
        "version": VERSION,
        "request": plain_request(request),
        "adapters": {
            name: {**known, "size": adapters[name].stat().st_size, "short_hash": short_hash(adapters[name])}
            for name, known in applied.items()
        },
        "setup": {"vae": setup.vae, "low_memory": setup.low_memory},
        "record": record.to_dict(),
    }
    return {
        PARAMETERS: a1111.write(_parameters(request, record, adapters)),
        CHUNK: json.dumps(content, allow_nan=False),
    }


def _parameters(request: Request, record: Record, adapters: Mapping[str, Path]) -> a1111.Parameters:
    tags = " ".join(write_tag(use) for use in request.uses)
    return a1111.Parameters(
        prompt=f"{request.prompt} {tags}".strip(),
        negative_prompt=request.negative_prompt,
        values=_changed(request, record.family),
        model=record.model,
        model_hash=record.model_hash,
        lora_hashes={use.name: short_hash(adapters[use.name]) for use in record.adapters},
        version=f"{CHUNK} {record.versions.get(CHUNK, '')}".strip(),
    )


def _changed(request: Request, family: str) -> dict[str, Any]:
    """The values of a resolved request that differ from their defaults, without prompts, mix and initial image."""
    values = {
        field.name: value
        for field in FIELDS
        if field.kind not in ("prompt", "mix", "picture")
        and (value := getattr(request, field.name)) != field.default
    }
    values = without_echoes(values, family)
    if request.uses:
        values["composer"] = request.composer
    for name in OF_IMAGES:
        values.pop(name, None)
    if request.init_image is not None:
        values["strength"] = request.strength
    if request.mask is not None:
        values |= {name: getattr(request, name) for name in OF_MASKS}
    return values


def without_echoes(values: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The values of a resolved request without those that merely follow from others.

    Such values would be wrong once somebody changes width, model or method: SDXL's conditioning sizes that equal the
    picture's size, and the family's own cut where only the method reuses features.
    """
    kept = dict(values)
    own = [values.get("height"), values.get("width")]
    for name in ("original_size", "target_size"):
        size = kept.get(name)
        if isinstance(size, tuple | list) and list(size) == own:
            del kept[name]
    known = FAMILIES.get(family)
    if kept.get("reuse") is None and known is not None and kept.get("cut") == known.cut:
        del kept["cut"]
    return kept


# -- reading ---------------------------------------------------------------------------------------------


def read_picture(file: Path) -> Remembered:
    """What a picture says it was made with, whatever program made it. Raises RequestError where nothing that it says
    can be understood."""
    return understood(file.name, read_texts(file))


def understood(name: str, texts: Mapping[str, str]) -> Remembered:
    """As `read_picture`, for the texts of a picture by their readers' names. name: the picture's, for messages."""
    try:
        said = _understood(name, texts)
    except RequestError as error:
        raise error if str(error).startswith(name) else RequestError(f"{name}: {error}") from error
    return replace(said, notes=(*said.notes, *doubled(texts)))


def _understood(name: str, texts: Mapping[str, str]) -> Remembered:
    if CHUNK in texts:
        return _ours(name, texts[CHUNK])
    other = read_other(name, texts)
    if other is not None:
        return _from_another(name, other)
    text = texts.get(PARAMETERS)
    if text is not None and text.strip() and (not is_object(text) or infotext.is_infotext(text)):
        return _from_a1111(name, a1111.read(text))
    graph = read_graph(name, texts)
    if graph is not None:
        return _from_another(name, graph)
    raise RequestError(
        f"{name} does not say how it was made; give the file as it was saved, messengers and image hosts strip it"
    )


def as_infotext(said: Remembered) -> str:
    """What a picture of any program says, as A1111 writes it."""
    values = {key: value for key, value in said.draft.values.items() if key not in PROMPTS}
    if said.init_image is None:
        values = {name: value for name, value in values.items() if name not in OF_IMAGES}
    tags = [write_tag(wanted.use(wanted.adapter, None)) for wanted in said.draft.wanted]
    return a1111.write(
        a1111.Parameters(
            prompt=" ".join([str(said.draft.values.get("prompt", "")), *tags]).strip(),
            negative_prompt=said.draft.values.get("negative_prompt"),
            values=values,
            model=said.model or None,
            model_hash=said.model_hash or None,
            lora_hashes={name: known.digest for name, known in said.known.items()},
            version=said.program,
        )
    )


def _ours(name: str, text: str) -> Remembered:
    try:
        content = read_json(text, f"its {CHUNK!r} text", most=picture_file.MOST_SAID)
        if content["version"] > VERSION:
            raise RequestError(
                f"{name} was written by a newer LoRA Studio; update with pip install -U lora-studio"
            )
        setup, record, request = content["setup"], content["record"], content["request"]
        if content["version"] < EDITING:
            request |= {key: escaped(text) for key in PROMPTS if isinstance(text := request.get(key), str)}
        mark = request.pop("init_image", None)  # never a path: a picture may name no file of this computer
        mask = request.pop(MASK, None)
        stored, vae = stored_mask(mask), setup["vae"]
        draft = read_draft(request, name)
        return Remembered(
            draft=draft if stored is None else replace(draft, images={MASK: stored}),
            program=OURS,
            ours=True,
            model=_name(record["model"]),
            model_hash=_name(record["model_hash"]),
            known=_known(content["adapters"]),
            setup=Setup(None if vae is None else _name(vae), bool(setup["low_memory"])),
            init_image=mark if isinstance(mark, dict) else None,
            record=record,
            notes=() if mask is None or stored is not None else (NO_MASK,),
        )
    except Exception as error:  # a stranger's text may lack anything, or hold something else
        if isinstance(error, StudioError) and str(error).startswith(name):
            raise
        raise RequestError(
            f"{name}: its {CHUNK!r} text is damaged ({shown(error)}); use an untouched copy"
        ) from error


def _name(said: object) -> str:
    """A text that may be the name of a file, or a hash. Raises ValueError for anything else."""
    if not isinstance(said, str) or len(said) > LONGEST_NAME:
        raise ValueError(f"{shown(said)} is no name")
    return said


def _known(adapters: Mapping[str, Any]) -> dict[str, Known]:
    """The hashes and sizes of the picture's adapters, by their names in lower case. Raises ValueError."""
    if len(adapters) > MOST_ADAPTERS:
        raise ValueError(f"{len(adapters)} adapters are more than {MOST_ADAPTERS}")
    for said in adapters.values():
        if not isinstance(said["size"], int | None):
            raise ValueError(f"{shown(said['size'])} is no size of a file")
    return {
        _name(key).casefold(): Known(_name(said["sha256"]), said["size"]) for key, said in adapters.items()
    }


def _from_a1111(name: str, said: a1111.Parameters) -> Remembered:
    stripped = (said.version or "").startswith(CHUNK)
    notes = [STRIPPED if stripped else OTHER.format("another program")]
    notes += left_out(said.ignored, said.unread)
    notes += [NO_MASK] if said.values.keys() & {*OF_MASKS} else []
    values = {"prompt": said.prompt, "negative_prompt": said.negative_prompt or None, **said.values}
    return Remembered(
        draft=_draft(name, values, said.loras, notes),
        program=OURS if stripped else said.program,
        ours=False,
        model=(said.model or "")[:LONGEST_NAME],
        model_hash=(said.model_hash or "")[:LONGEST_NAME],
        known={key.casefold(): Known(digest) for key, digest in said.lora_hashes.items()},
        setup=Setup(vae=said.vae),
        init_image={} if "strength" in said.values else None,
        notes=tuple(notes),
    )


def _from_another(name: str, said: Foreign) -> Remembered:
    notes = [OTHER.format(said.program), *(note[: 10 * LONGEST_NOTE] for note in said.notes)]
    return Remembered(
        draft=_draft(name, said.values, said.wanted, notes),
        program=said.program,
        ours=False,
        model=said.model[:LONGEST_NAME],
        model_hash=said.digest[:LONGEST_NAME],
        known={key.casefold(): Known(digest) for key, digest in said.hashes.items()},
        setup=Setup(vae=said.vae and said.vae[:LONGEST_NAME]),
        init_image={} if said.from_picture else None,
        notes=tuple(notes),
    )


def _draft(name: str, values: Mapping[str, Any], wanted: Sequence[Wanted], notes: list[str]) -> Draft:
    """The draft of what another program's picture says; LoRA tags of its prompt become adapters.

    Tags that cannot be read, and adapters that are named twice, are left out; `notes` says so. Raises RequestError for
    texts that are too long.
    """
    prompt = check_text(f"{name}: prompt", values["prompt"], LONGEST_TAGGED)
    prompt, tags, unread = sift_tags(prompt)
    if unread:
        notes.append(f"left out of the prompt: {told([why[:LONGEST_NOTE] for why in unread])}")
    if any(sift_tags(prompt)[1:]):  # what was around a removed tag may form another one
        prompt = prompt.replace("<", "")
    found: dict[str, Wanted] = {}
    twice = []
    for one in (*wanted, *map(wanted_of, tags)):
        first = found.setdefault(one.adapter.casefold(), one)
        if first is not one and replace(first, adapter=one.adapter) != one:
            twice.append(one.adapter[:60])
    if twice:
        notes.append(f"asked for more than once, of which the first counts: {told(twice)}")
    kept = list(found.values())[:MOST_ADAPTERS]
    if len(found) > len(kept):
        notes.append(f"of {len(found)} LoRAs the first {len(kept)} are taken over, the most of one picture")
    said = {key: value for key, value in values.items() if value is not None} | {"prompt": prompt}
    return checked(Draft(said, tuple(kept), where=name))

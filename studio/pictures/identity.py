"""Whether a file is the picture that a request makes: it says so itself, in the text that the studio writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from pipelines import Request
from pipelines.errors import RequestError, StudioError
from pipelines.home.plain import read_json, reading
from studio.drafts.entries import plain_request
from studio.drafts.fields import FIELDS
from studio.pictures.texts import CHUNK, read_texts

_END_OF_PNG = b"IEND\xaeB`\x82"


def is_whole(file: Path) -> bool:
    """Whether the PNG is there and complete, up to its last chunk."""
    try:
        with file.open("rb") as stream:
            stream.seek(-len(_END_OF_PNG), os.SEEK_END)
            return stream.read() == _END_OF_PNG
    except OSError:
        return False


def record_if_made_by(file: Path, request: Request, model_hash: str) -> Mapping[str, object] | None:
    """The record in the picture, if it was made by exactly this request on this model; else None.

    request: resolved. model_hash: of the model's weights.
    """
    if not is_whole(file):
        return None
    try:
        with reading(file.name, RequestError):
            content = read_json(read_texts(file)[CHUNK], file.name)
            record: Mapping[str, object] = content["record"]
            now = json.loads(json.dumps(plain_request(request)))
            # a picture from before a field existed was made with the field's default
            before = {field.name: field.default for field in FIELDS if field.name not in content["request"]}
            same = {**before, **content["request"]} == now
            return record if same and record["model_hash"] == model_hash else None
    except StudioError:
        return None

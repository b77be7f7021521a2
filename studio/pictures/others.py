"""Pictures of other programs than A1111: each is asked in turn whether the texts are its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipelines.errors import RequestError
from studio.pictures import fooocus, infotext, invokeai, novelai, plain_objects, swarmui
from studio.pictures.comfyui import read_comfyui
from studio.pictures.foreign import Foreign
from studio.pictures.texts import PARAMETERS, is_object, objects


def read_graph(name: str, texts: Mapping[str, str]) -> Foreign | None:
    """What a graph of ComfyUI says; None where there is none. Raises RequestError as `read_comfyui` does."""
    said = read_comfyui(name, texts)
    if said is None:
        return None
    return Foreign(
        "ComfyUI", said.values, said.wanted, said.model, "", said.from_picture, said.notes, vae=said.vae
    )


def _with_graph(name: str, said: Foreign, text: str) -> Foreign:
    """What Civitai's generator says, with what only its graph tells beside it, as the seed."""
    try:
        graph = read_comfyui(name, {"prompt": text})
    except RequestError:
        return said
    if graph is None:
        return said
    told = {key: value for key, value in said.values.items() if value is not None}
    return replace(
        said,
        values={**graph.values, **told},
        from_picture=said.from_picture or graph.from_picture,
        notes=(*said.notes, *graph.notes),
    )


def read_other(name: str, texts: Mapping[str, str]) -> Foreign | None:
    """What the texts say; None where they are A1111's or ComfyUI's, or nobody's. name: the file's, for messages.

    Raises RequestError for a text `parameters` that is JSON of an unknown program, or damaged: it is no prompt.
    """
    said = objects(texts)
    whole = said.get(PARAMETERS)
    if isinstance(whole, str):  # packed twice
        whole = objects({PARAMETERS: whole}).get(PARAMETERS)
    found: Foreign | None = novelai.read(texts)  # its settings alone look like anybody's
    if found is None and isinstance(whole, Mapping):
        software = texts.get("Software", "")
        found = (
            swarmui.read(whole)
            or fooocus.read(whole)
            or novelai.read(whole)
            or plain_objects.read(whole, "Draw Things" if "Draw Things" in software else "")
        )
    if found is not None and found.program == "Civitai":
        found = _with_graph(name, found, texts.get(PARAMETERS, ""))
    found = found or invokeai.read(texts, said) or plain_objects.read_easy(texts)
    for own in (invokeai.NEW, invokeai.META, invokeai.DREAM):
        if found is None and own in texts and PARAMETERS not in texts:
            raise RequestError(
                f"{name}: its text {own!r} of InvokeAI cannot be understood; set it up by hand"
            )
    text = texts.get(PARAMETERS, "")
    if found is None and "prompt" not in said:
        if isinstance(whole, Mapping | list):
            raise RequestError(
                f"{name}: its text {PARAMETERS!r} is JSON of no program that is known; set it up by hand"
            )
        if is_object(text) and not infotext.is_infotext(text):  # a prompt may begin with brackets
            raise RequestError(f"{name}: its text {PARAMETERS!r} is damaged JSON; set it up by hand")
    return found

"""Whatever a picture's file holds: it is read, or refused by a StudioError, soon and with little memory."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.errors import RequestError
from pipelines.home import Home
from studio.drafts import picture_file
from studio.drafts.input_images import read_input
from studio.pictures import a1111
from studio.pictures.metadata import read_picture
from studio.pictures.restore import restore
from studio.pictures.texts import CHUNK, PARAMETERS

from ...fuzzing import cases
from ...odd_values import changed_bytes, changed_texts, changed_values, json_of, only_refused, texts
from .test_infotext import LINE, RESOURCES
from .test_other_programs import DRAW_THINGS, SWARM, xmp
from .test_other_programs import FOOOCUS as NEW_FOOOCUS
from .test_restore import A1111, COMFY, INVOKE

OURS = {
    "version": 1,
    "request": {
        "prompt": "a fox",
        "negative_prompt": None,
        "adapters": [
            {
                "adapter": "fox",
                "weight": 0.8,
                "blocks": [["mid", 1]],
                "schedule": [[0.0, 1.0], [0.5, 0.2]],
                "pinned": False,
                "band": "high",
            }
        ],
        "composer": {"method": "switch", "interval": 3},
        "seed": 7,
        "steps": 4,
        "width": 64,
        "height": 64,
        "crop": [0, 0],
        "init_image": {"size": [64, 64], "sha256": "ab"},
    },
    "adapters": {"fox": {"sha256": "ab" * 32, "size": 1234, "short_hash": "ab"}},
    "setup": {"vae": None, "low_memory": False},
    "record": {
        "model": "tiny-sdxl",
        "model_hash": "0123456789",
        "family": "sdxl",
        "model_source": "x/y",
        "versions": {},
    },
}
NOVEL = {
    "Title": "AI generated image",
    "Software": "NovelAI",
    "Description": "a fox",
    "Source": "Stable Diffusion 1D44365E",
    "Comment": json.dumps({"steps": 28, "sampler": "k_euler", "seed": 7, "scale": 11.0, "uc": "blurry"}),
}
FOOOCUS = {
    "prompt": "a fox",
    "seed": "7",
    "steps": 30,
    "sampler": "dpmpp_2m",
    "base_model": "x",
    "loras": [["a", 0.5, "ab"]],
    "version": "Fooocus v2.2",
    "metadata_scheme": "fooocus",
    "resolution": "(64, 64)",
}
SWARM_FILES = [{"name": "a.safetensors", "param": "loras", "hash": "0x" + "ab" * 32}]
CIVITAI = (
    f'a fox\n{LINE}, Civitai resources: {RESOURCES}, Hashes: {{"lora:a": "00112233aa"}}, Lora weights: "a: 1"'
)
EASY = {
    "prompt": "a fox",
    "use_stable_diffusion_model": "x",
    "num_inference_steps": "8",
    "seed": "7",
    "use_lora_model": "['a', 'b']",
    "lora_alpha": "[0.5, 1]",
    "sampler_name": "euler",
}
DREAM = '"a fox [blurry]" -s 20 -S 7 -W 64 -H 64 -C 7.5 -A k_euler'
DRAWN = {
    "nodes": [{"id": 3, "type": "KSampler", "inputs": [], "outputs": []}],
    "links": [[1, 4, 0, 3, 0, "MODEL"]],
}


def png(said: Mapping[str, str], *, packed: bool = False) -> bytes:
    info = PngInfo()
    for name, text in said.items():
        info.add_itxt(
            name.encode("latin-1", "replace").decode("latin-1"),
            text.encode("utf-8", "replace").decode(),
            zip=packed,
        )
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def saved(kind: str, **more: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 12), "red").save(file, format=kind, **more)
    return file.getvalue()


def exif() -> bytes:
    notes = Image.Exif()
    notes[0x0112], notes[0x010E] = 6, "a fox"
    notes.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode("utf-16-be")
    return notes.tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind: bytes, data: bytes) -> bytes:
    whole = png({})
    return whole[:33] + chunk(kind, data) + whole[33:]


def json_texts(valid: Any) -> st.SearchStrategy[str]:
    return st.one_of(changed_values(valid).map(json_of), changed_texts([json.dumps(valid)]))


said = st.one_of(
    st.fixed_dictionaries({CHUNK: json_texts(OURS)}, optional={PARAMETERS: texts}),
    st.fixed_dictionaries(
        {PARAMETERS: changed_texts([A1111], ["Steps: ", "Size: ", ", ", '"', "Lora hashes: ", "x: 1"])}
    ),
    st.fixed_dictionaries({PARAMETERS: json_texts(FOOOCUS)}, optional={"fooocus_scheme": st.just("fooocus")}),
    st.fixed_dictionaries({"prompt": json_texts(COMFY)}, optional={"workflow": json_texts(DRAWN)}),
    st.fixed_dictionaries({"invokeai_metadata": json_texts(INVOKE)}, optional={"invokeai_graph": texts}),
    st.fixed_dictionaries(
        {"sd-metadata": json_texts({"image": {"prompt": [{"prompt": "a", "weight": 1}], "steps": 4}})}
    ),
    st.fixed_dictionaries({"Dream": changed_texts([DREAM])}),
    st.fixed_dictionaries({PARAMETERS: json_texts(SWARM | {"sui_models": SWARM_FILES})}),
    st.fixed_dictionaries({PARAMETERS: json_texts(NEW_FOOOCUS)}),
    st.fixed_dictionaries({PARAMETERS: json_texts(DRAW_THINGS)}),
    st.fixed_dictionaries({PARAMETERS: changed_texts([CIVITAI], ["[{", "}]", '"', ", Hashes: "])}),
    st.fixed_dictionaries(
        {"XML:com.adobe.xmp": changed_texts([xmp(json.dumps(DRAW_THINGS))], ["<", "&", "</"])}
    ),
    changed_values(EASY, texts)
    .filter(lambda one: isinstance(one, dict))
    .map(lambda one: {str(name)[:70] or "x": str(text) for name, text in one.items()}),
    changed_values(NOVEL, texts)
    .filter(lambda one: isinstance(one, dict))
    .map(lambda one: {str(name)[:70] or "x": str(text) for name, text in one.items()}),
    st.dictionaries(
        st.sampled_from([CHUNK, PARAMETERS, "prompt", "workflow", "Comment", "exif"]), texts, max_size=3
    ),
)
FILES: tuple[bytes, ...] = ()


def files() -> tuple[bytes, ...]:
    whole = json.dumps(OURS)
    return (
        png({CHUNK: whole, PARAMETERS: A1111}),
        png({CHUNK: whole}, packed=True),
        png({"prompt": json.dumps(COMFY)}),
        with_chunk(b"eXIf", exif()),
        with_chunk(b"zTXt", b"parameters\0\0" + zlib.compress(A1111.encode())),
        with_chunk(b"iCCP", b"x\0\0" + zlib.compress(b"y" * 200)),
        saved("JPEG", exif=exif(), comment=b"a fox"),
        saved("JPEG"),
        saved("WEBP", exif=exif()),
        saved("WEBP", lossless=True),
        saved("GIF"),
        saved("BMP"),
        saved("TIFF"),
        saved("PPM"),
        saved("JPEG2000"),
        saved("MPO"),
        saved("TGA"),
        saved("ICO"),
        saved("EPS"),
        saved("PCX"),
        saved("DDS"),
        saved("ICNS"),
        saved("SGI"),
        saved("PDF"),
        saved("IM"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.resolve(tmp_path_factory.mktemp("home"))


@cases(ci=100, said=said)
def test_texts_of_every_program_are_understood_or_refused(
    own: Home, tmp_path: Path, said: dict[str, str]
) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(png(said))
    with only_refused():
        found = restore(file, own)
        json.dumps([str(one) for one in found.missing])
        assert all(len(note) < 20_000 for note in found.notes)


@cases(ci=100, text=changed_texts([A1111, DREAM], ["Steps: ", "Size: ", ", ", '"', ": "]))
def test_every_text_of_a1111_is_read(text: str) -> None:
    found = a1111.read(text)
    assert len(found.prompt) <= len(text)
    a1111.pairs(text)


@pytest.mark.filterwarnings("ignore")
@cases(ci=100, data=st.one_of(changed_bytes(files()), st.binary(max_size=200)))
def test_every_file_is_a_picture_or_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(data)
    for read in (
        partial(read_input, "init_image"),
        read_picture,
        lambda path: picture_file.texts(io.BytesIO(data), "it"),
    ):
        with only_refused():
            read(file)


@pytest.mark.parametrize("kind", ["EPS", "TGA", "ICO", "PCX", "DDS"])
def test_only_pictures_of_known_formats_are_opened(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(saved(kind))
    with pytest.raises(RequestError, match="no kind that is read"):
        read_input("init_image", file)


def test_nobody_starts_another_program_for_a_picture() -> None:
    with pytest.raises(OSError, match="Ghostscript"), Image.open(io.BytesIO(saved("EPS"))) as image:
        image.load()


def test_only_one_place_opens_pictures() -> None:
    root = Path(picture_file.__file__).parents[1]
    opening = [
        file.relative_to(root).as_posix()
        for file in root.rglob("*.py")
        if "Image.open(" in file.read_text(encoding="utf-8") and "bench" not in file.parts
    ]
    assert opening == ["drafts/picture_file.py"]


@pytest.mark.filterwarnings("ignore")
def test_a_picture_with_damaged_notes_still_has_its_pixels(tmp_path: Path) -> None:
    file = tmp_path / "picture.jpg"
    file.write_bytes(saved("JPEG", exif=exif()[:20] + b"\xff" * 40))
    assert read_input("init_image", file).size in ((16, 12), (12, 16))

"""A picture says how it was made, in our words and in A1111's, and both are read back."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from composers import BLora, Composer, Composite, Schedule, Switch, Use
from pipelines import Record, Request, StudioPipeline
from pipelines.adapters import sha256
from pipelines.bounds import LONGEST_NAME
from pipelines.errors import RequestError
from studio.library.hashes import find_adapter, is_adapter, short_hash
from studio.pictures import a1111
from studio.pictures.metadata import (
    CHUNK,
    PARAMETERS,
    Remembered,
    Setup,
    read_picture,
    read_texts,
    save_picture,
)

from ...budget import cheap

ODD_PROMPTS = [
    "a fox, in the snow",
    'a "quoted" (fox:1.2), [hat], C++ \\(round\\)',
    "first\nsecond: line, third",
    "狐 🦊 naïve — “quoted” ü",
    "Steps: 3, Sampler: x, Seed: 9",
    "",
]


@pytest.fixture(scope="module")
def pipe(sdxl_folder: Path, make_lora: Callable[..., Path]) -> StudioPipeline:
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    for name, seed in (("fox", 1), ("hat", 2)):
        pipe.load_lora_weights(make_lora(sdxl_folder, name, seed=seed))
    return pipe


@pytest.fixture
def files(sdxl_folder: Path, make_lora: Callable[..., Path]) -> dict[str, Path]:
    return {name: make_lora(sdxl_folder, name, seed=seed) for name, seed in (("fox", 1), ("hat", 2))}


def rendered(pipe: StudioPipeline, request: Request) -> tuple[Image.Image, Request, Record]:
    resolved = request.resolved(pipe.model.facts)
    result = pipe(resolved)
    return result.images[0], resolved, result.records[0]


def again(remembered: Remembered) -> Request:
    return remembered.draft.build(lambda wanted: wanted.use(wanted.adapter, None))


@pytest.mark.parametrize("prompt", ODD_PROMPTS)
def test_a_picture_gives_its_request_back(
    pipe: StudioPipeline, files: dict[str, Path], tmp_path: Path, prompt: str
) -> None:
    asked = Request(
        prompt + " <lora:hat:te=0.1:unet=0.2>",
        negative_prompt="blurry, \n low: quality",
        adapters=[Use("fox", 0.1 + 0.2, None, (("mid_block", 1.0),), Schedule(((0.0, 1.0), (0.5, 0.25))))],
        composer=Switch(interval=2),
        steps=2,
        width=16,
        height=16,
    )
    image, resolved, record = rendered(pipe, asked)
    file = save_picture(
        image, tmp_path / "fox.png", request=resolved, record=record, adapters=files, setup=Setup("other-vae")
    )
    remembered = read_picture(file)
    assert remembered.ours
    assert again(remembered) == resolved
    assert again(remembered).resolved(pipe.model.facts) == resolved
    assert remembered.known["fox"].digest == sha256(files["fox"])
    assert remembered.setup == Setup("other-vae")
    assert (remembered.model, remembered.model_hash) == (record.model, record.model_hash)
    assert remembered.record == json.loads(json.dumps(record.to_dict()))
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(image))

    said = a1111.read(read_texts(file)[PARAMETERS])
    assert said.prompt.startswith(resolved.prompt)
    assert "<lora:hat:te=0.1:unet=0.2>" in said.prompt
    assert "<lora:fox:0.30000000000000004:lbw=mid_block@1:step=1@0,0.25@0.5>" in said.prompt
    assert said.lora_hashes == {"fox": short_hash(files["fox"]), "hat": short_hash(files["hat"])}
    assert said.model == "random-sdxl"
    assert said.values == {
        "steps": 2,
        "scheduler": resolved.scheduler,
        "guidance_scale": resolved.guidance_scale,
        "seed": resolved.seed,
        "width": 16,
        "height": 16,
        "composer": resolved.composer,
    }


def test_only_what_was_applied_is_written(
    pipe: StudioPipeline, files: dict[str, Path], tmp_path: Path
) -> None:
    asked = Request(
        "a fox", adapters={"fox": 0.0, "hat": 0.3}, composer=Composite(), steps=1, width=16, height=16
    )
    image, resolved, record = rendered(pipe, asked)
    texts = read_texts(
        save_picture(image, tmp_path / "hat.png", request=resolved, record=record, adapters=files)
    )
    assert "fox:" not in texts[PARAMETERS]
    assert [use["adapter"] for use in json.loads(texts[CHUNK])["request"]["adapters"]] == ["hat"]
    assert list(json.loads(texts[CHUNK])["adapters"]) == ["hat"]


@pytest.mark.parametrize(
    "tag", ["<lora:fox:0.5:lbw=OUTALL>", "<lora:fox:0.5:lbw=content>", "<lora:fox:0.5:stop=2>"]
)
@pytest.mark.parametrize(
    "composer", [BLora(content="FOX", style="hat"), Switch(convention="code"), Composite()]
)
def test_what_was_worked_out_for_the_model_is_worked_out_once(
    pipe: StudioPipeline, files: dict[str, Path], tmp_path: Path, tag: str, composer: Composer
) -> None:
    asked = Request("a " + tag, adapters={"hat": 0.2}, composer=composer, steps=4, width=16, height=16)
    image, resolved, record = rendered(pipe, asked)
    file = save_picture(image, tmp_path / "fox.png", request=resolved, record=record, adapters=files)
    assert again(read_picture(file)).resolved(pipe.model.facts) == resolved


def test_a_foreign_picture(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text(
        PARAMETERS,
        "a fox <lora:fox:0.7>\nNegative prompt: bad\nSteps: 30, Sampler: DPM++ 2M, Schedule type: Karras, "
        "CFG scale: 6.5, Seed: 5, Size: 64x32, Model hash: e3edb8a26f, Model: ghost, Clip skip: 2, ENSD: 31337, "
        'Lora hashes: "fox: 7c6bad76eb54"',
    )
    file = tmp_path / "foreign.png"
    Image.new("RGB", (64, 32)).save(file, pnginfo=info)
    remembered = read_picture(file)
    assert not remembered.ours
    assert again(remembered) == Request(
        "a fox",
        adapters=[Use("fox", 0.7)],
        negative_prompt="bad",
        steps=30,
        scheduler="DPM++ 2M Karras",
        guidance_scale=6.5,
        seed=5,
        width=64,
        height=32,
        clip_skip=1,
        clip_skip_as="a1111",
    )
    assert (remembered.model, remembered.model_hash) == ("ghost", "e3edb8a26f")
    assert remembered.known["fox"].digest == "7c6bad76eb54"
    assert "another program" in remembered.notes[0]
    assert remembered.notes[1:] == ("not taken over: ENSD",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not say how it was made"),
        ("{", "damaged"),
        ("{}", "damaged"),
        ("[]", "damaged"),
        ('{"version": 99}', "newer"),
        ('{"version": 1, "request": {"steps": 0}}', "damaged"),
    ],
)
def test_pictures_that_say_nothing_sound(tmp_path: Path, text: str | None, said: str) -> None:
    info = PngInfo()
    if text is not None:
        info.add_text(CHUNK, text)
    file = tmp_path / "odd.png"
    Image.new("RGB", (8, 8)).save(file, pnginfo=info)
    with pytest.raises(RequestError, match=said):
        read_picture(file)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        read_picture(tmp_path / "nowhere.png")
    file = tmp_path / "text.png"
    file.write_text("no picture")
    with pytest.raises(RequestError, match="cannot be read as a picture"):
        read_picture(file)


def test_adapters_are_known_again_by_every_hash_in_use(files: dict[str, Path]) -> None:
    whole = sha256(files["fox"])
    for digest in (whole, whole[:10], whole[:12], short_hash(files["fox"]), whole.upper()):
        assert find_adapter(files.values(), digest) == files["fox"]
    assert not is_adapter(files["fox"], whole, size=1)
    assert find_adapter(files.values(), "0" * 64) is None


def ours(**changed: object) -> str:
    content = {
        "version": 1,
        "request": {"prompt": "a"},
        "adapters": {"fox": {"sha256": "ab" * 32, "size": 5}},
        "setup": {"vae": None, "low_memory": False},
        "record": {"model": "m", "model_hash": "h"},
    }
    return json.dumps(content | changed)


def said_by(tmp_path: Path, **texts: str) -> Remembered:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name.replace("_", "-"), text)
    file = tmp_path / "odd.png"
    Image.new("RGB", (8, 8)).save(file, pnginfo=info)
    return read_picture(file)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        ours(record=[]),
        ours(record={"model": 5, "model_hash": "h"}),
        ours(record={"model": "m" * 1001, "model_hash": "h"}),
        ours(record={"model": "m", "model_hash": "h" * 1001}),
        ours(setup={"vae": ["x"], "low_memory": False}),
        ours(adapters={"fox": {"sha256": 5, "size": 5}}),
        ours(adapters={"fox": {"sha256": "ab", "size": "5"}}),
        ours(adapters={f"a{n}": {"sha256": "ab", "size": 5} for n in range(101)}),
        ours(request=[]),
        ours(request={"prompt": "a" * 20_001}),
        ours(request={"prompt": "\ud800"}),
        ours(request={"prompt": "a", "steps": {"x": 1}}),
        ours(version="1"),
        ours(record={"model": "m", "model_hash": "h", "more": float("nan")}),
        '{"version": ' + "9" * 5000 + "}",
    ],
    ids=lambda text: text[:60],
)
def test_a_picture_of_ours_that_was_tampered_with_is_refused(tmp_path: Path, text: str) -> None:
    with cheap(), pytest.raises(RequestError) as caught:
        said_by(tmp_path, lora_studio=text)
    assert len(str(caught.value).encode()) < 1000


def test_the_longest_names_are_read(tmp_path: Path) -> None:
    """What may be written may be read: the bounds are the same."""
    name = "m" * LONGEST_NAME
    text = ours(record={"model": name, "model_hash": name}, setup={"vae": name, "low_memory": False})
    remembered = said_by(tmp_path, lora_studio=text)
    assert (remembered.model, remembered.model_hash, remembered.setup.vae) == (name, name, name)


def test_a_picture_names_no_file_of_this_computer(tmp_path: Path) -> None:
    request = {"prompt": "a", "init_image": str(tmp_path / "secret.png")}
    remembered = said_by(tmp_path, lora_studio=ours(request=request))
    assert remembered.draft.images == {}
    assert remembered.init_image is None


def test_what_a_foreign_picture_says_is_bounded(tmp_path: Path) -> None:
    line = "Steps: 20, Sampler: Euler, Seed: 1"
    with cheap(), pytest.raises(RequestError, match=r"odd\.png: prompt has 20001 characters"):
        said_by(tmp_path, parameters=f"{'a' * 20_001}\n{line}")
    many = ", ".join(f"{'key' * 50}{n}: {n}" for n in range(900))
    remembered = said_by(tmp_path, parameters=f"a\n{line}, {many}")
    assert "and 860 more" in remembered.notes[1]
    assert len(remembered.notes[1]) < 5000
    hashes = said_by(tmp_path, parameters=f'a\n{line}, Model: {"m" * 5000}, Composition: "{"x" * 5000}"')
    assert len(hashes.model) == 1000


def test_text_that_unpacks_to_more_than_pictures_say_is_refused(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text(PARAMETERS, "a" * 50_000_000, zip=True)
    file = tmp_path / "bomb.png"
    Image.new("RGB", (8, 8)).save(file, pnginfo=info)
    with (
        cheap(),
        pytest.raises(RequestError, match=r"^bomb\.png says \d+ characters about itself; at most 4000000"),
    ):
        read_texts(file)
    info = PngInfo()
    for number in range(5):
        info.add_text(f"text{number}", "a" * 1_000_000)
    Image.new("RGB", (8, 8)).save(file, pnginfo=info)
    with cheap(), pytest.raises(RequestError, match="says 5000000 characters about itself; at most 4000000"):
        read_texts(file)


def test_a_picture_too_large_to_be_decoded_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    Image.new("1", (10_000, 8_001)).save(file)
    with cheap(), pytest.raises(RequestError, match="10000x8001 pixels"):
        read_texts(file)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_damaged_picture_is_refused_whatever_is_wrong_with_it(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "odd"
    noise = np.random.default_rng(1)
    Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, format=kind)
    whole = file.read_bytes()
    for _ in range(100):
        broken = bytearray(whole)
        for place in noise.integers(0, len(whole), 5):
            broken[place] = noise.integers(256)
        file.write_bytes(bytes(broken[: noise.integers(1, len(whole) + 1)]))
        with suppress(RequestError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read_texts(file)


# -- text chunks of PNG --------------------------------------------------------------------------------------

OURS_OF_BEFORE = sorted(Path(__file__).parents[2].glob("fixtures/c4e41da/home/outputs/*/*.png"))


def with_chunks(file: Path, *chunks: tuple[bytes, bytes], late: bool, **options: Any) -> Path:
    """A picture with chunks before or behind its pixels."""
    Image.new("RGB", (8, 8)).save(file, format="PNG", **options)
    whole = file.read_bytes()
    place = len(whole) - 12 if late else 33
    added = b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in chunks
    )
    file.write_bytes(whole[:place] + added + whole[place:])
    return file


def told_by_pillow(file: Path) -> dict[str, str]:
    with Image.open(file) as image:
        image.load()
        return {str(name): text for name, text in image.info.items() if isinstance(text, str)}


PACKED = zlib.compress("wörk".encode())
CHUNKS: dict[str, tuple[bytes, bytes]] = {
    "latin-1": (b"tEXt", "caf\xe9\0d\xe9j\xe0 vu".encode("latin-1")),
    "without a text": (b"tEXt", b"parameters"),
    "with NUL": (b"tEXt", b"a\0b\0c"),
    "without a name": (b"tEXt", b"\0b"),
    "exif as text": (b"tEXt", b"exif\0abc"),
    "nothing": (b"tEXt", b""),
    "packed": (b"zTXt", b"parameters\0\0" + zlib.compress(b"Steps: 20" * 1000)),
    "packed and damaged": (b"zTXt", b"parameters\0\0" + b"xxxxxxx"),
    "packed and cut off": (b"zTXt", b"parameters\0\0" + zlib.compress(bytes(range(256)) * 9)[:200]),
    "packed without a text": (b"zTXt", b"parameters\0"),
    "packed without a name": (b"zTXt", b"\0\0" + PACKED),
    "utf-8": (b"iTXt", b"workflow\0\0\0en\0Arbeit\0" + "狐 🦊 ü".encode()),
    "utf-8 packed": (b"iTXt", b"workflow\0\1\0\0\0" + PACKED),
    "utf-8 packed and damaged": (b"iTXt", b"workflow\0\1\0\0\0xxxxx"),
    "utf-8 packed unknown": (b"iTXt", b"workflow\0\1\1\0\0" + PACKED),
    "no utf-8": (b"iTXt", b"workflow\0\0\0\0\0\xff\xfe"),
    "utf-8 without its parts": (b"iTXt", b"workflow\0\0\0en"),
    "utf-8 too short": (b"iTXt", b"workflow\0\0"),
    "utf-8 without anything": (b"iTXt", b"workflow"),
    "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"),
}


@pytest.mark.parametrize("late", [False, True], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize("name", CHUNKS)
def test_a_text_of_a_png_is_what_pillow_makes_of_it(tmp_path: Path, name: str, late: bool) -> None:
    between = [(b"prVt", b"private"), CHUNKS[name], (b"tEXt", b"parameters2\0more")]
    file = with_chunks(tmp_path / "picture.png", *between, late=late)
    assert read_texts(file) == told_by_pillow(file)
    assert read_texts(file)["parameters2"] == "more"


def test_of_two_texts_with_one_name_the_last_counts(tmp_path: Path) -> None:
    twice = (b"tEXt", b"parameters\0one"), (b"zTXt", b"parameters\0\0" + zlib.compress(b"two"))
    file = with_chunks(tmp_path / "picture.png", *twice, late=True)
    assert read_texts(file) == told_by_pillow(file) == {"parameters": "two"}


SETTINGS = "Steps: 8, Sampler: Euler, Seed: {seed}, Size: 16x16"


@pytest.mark.parametrize(
    ("first", "second", "seed", "told"),
    [
        (SETTINGS.format(seed=1), SETTINGS.format(seed=2), 2, True),
        (SETTINGS.format(seed=1), "hello", 1, True),
        ("hello", SETTINGS.format(seed=2), 2, True),
        (SETTINGS.format(seed=1), "", 1, False),
        ("", SETTINGS.format(seed=2), 2, False),
        (SETTINGS.format(seed=1), SETTINGS.format(seed=1), 1, False),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_of_two_texts_parameters_the_later_one_with_settings_counts(
    tmp_path: Path, first: str, second: str, seed: int, told: bool, late: bool
) -> None:
    twice = [(b"tEXt", f"parameters\0{text}".encode()) for text in (first, second)]
    said = read_picture(with_chunks(tmp_path / "picture.png", *twice, late=late))
    assert said.draft.values["seed"] == seed
    note = "it holds two texts 'parameters' that differ; the later one that tells settings counts"
    assert (note in said.notes) == told


def test_an_empty_text_hides_no_graph(tmp_path: Path) -> None:
    from .comfy_graphs import BASE

    both = (b"tEXt", b"parameters\0"), (b"tEXt", b"prompt\0" + json.dumps(BASE).encode())
    assert read_picture(with_chunks(tmp_path / "picture.png", *both, late=False)).program == "ComfyUI"


def test_utf8_where_latin1_belongs_is_read_as_it_is_meant(tmp_path: Path) -> None:
    text = f"a fox é 狐\n{SETTINGS.format(seed=1)}"
    for kind, body in ((b"tEXt", text.encode()), (b"zTXt", b"\0" + zlib.compress(text.encode()))):
        file = with_chunks(tmp_path / "picture.png", (kind, b"parameters\0" + body), late=False)
        assert read_picture(file).draft.values["prompt"] == "a fox é 狐"


def test_a_moving_picture_is_read_up_to_its_second_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    text = (b"tEXt", b"parameters\0moving")
    for late in (False, True):
        file = with_chunks(tmp_path / "moving.png", text, late=late, save_all=True, append_images=frames)
        assert read_texts(file) == told_by_pillow(file)


def test_texts_of_pictures_that_were_made_before_are_what_pillow_reads() -> None:
    assert OURS_OF_BEFORE
    for file in OURS_OF_BEFORE:
        assert read_texts(file) == told_by_pillow(file)
        assert {PARAMETERS, CHUNK} <= read_texts(file).keys()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_texts_of_other_pictures_are_what_pillow_reads(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "picture"
    Image.new("RGB", (8, 8)).save(file, format=kind)
    assert read_texts(file) == told_by_pillow(file)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_no_pixel_is_decoded_for_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    file = tmp_path / "picture"
    Image.new("RGB", (64, 64)).save(file, format=kind)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    read_texts(file)


def test_chunks_without_number_and_damaged_packed_ones_are_told_soon(tmp_path: Path) -> None:
    file = with_chunks(tmp_path / "many.png", *[(b"prVt", b"")] * 200_001, late=True)
    with cheap(10), pytest.raises(RequestError, match=r"^many\.png cannot be read .*more than 200000 chunks"):
        read_texts(file)
    bomb = zlib.compress(b"\xff" * 4_000_000)
    bombs = [(b"iTXt", b"a\0\1\0\0\0" + bomb), (b"zTXt", b"a\0\0" + bomb[:-9] + b"xxxxxxxxx")]
    file = with_chunks(tmp_path / "bombs.png", *bombs * 5000, late=True)
    with cheap(), pytest.raises(RequestError, match=r"^bombs\.png says \d+ characters about itself"):
        read_texts(file)


def test_messages_about_a_picture_name_no_folder(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "missing.png"):
        with pytest.raises(RequestError) as caught:
            read_texts(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
        assert str(caught.value).startswith(name)

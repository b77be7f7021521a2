"""What a size needs of memory is known before any work, and never said to be more than it is."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipelines import Request, StudioPipeline
from pipelines import memory as memory_module
from pipelines.errors import RenderError, RequestError
from pipelines.events import Failed
from pipelines.memory import Needs, _unet_values, _vae_values, empty_cache, give_back
from pipelines.session import Session

CPU = torch.device("cpu")
SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
}
SD_VAE = {"block_out_channels": (128, 256, 512, 512)}


@pytest.fixture(scope="module")
def pipe() -> StudioPipeline:
    return StudioPipeline.from_pretrained("tiny-sdxl")


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """little(bytes): so much memory is free from now on."""

    def leave(have: int) -> None:
        monkeypatch.setattr(memory_module, "free", lambda device, wanted=sys.maxsize: have)

    return leave


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("what", ["unet", "decode", "encode"])
def test_the_needs_are_less_than_what_is_really_taken_and_not_much_less(what: str) -> None:
    script = Path(__file__).with_name("memory_peaks.py")
    run = subprocess.run([sys.executable, script, what], capture_output=True, text=True, check=True)
    need, taken = map(int, run.stdout.split()[-2:])
    assert need <= taken <= 3 * need


def test_real_models_need_what_is_known_of_them() -> None:
    """float32, at the size they were made for. What they really take on a CPU: 0.2 and 0.9 GB a row, 1.5 and 6 GB
    for the VAE."""
    rows = [4 * _unet_values(config) * (side // 8) ** 2 for config, side in ((SD15, 512), (SDXL, 1024))]
    assert [round(row / 1e9, 2) for row in rows] == [0.12, 0.31]
    decoded = [4 * _vae_values(SD_VAE)["decode"] * side**2 for side in (512, 1024)]
    assert [round(number / 1e9, 1) for number in decoded] == [0.9, 3.8]
    assert _vae_values({"_class_name": "AutoencoderTiny", "block_out_channels": (64,)})["decode"] == 0


def test_what_has_no_room_is_refused_before_any_work(
    pipe: StudioPipeline, little: Callable[[int], None]
) -> None:
    little(16 * 10**9)
    began = time.monotonic()
    with pytest.raises(RequestError) as caught:
        pipe([Request("a", seed=1), Request("a", width=16384, height=16384)])
    assert time.monotonic() - began < 1
    said = str(caught.value)
    assert said.startswith(
        "16384 x 16384 pixels need 192.4 GB of memory at the least, and 16.0 GB are there (cpu)"
    )
    [near] = re.findall(r"; (\d+) x \1 would fit", said)
    pipe.model.needs.refuse(int(near), int(near))


def test_the_size_that_would_fit_has_the_pictures_shape(little: Callable[[int], None]) -> None:
    little(10**9)
    needs = Needs(CPU, cell=4000.0, decoded=3000.0, encoded=0.0, scale=8, unit=8)
    with pytest.raises(RequestError, match="816 x 200 would fit"):
        needs.refuse(8192, 2048)


def test_usual_sizes_are_never_asked_about(pipe: StudioPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "psutil", None)
    pipe(Request("a", steps=1, seed=1, width=256, height=256))
    assert pipe.model.rows_at_once(pipe.model.latent_shape(128, 128)) == 32


def test_few_rows_stand_in_a_call_where_memory_is_short(
    pipe: StudioPipeline, little: Callable[[int], None]
) -> None:
    shape = pipe.model.latent_shape(512, 512)
    need = pipe.model.needs.row(shape[1] * shape[2])
    large = pipe.model.latent_shape(1024, 1024)
    little(2 * 2**30)
    assert pipe.model.rows_at_once(shape) == 2
    assert pipe.model.rows_at_once(large) == 2
    little(3 * 4 * need)  # for one of the large and a half
    assert pipe.model.rows_at_once(large) == 1


def test_memory_that_is_gone_by_the_time_fails_that_picture_alone(
    pipe: StudioPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(pipe.model)
    good = session.submit(Request("a", seed=1, steps=2)).id
    bad = session.submit(Request("a", seed=2, steps=2, width=512, height=512)).id
    have = 50 * 10**6
    monkeypatch.setattr(
        memory_module, "free", lambda device, wanted=sys.maxsize: have if wanted > have else wanted
    )
    failed = {event.id: event.error for event in session.drain() if isinstance(event, Failed)}
    assert list(failed) == [bad] != [good]
    assert isinstance(failed[bad], RenderError)
    assert "only 0.1 GB are free now" in str(failed[bad])


def test_tiles_need_no_memory_for_the_whole_picture(sdxl_folder: Path) -> None:
    pipe = StudioPipeline.from_pretrained(sdxl_folder)
    pipe.enable_vae_tiling()
    assert pipe.model.needs.decoded == pipe.model.needs.encoded == 0


# -- giving back -----------------------------------------------------------------------------------------


@pytest.fixture
def unknown_trim() -> Iterator[None]:
    """`malloc_trim` is looked for anew, in the test and after it."""
    memory_module._malloc_trim.cache_clear()
    yield
    memory_module._malloc_trim.cache_clear()


class NoSuchLibrary:
    """A libc without `malloc_trim`, as musl's is."""

    def __init__(self, name: str | None) -> None:
        pass


def refused(name: str | None) -> None:
    raise OSError("no library can be loaded")


def none_at_all(name: str | None) -> None:
    raise TypeError("bad argument type for built-in operation")  # what Windows says to CDLL(None)


@pytest.mark.usefixtures("unknown_trim")
@pytest.mark.parametrize("library", [NoSuchLibrary, refused, none_at_all])
def test_giving_memory_back_is_harmless_where_libc_cannot(
    monkeypatch: pytest.MonkeyPatch, library: Callable[[str | None], object]
) -> None:
    monkeypatch.setattr("ctypes.CDLL", library)
    give_back()


@pytest.mark.usefixtures("unknown_trim")
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_other_systems_are_not_even_asked(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("libc was loaded"))
    give_back()


def test_a_process_that_draws_gives_back_what_it_freed(
    pipe: StudioPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted over all sessions of the process: many have but one picture."""
    given: list[int] = []
    monkeypatch.setattr(memory_module, "_made", itertools.count(1))
    monkeypatch.setattr(memory_module, "TRIM_EVERY", 3)
    monkeypatch.setattr(memory_module, "give_back", lambda: given.append(1))
    for made in range(1, 7):
        pipe(Request("a fox", width=32, height=32, steps=1, seed=made))
        assert len(given) == made // 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts bytes as Linux does")
def test_freed_memory_between_blocks_in_use_goes_back_to_the_system() -> None:
    """In a process of its own, where nothing else is freed meanwhile."""
    code = (
        "import psutil\nfrom pipelines.memory import _malloc_trim, give_back\n"
        "rss = psutil.Process().memory_info\n"
        "blocks = [bytearray(100_000) for _ in range(1500)]\nkept = blocks[::50]\nfull = rss().rss\ndel blocks\n"
        "give_back()\nprint(_malloc_trim() is None or full - rss().rss > 100_000_000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.stdout.split() == ["True"], done.stderr


@pytest.mark.parametrize(
    ("device", "emptied"),
    [("cuda", ["cuda"]), ("cuda:1", ["cuda"]), ("mps", ["mps"]), ("cpu", []), ("meta", [])],
)
def test_the_cache_of_the_device_in_use_is_emptied(
    monkeypatch: pytest.MonkeyPatch, device: str, emptied: list[str]
) -> None:
    found: list[str] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: found.append("cuda"))
    monkeypatch.setattr("torch.mps.empty_cache", lambda: found.append("mps"))
    empty_cache(torch.device(device))
    assert found == emptied

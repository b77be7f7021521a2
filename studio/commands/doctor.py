"""`lora-studio doctor`: the device, the versions, the folders, and a short test picture."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from studio.commands.flags import Command
from studio.terminal.exits import OK, SOME_FAILED

if TYPE_CHECKING:
    from pipelines.home import Home
    from studio.terminal.progress import Teller

STEPS = 4


def run(values: None, home: Home, teller: Teller) -> int:
    """Prints what was found. Exit code: 0 if all is well, else 1."""
    return SOME_FAILED if problems_of(home) else OK


def problems_of(home: Home) -> list[str]:
    """Prints what was found; returns what is to be mended."""
    problems: list[str] = []
    _versions()
    _device(home, problems)
    _folders(home, problems)
    _test_picture(home, problems)
    for problem in problems:
        print(f"{'PROBLEM':<13} {problem}")
    print("all is well" if not problems else f"{len(problems)} to mend")
    return problems


def _versions() -> None:
    import platform

    from pipelines.record import versions

    print(f"{'python':<13} {platform.python_version()} ({sys.platform}, {platform.machine()})")
    for name, version in versions():
        print(f"{name:<13} {version}")


def _device(home: Home, problems: list[str]) -> None:
    import torch

    from composers import StudioError
    from pipelines.checkpoints.weights import free_memory
    from pipelines.record import device_name
    from studio.rendering.opening import pick_device

    print(f"{'memory':<13} {free_memory() / 2**30:.1f} GiB free")
    try:
        device = pick_device(home.settings.device or "auto")
    except StudioError as error:
        problems.append(str(error))
        return
    print(f"{'device':<13} {device_name(device)}, {torch.get_num_threads()} threads")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        print(f"{'':<13} {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")


def _folders(home: Home, problems: list[str]) -> None:
    from pipelines.home.answers import is_silent
    from pipelines.home.files import is_folder, whole_text

    there = "" if home.path.is_dir() else " (not there yet; made when something is written)"
    print(f"{'home':<13} {home.path}{there}")
    writable = next(folder for folder in (home.path, *home.path.parents) if folder.exists())
    if not os.access(writable, os.W_OK):
        problems.append(f"{writable} is not writable; choose another home with --home or LORA_STUDIO_HOME")
    for kind, entries, roots in (
        ("models", home.models(), home.roots.models),
        ("LoRAs", home.loras(), home.roots.loras),
        ("VAEs", home.vaes(), home.roots.vae),
        ("embeddings", home.embeddings(), home.roots.embeddings),
    ):
        also = f", also from {', '.join(map(str, roots))}" if roots else ""
        print(f"{kind:<13} {len(entries)}{also}")
        if kind == "models":
            _models(home)
        problems += [
            f"the {kind} folder {root} does not exist"
            for root in roots
            if not is_silent(root) and not is_folder(root)
        ]
    problems += [f"{whole_text(str(one.path))}: {one.why}" for one in home.look_for_loras()[1]]
    problems += [
        f"the folder {folder} does not answer; see to its drive or network" for folder in home.silent
    ]


def _models(home: Home) -> None:
    """Each model of the user's own in one line, with the reason where it cannot be used."""
    from studio.library.models import list_models

    for entry in list_models(home):
        if not entry.embedded:
            cannot = "" if entry.usable else "cannot be used: "
            print(f"{'':<13} {entry.name}: {cannot}{entry.base}")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _test_picture(home: Home, problems: list[str]) -> None:
    """The built-in model draws one small picture, which is thrown away."""
    from composers import StudioError
    from pipelines import Request
    from pipelines.assets import embedded_models
    from studio.library.models import BUILT_IN
    from studio.rendering.opening import Opening, open_pipeline

    if BUILT_IN not in [model.name for model in embedded_models()]:
        problems.append(f"the built-in model {BUILT_IN} is missing; install lora-studio again")
        return
    try:
        began = time.perf_counter()
        pipe = open_pipeline(Opening(BUILT_IN), home)
        loaded = time.perf_counter()
        image = pipe(Request("a fox", seed=7, steps=STEPS)).images[0]
        seconds = time.perf_counter() - loaded
    except StudioError as error:
        problems.append(str(error))
        return
    host, on_device = pipe.store.stats.host, pipe.store.stats.device
    print(f"{'LoRA memory':<13} {_gib(host.limit)} in memory, {_gib(on_device.limit)} on the device")
    if all(low == high for low, high in image.getextrema()):
        problems.append("the test picture has only one colour; the device or the installation is faulty")
    print(f"{'test':<13} {STEPS} steps in {seconds:.1f} s, model loaded in {loaded - began:.1f} s")


COMMANDS = (
    Command(
        "doctor",
        place=100,
        help="check device, versions, folders; draw a test picture",
        abbreviations=True,
        add=lambda command: None,
        read=lambda args: None,
        run=run,
    ),
)

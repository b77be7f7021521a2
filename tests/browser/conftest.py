"""A studio in a process of its own, and a real browser in front of it.

Every page is watched: a console error, a page error or a request to another host fails the test that caused it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from studio.pictures.metadata import read_picture
from studio.web.parts.showcase import METHODS

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
NO_CHROMIUM = "no Chromium: apt-get install chromium, or python -m playwright install --with-deps chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ROWS = ".mix-row:not(.mix-row .mix-row)"
PATIENCE = 300_000
"""Milliseconds within which anything on the page must have happened; a part of a slow core draws the pictures."""

expect.set_options(timeout=PATIENCE)


@dataclass
class Server:
    """`lora-studio web` as a subprocess on a home."""

    home: Path
    address: str = ""
    process: subprocess.Popen[str] | None = None

    def start(self) -> Server:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "studio", "web", "--home", self.home, "--port", "7960", "--quiet"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("http://127.0.0.1:"), "the server did not start; its message is above"
        return self

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def pictures(self) -> list[Path]:
        """The saved pictures, oldest first."""
        return sorted((self.home / "outputs").rglob("*.png"), key=lambda file: file.stat().st_mtime_ns)

    def records(self) -> list[Mapping[str, Any]]:
        return [read_picture(file).record for file in self.pictures()]


@dataclass
class Studio:
    """The open page, in the words of its user."""

    page: Page
    server: Server
    problems: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname or ""))

    def _heard(self, message: ConsoleMessage) -> None:
        left = message.text.startswith("AbortError")  # what a page that is left no longer waits for
        if message.type == "error" and not left:
            self.problems.append(f"{message.text} ({message.location.get('url')})")

    def leave(self) -> None:
        """Go away, and pass over what the page says then: that its connection is gone."""
        before = list(self.problems)
        self.page.goto("about:blank")
        self.problems[:] = before

    def open(self, rows: int = 0) -> Studio:
        """The page from anew. rows: of the mix that its browser kept."""
        self.leave()
        self.page.goto(self.server.address)
        expect(self.page.locator("#generate")).to_be_enabled()
        empty = self.page.get_by_text("None yet: the model alone.")
        expect(self.rows.last if rows else empty).to_be_visible()  # the rows were drawn once
        expect(self.rows).to_have_count(rows)
        expect(self.page.locator("#model-line")).to_contain_text("Small built-in demo model")
        return self

    def tab(self, name: str) -> None:
        """Narrow pages put the last tabs into a menu."""
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if not tab.first.is_visible():
            self.page.locator(".overflow-menu > button").click()
        self.page.get_by_role("tab", name=name, exact=True).or_(
            self.page.locator(".overflow-dropdown button", has_text=name)
        ).first.click()

    def scheme(self, scheme: Literal["light", "dark"]) -> None:
        """What the system asks for; the page follows at once."""
        self.page.emulate_media(color_scheme=scheme)
        expect(self.page.locator("body.dark")).to_have_count(1 if scheme == "dark" else 0)

    def write(self, prompt: str) -> None:
        self.page.locator("#prompt textarea").fill(prompt)

    def number(self, box: str, value: float) -> None:
        control = self.page.locator(f"#{box} input[type=number]").first
        control.fill(str(value))
        control.press("Tab")

    def steps(self, steps: int) -> None:
        """Opens their panel until it is open: rows that are drawn above it push it down, and a click can miss it."""
        panel = self.page.get_by_role("button", name="Size, steps, sampler")
        for _ in range(20):
            if self.page.locator("#steps").is_visible():
                break
            panel.click()
            with suppress(PlaywrightTimeout):
                self.page.locator("#steps").wait_for(timeout=5_000)
        self.number("steps", steps)

    def choose(self, box: str, choice: str) -> None:
        """From a dropdown, as a person does: once its choices have come, by keys, since they filter."""
        control = self.page.locator(f"#{box} input").first
        control.click()
        option = self.page.get_by_role("option", name=choice, exact=True)
        expect(option).to_be_visible()
        control.press("ControlOrMeta+a")
        control.press_sequentially(choice)
        expect(self.page.get_by_role("option").first).to_have_accessible_name(re.compile(re.escape(choice)))
        option.click()

    def add(self, *loras: str) -> None:
        for lora in loras:
            rows = self.rows.count()
            self.choose("add-lora", lora)
            expect(self.rows).to_have_count(rows + 1)

    def method(self, name: str) -> None:
        self.page.locator("#method").get_by_role("radio", name=name, exact=True).check()

    def generate(self) -> None:
        self.page.locator("#generate").click()

    def is_refused(self, text: str) -> None:
        """Asks for a picture until a message says why there is none. Gradio passes over a click that comes while the
        one before is still being answered."""
        said = self.page.locator(".toast-body").filter(has_text=text).first
        for _ in range(20):
            self.generate()
            with suppress(PlaywrightTimeout):
                said.wait_for(timeout=5_000)
                return
        expect(said).to_be_visible()

    @property
    def rows(self) -> Any:
        """Those of the mix, from the top."""
        return self.page.locator(ROWS)

    def state(self, text: str | re.Pattern[str], where: str = "pictures") -> None:
        expect(self.page.locator(f"#{where}-state")).to_contain_text(text)

    def says(self, text: str | re.Pattern[str]) -> None:
        """A message in the corner."""
        expect(self.page.locator(".toast-body").filter(has_text=text).first).to_be_visible()

    def shown(self, where: str = "pictures") -> Any:
        return self.page.locator(f"#{where} img")


@pytest.fixture(scope="session")
def studio_home(
    tmp_path_factory: pytest.TempPathFactory, sd_folder: Path, make_lora: Callable[..., Path]
) -> Path:
    """A home with a LoRA for another model, and a file that is broken."""
    home = tmp_path_factory.mktemp("studio") / "home"
    (home / "loras").mkdir(parents=True)
    shutil.copy(make_lora(sd_folder, "sd-fox", seed=5), home / "loras" / "sd-fox.safetensors")
    (home / "loras" / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{not json at all")
    draw_strip(home)
    return home


def draw_strip(home: Path) -> None:
    """The first screen's strip as an earlier start left it, so that none is drawn behind the tests' backs."""
    folder = home / "cache" / "web" / "showcase"
    folder.mkdir(parents=True)
    for name in METHODS:
        Image.new("RGB", (128, 128), "teal").save(folder / f"{name}.png")
    (folder / "strip.json").write_text(json.dumps({"together": 1.0, "alone": 2.0, "device": "cpu"}))


@pytest.fixture(scope="session")
def server(studio_home: Path) -> Iterator[Server]:
    running = Server(studio_home).start()
    yield running
    running.stop()


@cache
def chromium() -> str | None:
    """The system's, else Playwright's own."""
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is not None:
        return found
    with sync_playwright() as playwright:
        return shutil.which(playwright.chromium.executable_path)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without Chromium, browser tests are skipped, with one line for all of them; under CI they fail."""
    if item.get_closest_marker("browser") and chromium() is None:
        if os.environ.get("CI"):
            pytest.fail(NO_CHROMIUM, pytrace=False)
        pytest.skip(NO_CHROMIUM)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield running
        running.close()


Visitor = Callable[..., Studio]


@pytest.fixture
def visitor(browser: Browser, server: Server) -> Iterator[Visitor]:
    """visitor() -> the studio as somebody new sees it; visitor(width=…, height=…, dark=True) on another screen."""
    opened: list[tuple[BrowserContext, Studio]] = []

    def arrive(
        *,
        width: int = 1366,
        height: int = 900,
        dark: bool = False,
        at: Server | None = None,
        start: bool = True,
    ) -> Studio:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            accept_downloads=True,
        )
        context.set_default_timeout(PATIENCE)
        studio = Studio(context.new_page(), at or server)
        opened.append((context, studio))
        return studio.open() if start else studio

    yield arrive
    for context, studio in opened:
        context.close()
        assert studio.problems == [], "the browser's console told of errors"
        assert studio.hosts <= {"127.0.0.1", ""}, "the page asked other hosts"


@pytest.fixture
def studio(visitor: Visitor) -> Studio:
    return visitor()


def wait_until(true: Callable[[], bool], seconds: float = PATIENCE / 1000) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture
def until() -> Callable[..., None]:
    return wait_until

"""A real Chromium with a microphone fed from a recording, for the tests of the page."""

import shutil
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, BrowserType, ConsoleMessage, Page, sync_playwright

POLICY = "Content Security Policy"  # a browser that obeyed it says so only in its console
HANGS_MS = 120_000  # nothing waits this long unless it hangs
PHONE = {"width": 360, "height": 720}
DESK = {"width": 1200, "height": 760}


@contextmanager
def chromium(microphone: Path) -> Iterator[Browser]:
    """The system's browser, whose user allows what it is asked."""
    with sync_playwright() as playwright:
        browser = launch(playwright.chromium, microphone)
        yield browser
        browser.close()


def launch(kind: BrowserType, microphone: Path, *, allowed: bool = True) -> Browser:
    """Every microphone that this browser opens plays the WAV file once, from its start.

    allowed: the user allows microphone, camera and screen when asked.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "the tests of the page need the program chromium; see tests/run"
    return kind.launch(
        executable_path=program,
        headless=True,
        chromium_sandbox=False,  # for those who test as root
        args=[
            "--use-fake-device-for-media-stream=device-count=2",  # cameras
            f"--use-file-for-fake-audio-capture={microphone}%noloop",
            f"--use-fake-ui-for-media-stream{'' if allowed else '=deny'}",
            "--disable-background-networking",
        ],
    )


def open_page(browser: Browser, url: str, *, init: str = "", **options: Any) -> Page:
    """A fresh visitor's page. Errors of its own code fail the test through `no_errors`.

    init: JavaScript that runs before the page's own.
    """
    context = browser.new_context(**{"viewport": DESK, **options})
    context.set_default_timeout(HANGS_MS)
    page = context.new_page()
    page.add_init_script(init)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))

    def keep_violation(note: ConsoleMessage) -> None:
        if POLICY in note.text:
            errors.append(note.text)

    page.on("console", keep_violation)
    page.errors = errors  # type: ignore[attr-defined]
    page.goto(url)
    return page


def no_errors(page: Page) -> None:
    assert not page.errors, page.errors  # type: ignore[attr-defined]


def write_recording(path: Path, samples: np.ndarray, *, rate: int = 24_000) -> Path:
    """float32 [n] -> a mono 16-bit WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path

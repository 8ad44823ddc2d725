"""What tests share. What it takes is imported where it is used: not every test needs it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from live_stage import Stage
    from playwright.sync_api import Browser, Page
    from realtime_client import Client
    from scripted_engine import ScriptedEngine
    from scripted_server import ScriptedServer

    from thinktalk.live.session import LiveSession


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """A second thread only spins on tensors as tiny as the tests'."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """geometry ("7b" or "3b") -> a folder with a complete tiny random checkpoint (tiny.py)."""
    folders: dict[str, Path] = {}

    def folder_of(geometry: str) -> Path:
        if geometry not in folders:
            from tiny import build

            folder = tmp_path_factory.mktemp(f"tiny-{geometry}")
            build(folder, geometry)
            folders[geometry] = folder
        return folders[geometry]

    return folder_of


@pytest.fixture
def stage(
    request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path]
) -> Iterator["Stage"]:
    """A live engine of a tiny checkpoint (7b, or what a test asks for), which in the end has lost
    no block."""
    from live_stage import Stage, load

    stage = Stage(load(tiny_checkpoint(getattr(request, "param", "7b"))), max_sessions=4)
    yield stage
    stage.close()


@pytest.fixture
def session(stage: "Stage") -> "LiveSession":
    """The first one of that engine."""
    return stage.open()


# ---- Realtime: a real socket, and a scripted engine in place of the model


@pytest.fixture
def engine() -> "ScriptedEngine":
    from scripted_engine import ScriptedEngine

    return ScriptedEngine()


@pytest.fixture
def url(engine: "ScriptedEngine") -> Iterator[str]:
    """Of its server."""
    from serving import serving

    with serving(engine) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator["Client"]:
    from realtime_client import realtime

    with realtime(url) as client:
        yield client


# ---- the page: a real browser, and a server that the test plays


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the browser's user says: a tone, for 20 s."""
    from chromium import write_recording
    from scripted_server import tone

    return write_recording(tmp_path_factory.mktemp("mic") / "mic.wav", tone(20, hz=300))


@pytest.fixture(scope="module")
def browser(recording: Path) -> Iterator["Browser"]:
    from chromium import chromium

    with chromium(recording) as browser:
        yield browser


@pytest.fixture
def server() -> Iterator["ScriptedServer"]:
    from scripted_server import ScriptedServer

    with ScriptedServer() as server:
        yield server


@pytest.fixture
def page(browser: "Browser", server: "ScriptedServer") -> Iterator["Page"]:
    """A fresh visitor's, whose own code makes no error."""
    from chromium import no_errors, open_page

    page = open_page(browser, server.url)
    yield page
    page.context.close()
    no_errors(page)

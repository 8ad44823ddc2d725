"""What tests share."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from live_stage import Stage


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
            from tiny import build  # imports torch, which tests of the house rules do not need

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

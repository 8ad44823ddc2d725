"""Training state on disk: written beside the old one and renamed, so a kill never loses a leg."""

import os
from pathlib import Path
from typing import Any

import torch

STATE_FILE = "state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / (STATE_FILE + ".part")
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / STATE_FILE)


def load_state(folder: Path, *, device: torch.device | str) -> dict[str, Any] | None:
    """The last saved state, or None in a fresh folder. Never executes a pickle."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    return torch.load(path, map_location=device, weights_only=True)

"""A tiny model from random weights learns a handful of real rows by heart, through every sense.

Pictures, sounds, films, films with sound and spoken questions of the playroom; the answers come
from the exported folder, by thinktalk.generate.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import build

import thinktalk
from thinktalk.playroom import dataset
from thinktalk.train.journal import curve
from thinktalk.train.shards import open_source
from thinktalk.train.tuning import train_on

SEEN = {"typed": ("shape", "sound", "shape"), "spoken": ("add", "when", "opposite")}
NUMBERS = {
    "steps": 48,
    "learning_rate": 4e-3,
    "warmup_steps": 10,
    "weight_decay": 0.0,
    "bfloat16": False,
    "batch_tokens": 8192,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("rows")
    for asked, tasks in SEEN.items():
        dataset.make(
            folder / asked,
            seed=4,
            num_cases=len(tasks),
            tasks=tasks,
            asked=asked,  # pyright: ignore[reportArgumentType]
            speak=False,
            workers=1,
        )
    return [folder / asked for asked in SEEN]


@pytest.fixture(scope="module")
def run(rows: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    build(folder / "tiny", "7b")
    out = folder / "out"
    assert train_on("omni", model=folder / "tiny", data=rows, out=out, held=rows, changes=NUMBERS)
    return out


def conversations(rows: list[Path]) -> list[tuple[list[dict[str, Any]], str]]:
    """What is asked, and the answer."""
    found = []
    for source in map(open_source, rows):
        for number in range(len(source)):
            *asked, answer = source.row(number).conversation.messages
            found.append((asked, answer["content"]))
    return found


def test_every_sense_is_there(rows: list[Path]) -> None:
    lines = [line for folder in rows for line in (folder / "data.jsonl").read_text().splitlines()]
    kinds = {kind for line in lines for kind in ("images", "audios", "videos")
             if json.loads(line)[kind]}  # fmt: skip
    assert kinds == {"images", "audios", "videos"}
    assert len({answer for _, answer in conversations(rows)}) == len(lines)


def test_the_loss_falls(run: Path) -> None:
    told = curve(run / "omni")
    figures = {name for row in told for name in row}
    assert {"text_audio", "text_image", "text_video", "test_text_video"} <= figures
    losses = [row["loss"] for row in told if "loss" in row]
    assert losses[-1] < 0.1 * losses[0]


def test_the_exported_model_answers_right(run: Path, rows: list[Path]) -> None:
    model = thinktalk.load(run / "model")
    for asked, answer in conversations(rows):
        assert thinktalk.generate(model, asked, speak=False).text == answer

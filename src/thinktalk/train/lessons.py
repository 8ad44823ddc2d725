"""What spark learns from rows, once it talks: by the stages that train any checkpoint.

recipe.py makes RUN/base from nothing; every lesson takes the checkpoint of the one before. All may
be interrupted anywhere, and the same call goes on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from thinktalk.parallel import join
from thinktalk.playroom import dataset
from thinktalk.train.candidates import PAIRS, draw_pairs
from thinktalk.train.ears import load_code_ear
from thinktalk.train.shards import open_source
from thinktalk.train.tuning import MODEL, train_on
from thinktalk.weights import load, usable_device

BASE = "base"
# Sets of rows, as `thinktalk train cases` makes them.
SETS: dict[str, dict[str, Any]] = {
    "cases": {"seed": 1, "num_cases": 40_000, "speak": False},
    # What is learned last: any words in any order, who speaks, and how many.
    "heard": {
        "seed": 5,
        "num_cases": 20_000,
        "tasks": ("repeat", "dictation", "transcribe", "who"),
        "asked": "spoken",
        "speak": False,
    },
    "counted": {
        "seed": 6,
        "num_cases": 15_000,
        "tasks": ("how often", "how many", "digit", "who"),
        "asked": "typed",
        "speak": False,
    },
    "replies": {"seed": 3, "num_cases": 20_000},
    "sentences": {
        "seed": 4,
        "num_cases": 10_000,
        "tasks": ("repeat", "pace"),
        "asked": "typed",
    },
    # What the Talker has not learned to say, to be said several times and ranked.
    "prompts": {
        "seed": 8,
        "num_cases": 5_000,
        "tasks": ("repeat", "pace"),
        "asked": "typed",
        "speak": False,
    },
}
PAIRS_SET = "pairs"  # is drawn by the model itself
SAMPLES, PAIRS_OF_A_ROW = 10, 3


@dataclass(frozen=True)
class Lesson:
    """course: the stage, as tuning.py calls it. sets: of rows. changes: of the stage's numbers."""

    course: str
    sets: tuple[str, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)


def lessons() -> dict[str, Lesson]:
    """In their order, by the name of their folder."""
    # steady: the Talker has learned to speak by then. frozen: the decoder learns to read what the
    # eye names; both at once, and the eye unlearns what the decoder does not read yet.
    small = {"batch_tokens": 2048, "ema": 0.998, "warmup_steps": 200, "steady": 2.0}
    reading = {"steps": 12_000, "learning_rate": 6e-4, "frozen": ("thinker.visual.*",)}
    omni = Lesson("omni", ("cases", "heard", "counted"), small | reading)
    return {
        "omni": omni,
        "long": Lesson(
            "long",
            ("cases",),
            {
                "steps": 300,
                "learning_rate": 1e-4,
                "batch_tokens": 8192,
                "recompute": False,
                "steady": 2.0,
            },
        ),
        "sft": Lesson("sft", ("cases",), small | {"steps": 1000, "learning_rate": 1e-4}),
        "reader": Lesson("reader", ("replies", "sentences")),
        "speaking": Lesson(
            "talker",
            ("replies", "sentences"),
            {
                "steps": 3000,
                "learning_rate": 1e-4,
                "batch_tokens": 4096,
                "deaf": 0.1,
                "spelling": 0.0,
            },
        ),
        "dpo": Lesson(
            "talker-dpo",
            (PAIRS_SET,),
            {"steps": 150, "learning_rate": 3e-5, "batch_tokens": 8192, "anchor": 2.0},
        ),
        "voices": Lesson(
            "talker-voice", ("replies", "sentences"), {"steps": 100, "learning_rate": 1e-5}
        ),
    }


def make_sets(data: Path) -> None:
    """The rows of all lessons but those that the model makes itself."""
    for name, order in SETS.items():
        dataset.make(data / name, **order)


def learn(
    name: str, *, data: Path, run: Path, device: str = "cpu", minutes: float = math.inf
) -> bool:
    """One lesson for at most `minutes`; True when it is done and run/NAME/model is there."""
    lesson, base = lessons()[name], before(name, run)
    if lesson.sets == (PAIRS_SET,):  # the first rank draws them, the others find them done
        ranks = join(usable_device(device))
        ranks.in_turn(lambda: _draw_pairs(base, data=data, run=run, device=device))
    sources = [run / PAIRS_SET / PAIRS if s == PAIRS_SET else data / s for s in lesson.sets]
    return train_on(
        lesson.course,
        model=base,
        data=sources,
        out=run / name,
        changes=lesson.changes,
        device=device,
        minutes=minutes,
    )


def before(name: str, run: Path) -> Path:
    """The checkpoint that a lesson begins with."""
    names = list(lessons())
    number = names.index(name)
    return run / names[number - 1] / MODEL if number else run / BASE


def last(run: Path) -> Path:
    """The checkpoint that has learned everything."""
    return run / list(lessons())[-1] / MODEL


def _draw_pairs(model: Path, *, data: Path, run: Path, device: str) -> None:
    draw_pairs(
        load(model, device=device, dtype=torch.float32),
        open_source(data / "prompts"),
        run / PAIRS_SET,
        ear=load_code_ear(model),
        samples=SAMPLES,
        pairs=PAIRS_OF_A_ROW,
    )

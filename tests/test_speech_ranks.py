"""The stages of speech on two ranks give one process's weights, whatever each rank's rows hold."""

from pathlib import Path
from typing import Any

import small_talk
from ranks import on_ranks

from thinktalk.train import speech
from thinktalk.train.checkpoint import best_weights
from thinktalk.train.discriminators import Judges
from thinktalk.train.tuning import train_on

QUICK: dict[str, Any] = {
    "steps": 3, "parts": 2, "batch_size": 1, "learning_rate": 1e-3, "warmup_steps": 1,
    "ema": 0.0, "bfloat16": False,
}  # fmt: skip
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "frozen": ("talker", {}),
    "joint": ("talker", {"joint": True}),
    "talker-dpo": ("talker-dpo", {}),
    "vocoder": ("vocoder", {}),
}


def small_judges() -> Judges:
    return Judges(width=2, periods=(2,), resolutions=((256, 64),))


def all_runs(base: Path, data: dict[str, Path], out: Path) -> None:
    speech.Judges = small_judges  # pyright: ignore[reportAttributeAccessIssue]
    speech.VocoderTask.FRAMES = 12  # pyright: ignore[reportAttributeAccessIssue]
    for name, (stage, changes) in RUNS.items():
        assert train_on(
            stage, model=base, data=[data[name]], out=out / name, changes=QUICK | changes
        )


def test_two_ranks_give_one_process_weights(tmp_path: Path) -> None:
    base = small_talk.build(tmp_path / "base").folder
    spoken = [
        small_talk.coded("hi", "hey you", [5, 6, 7, 8], "Chelsie"),
        small_talk.coded("ho", "no", [9, 9], "Ethan"),
    ]
    written = [{"messages": [{"role": "user", "content": "a"},
                             {"role": "assistant", "content": "bc"}]}] * 2  # fmt: skip
    pairs = [row | {"rejected_codes": [n, 2, 1]} for n, row in enumerate(spoken)]
    data = {
        "frozen": small_talk.write_rows(tmp_path / "frozen.jsonl", spoken),
        "joint": small_talk.write_rows(tmp_path / "joint.jsonl", [*spoken, *written]),
        "talker-dpo": small_talk.write_rows(tmp_path / "pairs.jsonl", pairs),
        "vocoder": small_talk.speak_rows(
            tmp_path, ("the red bird is happy.", "say: a big dog.", "two, three."), ("Ethan",)
        ),
    }
    judges, frames = speech.Judges, speech.VocoderTask.FRAMES
    try:
        all_runs(base, data, tmp_path / "one")
    finally:
        speech.Judges, speech.VocoderTask.FRAMES = judges, frames
    on_ranks(all_runs, base, data, tmp_path / "two")
    for name, (stage, _) in RUNS.items():
        one, two = (best_weights(tmp_path / run / name / stage) for run in ("one", "two"))
        assert one.keys() == two.keys()
        apart = {key: (one[key] - two[key]).abs().max().item() for key in one}
        assert max(apart.values()) < 3e-5, (name, max(apart, key=lambda key: apart[key]))

"""Sessions beside each other: what one says is what it would say alone, whatever the others do.

Alone and batched: ids equal in float32, sound up to the rounding of kernels for more rows; beside
idle neighbours to the bit. In bfloat16 the logits are compared, with the same ids forced.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from live_stage import SHORT, Said, Stage, load, push, said_alone
from omni_cases import sound
from tiny import GEOMETRIES
from torch import Tensor

import thinktalk
from thinktalk import Sampling
from thinktalk.live.session import LiveSession
from thinktalk.weights import LoadedModel

LIMITS = {**SHORT, "max_codec_ids": 28}  # two whole blocks of 12 and a part
TOLERANCE = 1e-4  # of the largest sample: kernels round otherwise for more rows
HOT = Sampling(temperature=0.8, top_k=20)
WORDS = ["Hello", "What is this?", "Tell me more about it, please.", "Why?"]


@pytest.fixture
def model(request, tiny_checkpoint: Callable[[str], Path]) -> LoadedModel:
    return load(tiny_checkpoint(getattr(request, "param", "7b")))


def ask(session: LiveSession, n: int) -> None:
    """A turn of sound that nobody answers, and a question."""
    push(session, sound(0.5 + n))
    session.commit(respond=False)
    session.push_text(WORDS[n])
    session.commit()


def alone(model: LoadedModel, n: int) -> Said:
    return said_alone(model.folder, ask, n, **LIMITS)


def close(wave: np.ndarray, other: np.ndarray) -> None:
    assert wave.shape == other.shape
    error = float(np.abs(wave - other).max() / np.abs(other).max())
    assert error <= TOLERANCE, error


@pytest.mark.parametrize("model", GEOMETRIES, indirect=True)
def test_batched_is_alone(model: LoadedModel) -> None:
    """Questions of different length that come and are answered at the same time."""
    stage = Stage(model, max_sessions=4, voice_rows=3)
    sessions = [stage.open(seed=n, **LIMITS) for n in range(len(WORDS))]
    for n, session in enumerate(sessions):
        ask(session, n)
    stage.run()
    assert stage.engine.counters["talker_steps"] < 40, "all of them speak at once"
    for n, session in enumerate(sessions):
        said, expected = stage.reply(session), alone(model, n)
        assert said.ids == expected.ids
        close(said.wave, expected.wave)
    stage.close()


@pytest.mark.parametrize("ticks", [2, 5, 20, 35])
def test_an_interruption_is_nobody_elses(model: LoadedModel, ticks: int) -> None:
    """At any stage of a reply: the ids of the others stay as they are."""
    stage = Stage(model, max_sessions=3)
    sessions = [stage.open(seed=n, **LIMITS) for n in range(3)]
    for n, session in enumerate(sessions):
        ask(session, n)
    stage.run(ticks)
    sessions[1].cancel()
    stage.run(3)
    sessions[1].close()
    stage.run()
    for n in (0, 2):
        said, expected = stage.reply(sessions[n]), alone(model, n)
        assert said.ids == expected.ids
        close(said.wave, expected.wave)
    stage.close()


def test_what_idle_neighbours_do_changes_no_bit(model: LoadedModel) -> None:
    """Opened, cleared, cut back, deleted, refused and closed beside a reply that goes on."""
    stage = Stage(model, max_sessions=3)
    idle = stage.open()
    idle.say("Hm.")
    item = stage.reply(idle).done.item
    session = stage.open(seed=0, **LIMITS)
    ask(session, 0)
    stage.run(6)
    acts = (
        lambda: idle.truncate(item, 0),
        idle.cancel,
        idle.clear,
        lambda: idle.delete(item),
        lambda: stage.open().close(),
        lambda: idle.push_audio(np.full(5, np.nan, np.float32)),
        idle.close,
    )
    for act in acts:
        act()
        stage.run(2)
    said, expected = stage.reply(session), alone(model, 0)
    assert said.ids == expected.ids and np.array_equal(said.wave, expected.wave)
    stage.close()


def test_bfloat16_batched_beside_alone(tiny_checkpoint, monkeypatch) -> None:
    """Ids may differ where two are nearly equal; with the same ids forced, logits agree."""
    narrow = thinktalk.load(tiny_checkpoint("7b"), dtype=torch.bfloat16)

    def logits(numbers: list[int]) -> dict[tuple[int, int], list[Tensor]]:
        """By reply and vocabulary: the logits of every step."""
        stage = Stage(narrow, max_sessions=4)
        seen: dict[tuple[int, int], list[Tensor]] = {}

        def forced(values, samplings, replies, *_) -> Tensor:
            ids = []
            for row, reply in zip(values, replies, strict=True):
                kept = seen.setdefault((reply.seed, len(row)), [])
                ids.append((37 * reply.seed + 11 * len(kept)) % 200)
                kept.append(row)
            return torch.tensor(ids)

        monkeypatch.setattr(stage.engine.passes, "_choose", forced)
        for n in numbers:
            session = stage.open(seed=n)
            session.push_text(WORDS[n])
            session.commit()
        stage.run()
        return seen

    batched = logits([0, 1, 2, 3])
    for n in range(4):
        single = logits([n])
        for key, rows in single.items():
            ours, theirs = torch.stack(batched[key]), torch.stack(rows)
            error = float((ours - theirs).abs().max() / theirs.abs().max())
            assert len(rows) in (6, 14) and error < 0.05, (key, error)


def test_settings_are_the_sessions_own(model: LoadedModel) -> None:
    """Voices, sampling and limits beside each other in one batch."""
    settings = [
        {"voice": "Ethan", "text": HOT, "seed": 1},
        {"voice": "Chelsie", "speech": replace(HOT, repetition_penalty=1.2), "seed": 2},
        {"speak": False, "text": Sampling(temperature=2.0), "seed": 3, "max_text_tokens": 9},
    ]
    stage = Stage(model, max_sessions=3)
    sessions = [stage.open(**{**LIMITS, **s}) for s in settings]
    for session in sessions:
        session.push_text(WORDS[1])
        session.commit()
    stage.run()
    for session, options in zip(sessions, settings, strict=True):
        answer = thinktalk.generate(model, [WORDS[1]], **{**LIMITS, **options})
        said = stage.reply(session)
        assert said.text_ids == answer.text_ids and said.text == answer.text
        assert said.done.usage.output_audio == len(answer.codec_ids)
        if options.get("speak", True):
            assert said.codec_ids == answer.codec_ids
            close(said.wave, answer.audio)
    stage.close()

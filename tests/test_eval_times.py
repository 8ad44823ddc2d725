"""`when` with altered time ids: what the ids do, and what a model that only knows time answers."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from eval_teacher import no_tick
from torch import Tensor

import thinktalk
from thinktalk.eval import tasks, times
from thinktalk.generate import load_processor, load_tokenizer
from thinktalk.media.prompt import build_prompt
from thinktalk.model.audio import num_tokens
from thinktalk.model.tmrope import prompt_positions
from thinktalk.playroom import cases
from thinktalk.playroom.films import Film
from thinktalk.weights import LoadedModel

FILM = Film(
    np.zeros((12, 4, 4, 3), np.uint8), 2, None,
    ((0.0, "red", "star"), (2.0, "blue", "star"), (4.0, "green", "star")), ((2.5, "bell"),),
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Callable[[str], Path]) -> LoadedModel:
    return thinktalk.load(tiny_checkpoint("7b"))


def placed(model: LoadedModel, messages: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """ids [T] and positions [3,T] of a prompt with one film."""
    config = model.omni.config.thinker_config
    prompt = build_prompt(
        messages,
        tokenizer=load_tokenizer(model.folder),
        config=config,
        processor=load_processor(model.folder),
    )
    ids = torch.from_numpy(prompt.ids)
    positions, _ = prompt_positions(
        ids,
        config=config,
        audio_tokens=[num_tokens(mel.shape[1]) for mel in prompt.mels],
        video_grids=[grid for _, grid, _ in prompt.videos],
        seconds_per_pair=[seconds for _, _, seconds in prompt.videos],
        video_has_audio=prompt.video_has_audio,
    )
    return ids, positions


@pytest.fixture(scope="module")
def film(model: LoadedModel) -> tuple[Tensor, Tensor]:
    example = cases.make(seed=1, split="test", number=0, task="when")
    return placed(model, example.messages)


def test_neighbour_is_the_middle_of_a_colour_beside() -> None:
    found = {times.neighbour(FILM, np.random.default_rng(seed)) for seed in range(20)}
    assert found == {(-1.5, "red"), (2.5, "green")}  # 2.5 s -> 1 s or 5 s


@pytest.mark.parametrize("seconds", [1.4, -0.8])
def test_shift_moves_the_sound_alone(
    model: LoadedModel, film: tuple[Tensor, Tensor], seconds: float
) -> None:
    config = model.omni.config.thinker_config
    ids, before = film
    after = times.shift(config, seconds=seconds)(ids, before.clone())
    heard = ids == config.audio_token_index
    assert torch.equal(after[:, ~heard], before[:, ~heard])
    steps = after[:, heard] - before[:, heard]
    count = int(heard.sum())
    assert torch.equal(steps % count, torch.full_like(steps, round(seconds * 25) % count))
    assert torch.equal(after[:, heard].sort(1)[0], before[:, heard])  # no id is new


def test_shuffle_keeps_frames_whole(model: LoadedModel, film: tuple[Tensor, Tensor]) -> None:
    config = model.omni.config.thinker_config
    ids, before = film
    after = times.shuffle(config, np.random.default_rng(0))(ids, before.clone())
    heard, seen = ids == config.audio_token_index, ids == config.video_token_index
    assert torch.equal(after[:, ~(heard | seen)], before[:, ~(heard | seen)])
    assert torch.equal(after[1:, seen], before[1:, seen])  # rows and columns stay
    for mask in (heard, seen):
        assert torch.equal(after[0, mask].sort()[0], before[0, mask].sort()[0])
        assert (after[0, mask] != before[0, mask]).float().mean() > 0.5
    assert torch.equal(after[0, heard], after[1, heard])
    pairs = torch.stack((before[0, seen], after[0, seen])).unique(dim=1)
    assert pairs.shape[1] == len(before[0, seen].unique())  # an instant moves as one


def test_a_model_that_knows_only_time(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model.omni.config.thinker_config
    made: list[cases.Example] = []
    original = cases.make

    def make(**options: Any) -> cases.Example:
        made.append(original(**options))
        return made[-1]

    def generate(model: LoadedModel, messages: Any, *, positions: Any, **_: Any) -> Any:
        """Looks up the time id of the sound's onset, and the colour of the frame nearest to it."""
        (film,), case = made[-1].films, made[-1].case
        ids, at = placed(model, messages)
        at = positions(ids, at) if positions else at
        heard = at[0, ids == config.audio_token_index]
        onset_s = int(heard[int(film.events[0][0] * 25)] - heard.min()) / 25
        colour = [colour for begin, colour, _ in film.states if begin <= onset_s + 0.05][-1]
        return SimpleNamespace(text=f"The {case.shown[0]} was {colour}", tool_calls=[])

    monkeypatch.setattr(cases, "make", make)
    monkeypatch.setattr(tasks, "generate", generate)
    plain, moved, stayed, lost = times.when(model, count=8, seed=1, tick=no_tick)
    assert (plain.value, moved.value, stayed.value) == (100, 100, 0)
    assert lost.value < 80 and "(chance: " in lost.name


def test_a_model_that_ignores_time(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(model: LoadedModel, messages: Any, **_: Any) -> Any:
        return SimpleNamespace(text="the star was red", tool_calls=[])

    monkeypatch.setattr(tasks, "generate", generate)
    plain, moved, _, lost = times.when(model, count=6, seed=1, tick=no_tick)
    assert plain.value == lost.value < 50 and moved.value < 50 and plain.misses

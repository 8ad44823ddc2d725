"""The first stage of seeing: what pictures are to be called, and that only the eye learns it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from thinktalk.config import VisionConfig
from thinktalk.generate import load_processor, load_tokenizer
from thinktalk.media.video import video_patches
from thinktalk.model.vision import VisionEncoder
from thinktalk.playroom import cases
from thinktalk.playroom.films import Film
from thinktalk.playroom.scenes import ANY_COLOUR, COLOUR_VALUES, colour_value
from thinktalk.playroom.talk import Case
from thinktalk.playroom.words import NUMBERS
from thinktalk.train import seeing
from thinktalk.train.seeing import EVERYTHING, LETTERS_FIRST, Look, SeeingTask, named
from thinktalk.train.spots import LETTERS
from thinktalk.weights import find, load


def task(shares: dict[str, float], look: Look = EVERYTHING) -> SeeingTask:
    model = load(find("spark"), dtype=torch.float32)
    thinker = model.omni.thinker
    torch.manual_seed(0)
    thinker.visual = VisionEncoder(
        VisionConfig(
            depth=2,
            hidden_size=64,
            intermediate_size=64,
            num_heads=2,
            out_hidden_size=256,
            fullatt_block_indexes=(1,),
        )
    )
    look = replace(look, shares=shares)
    return SeeingTask(thinker, load_tokenizer(model.folder), load_processor(model.folder), look)


@pytest.mark.parametrize(
    ("name", "shown", "words"),
    [
        ("shape", ("red", "circle"), [" red", " circle"]),
        ("how many", ("blue", "cross", "three"), [" three", " blue", " crosses"]),
        ("how many", ("blue", "cross", "one"), [" one", " blue", " cross"]),
        ("how many", ("blue", "shape", "two"), [" two", " blue", " shapes"]),
        ("where", ("blue", "star", "left"), [" blue", " star", " left"]),
        ("where", ("colour", "star", "left"), [" star", " left"]),
        ("motion", ("blue", "star", "moves left"), [" blue", " star", " moves", " left"]),
        ("motion", ("blue", "star", "grows"), [" blue", " star", " grows"]),
        ("motion", ("blue", "star", "stays still"), [" blue", " star"]),
        ("digit", ("0",), [" zero"]),
        ("read", ("hello",), [" hello"]),
        ("read", ("hel",), []),
    ],
)
def test_descriptions(name: str, shown: tuple[str, ...], words: list[str]) -> None:
    assert named(Case(name, None, (), "", shown=shown)) == words


def test_colours_are_learned_and_only_by_the_eye() -> None:
    """The loss falls below that of knowing how often each word is said."""
    learner = task({"shape": 1.0})
    before = {n: w.clone() for n, w in learner.thinker.named_parameters()}
    weights = [w for w in learner.module.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    losses = []
    for step in range(150):
        optimizer.zero_grad()
        loss, _ = learner.loss(learner.batch(np.random.default_rng(step), 16))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(loss.item())
    frequencies = (np.log(2 * 8) + np.log(2 * 6)) / 2
    assert np.mean(losses[-10:]) < frequencies - 0.2 < losses[0] - 2
    changed = {n for n, w in learner.thinker.named_parameters() if not torch.equal(w, before[n])}
    assert changed and all(name.startswith("visual.") for name in changed)


def test_a_picture_counts_as_right_if_its_words_come_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = task({"digit": 1.0})
    monkeypatch.setattr(seeing, "NUM_TEST_PICTURES", 4)

    def scores(tokens: torch.Tensor, batch: dict) -> torch.Tensor:
        """All are called by their names but the last, which is called zero, or four if it is."""
        table = torch.zeros(4, len(learner.thinker.model.embed_tokens.weight))
        table[batch["pictures"], batch["words"]] = 1.0
        zero, four = (learner.tokenizer.encode(word)[0] for word in (" zero", " four"))
        table[3, four if batch["words"][3] == zero else zero] = 2.0
        return table

    monkeypatch.setattr(learner, "_scores", scores)
    assert learner.evaluate() == {"digit": 0.75}


def test_most_pictures_to_learn_from_are_small() -> None:
    for name in ("shape", "where", "digit"):
        learner = task({name: 1.0})
        grids = learner.batch(np.random.default_rng(0), 40)["grids"].tolist()
        others = [grid for grid in grids if grid != [1, 4, 4]]  # patches of 14 pixels
        assert 4 < len(others) < 20
        assert all(min(height, width) >= 8 for _, height, width in others)
    learner = task({"read": 1.0})
    grids = learner.batch(np.random.default_rng(0), 40)["grids"]
    assert 0.5 < (grids[:, 1] <= 6).float().mean() < 0.9


def test_tokens_are_asked_for_things_and_letters() -> None:
    """Only in pictures that have such; and no word is asked for where a piece of one is shown."""
    learner = task({"read": 0.5, "how many": 0.3, "shape": 0.2})
    batch = learner.batch(np.random.default_rng(0), 60)
    counts = (batch["grids"].prod(-1) // 4).tolist()
    things, letters = (batch[name].split(counts) for name in ("things", "letters"))
    words = [batch["words"][batch["pictures"] == n].tolist() for n in range(60)]
    told = [learner.tokenizer.decode(each).split() for each in words]
    kinds = set()
    for named_words, thing, letter in zip(told, things, letters, strict=True):
        if letter.max() >= 0:
            spelled = "".join(["", *LETTERS][i] for i in letter.flatten().tolist())
            kinds.add(("word", len(named_words)))
            assert thing.max() < 0
            assert (
                not named_words
                or sorted(spelled) == sorted(named_words[0])
                or "ß" in named_words[0]
            )
        elif thing.max() >= 0:
            kinds.add("things")
            assert NUMBERS[int(thing.sum())] == named_words[0]
        else:
            kinds.add("shape")
    assert kinds == {("word", 0), ("word", 1), "things", "shape"}


def test_what_moves_is_shown_by_two_frames_as_films_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = task({"motion": 1.0})
    films = []
    original = cases.film

    def film(*arguments: Any) -> Film:
        films.append(original(*arguments))
        return films[-1]

    monkeypatch.setattr(cases, "film", film)
    batch = learner.batch(np.random.default_rng(0), 24)
    sizes = batch["grids"].prod(-1).tolist()
    pairs = batch["patches"].split(sizes)
    for number, (film_shown, patches) in enumerate(zip(films, pairs, strict=True)):
        before, behind = patches.view(-1, 3, 2, 14 * 14).unbind(2)
        named = learner.tokenizer.decode(batch["words"][batch["pictures"] == number].tolist())
        moving = any(word in named for word in ("moves", "grows", "shrinks"))
        assert torch.equal(before, behind) != moving
        frames = film_shown.frames
        step = 2 if film_shown.fps in (6, 8) else 1  # spark reads four frames a second
        cut = [
            video_patches(f, processor=learner.processor)[0]
            for f in np.stack((frames[:-step], frames[step:]), 1)
        ]
        assert any(np.array_equal(patches, each) for each in cut)


def test_some_shades_have_no_name() -> None:
    """A shape that is held out with every colour would be one that is never blue."""
    learner = task({"where": 1.0})
    batch = learner.batch(np.random.default_rng(0), 200)
    counts = torch.bincount(batch["pictures"]).tolist()
    assert set(counts) == {2, 3} and 15 < counts.count(2) < 60
    values = [colour_value(np.random.default_rng(seed), ANY_COLOUR) for seed in range(50)]
    named = np.array(list(COLOUR_VALUES.values()))
    assert all(np.abs(named - value).max(-1).min() >= 50 for value in values)
    held_out = learner._pictures(np.random.default_rng(0), ["where"] * 50, "test")
    assert set(held_out["pictures"].bincount().tolist()) == {3}


def test_letters_come_first() -> None:
    """Mostly one at a time, and large ones; later whole words in all sizes."""
    most = {}
    for look in (LETTERS_FIRST, EVERYTHING):
        learner = task({"read": 1.0}, look)
        batch = learner.batch(np.random.default_rng(0), 60)
        counts = (batch["grids"].prod(-1) // 4).tolist()
        letters = [int((each > 0).sum()) for each in batch["letters"].split(counts)]
        most[look.piece_share] = np.median(letters)
        assert set(look.shares) == set(EVERYTHING.shares)
        assert sum(look.shares.values()) == pytest.approx(1)
    assert most[LETTERS_FIRST.piece_share] == 1 and most[EVERYTHING.piece_share] >= 3
    assert LETTERS_FIRST.least_font > EVERYTHING.least_font

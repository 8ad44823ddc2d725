"""What single tokens of a picture shall see: where things and letters are; that it is learned."""

from typing import Any

import numpy as np
import pytest
import torch

from thinktalk.media.image import Processor, patches
from thinktalk.playroom import scenes, writing
from thinktalk.playroom.talk import Split
from thinktalk.train.examples import IGNORED
from thinktalk.train.spots import (
    LETTERS,
    MOST_LETTERS,
    MOST_THINGS,
    Spots,
    letters_in,
    nothing,
    things_in,
)

PROCESSOR = Processor()
WORDS = ("lion", "weiß", "triangles", "o'clock", "löwe", "i")


def rng_of(*key: Any) -> np.random.Generator:
    return np.random.default_rng([sum(str(part).encode()) for part in key])


@pytest.mark.parametrize("count", range(1, 10))
def test_things_are_where_their_pixels_are(count: int) -> None:
    """The patches behind a token that has a middle are the filled ones; the order is that of the
    tokens."""
    rng = rng_of(count)
    pixels, middles = scenes.counted(rng, colour="blue", shape="square", count=count, split="test")
    cut, grid = patches(pixels, processor=PROCESSOR)
    found = things_in(middles, pixels.shape[:2], grid, PROCESSOR)
    assert found.sum() == count == len(middles)
    tokens = cut.reshape(len(cut) // 4, 4, 3, -1)
    ground = np.median(tokens, (0, 1, 3))[:, None]
    away = np.abs(tokens - ground).mean((1, 2, 3))
    assert away[found > 0].min() > 0.2 * away.max()
    assert away[found > 0].mean() > 1.5 * away[found == 0].mean()


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("word", WORDS)
def test_letters_are_where_their_ink_is(word: str, split: Split) -> None:
    for number in range(8):
        pixels, middles = writing.written(
            rng_of(word, number), word=word, split=split, least_font=14
        )
        assert len(middles) - len(word) in (0, word.count("ß"))
        assert (np.diff(middles[:, 0]) > 2).all()
        grey = pixels.astype(float) @ writing.BRIGHTNESS
        ground = np.median(grey)
        for x, y in middles.round().astype(int):
            around = grey[max(y - 20, 0) : y + 20, max(x - 3, 0) : x + 4]
            assert np.abs(around - ground).max() > 40


def test_a_turned_word_takes_its_letters_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "finish", lambda rng, canvas, split: canvas)
    slopes = []
    for number in range(40):
        pixels, middles = writing.written(
            rng_of(number), word="oooooo", split="train", least_font=40
        )
        away = np.abs(
            pixels.astype(float) @ writing.BRIGHTNESS - np.median(pixels @ writing.BRIGHTNESS)
        )
        rows, columns = np.nonzero(away > 40)
        first, last, behind = np.quantile(columns, (0.2, 0.33, 0.85))  # a capital is higher
        left, right = rows[(columns > first) & (columns < last)], rows[columns > behind]
        slopes.append((middles[-1, 1] - middles[1, 1], right.mean() - left.mean()))
    told, seen = np.array(slopes).T
    assert np.abs(told).max() > 4 and np.abs(told - seen).max() < 2.5


def test_letters_stand_from_left_to_right_in_their_tokens() -> None:
    middles = np.array([(5, 30), (9, 30), (30, 30), (55, 30), (57, 30)], float)
    found = letters_in("lions", middles, (56, 84), (1, 4, 6), PROCESSOR)
    names = [["", *LETTERS][i] for i in found.flatten().tolist()]
    rows = ["".join(names[k : k + MOST_LETTERS]) for k in range(0, len(names), MOST_LETTERS)]
    assert rows == ["", "", "", "li", "on", "s"]
    crowd = np.full((MOST_LETTERS + 2, 2), 3.0)
    assert letters_in("abcdefg", crowd, (56, 56), (1, 4, 4), PROCESSOR)[0].min() > 0
    assert things_in(crowd, (56, 56), (1, 4, 4), PROCESSOR).tolist() == [MOST_THINGS, 0, 0, 0]


def test_both_are_learned_from_tokens_that_are_asked() -> None:
    torch.manual_seed(0)
    spots = Spots(16)
    tokens = torch.randn(6, 16)
    asked = {
        "things": torch.tensor([0, 1, 2, *[IGNORED] * 3]),
        "letters": torch.cat(
            (torch.full((3, MOST_LETTERS), IGNORED), torch.randint(30, (3, MOST_LETTERS)))
        ),
    }
    optimizer = torch.optim.AdamW(spots.parameters(), lr=0.1)
    before = spots.losses(tokens, asked)
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack(list(spots.losses(tokens, asked).values())).sum().backward()
        optimizer.step()
    after = spots.losses(tokens, asked)
    assert all(after[name] < 0.1 * before[name] for name in before)
    changed = {name: torch.where(labels == IGNORED, labels, 0) for name, labels in asked.items()}
    assert all(value > 1 for value in spots.losses(tokens, changed).values())
    silent = nothing((1, 4, 6), PROCESSOR)
    assert {name: value.item() for name, value in spots.losses(tokens, silent).items()} == {
        "things": 0.0,
        "letters": 0.0,
    }

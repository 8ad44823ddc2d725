"""What the single tokens of a picture shall see: the middles of things, and letters.

A word for a whole picture tells an encoder of this size little: whether some of two hundred words
was right. Where the middles of counted things lie, and which letters stand in the square behind
every token, says a hundred times as much, and both are what counting and reading begin with. The
heads exist for training only. Shapes: n tokens of all pictures, C their width.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.media.image import Grid, Processor
from thinktalk.playroom.scenes import Floats
from thinktalk.train.examples import IGNORED

LETTERS = "abcdefghijklmnopqrstuvwxyzäöüß'"
MOST_THINGS, MOST_LETTERS = 2, 5  # in one square of 28 pixels; more are not looked at
NAMES = ("things", "letters")


class Spots(nn.Module):
    """Reads from every token how many middles of things lie in its square, and its letters."""

    def __init__(self, width: int):
        super().__init__()
        self.things = nn.Linear(width, MOST_THINGS + 1)
        self.letters = nn.Linear(width, MOST_LETTERS * (len(LETTERS) + 1))

    def losses(self, tokens: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """tokens [n,C]; batch: things [n], letters [n,MOST_LETTERS] -> both losses."""
        letters = self.letters(tokens).unflatten(-1, (MOST_LETTERS, -1)).flatten(0, 1)
        scores = {"things": self.things(tokens), "letters": letters}
        return {name: _of_each(scores[name], batch[name].flatten()) for name in NAMES}


def things_in(middles: Floats, size: tuple[int, int], grid: Grid, processor: Processor) -> Tensor:
    """How many of the middles (x, y) [k,2] lie in each token of a picture (H, W): int64 [n]."""
    squares = _squares(middles, size, grid, processor)
    counts = np.bincount(squares, minlength=_num_tokens(grid, processor))
    return torch.from_numpy(counts.clip(max=MOST_THINGS))


def letters_in(
    word: str, middles: Floats, size: tuple[int, int], grid: Grid, processor: Processor
) -> Tensor:
    """The letters of each token from left to right, 0 behind them: int64 [n,MOST_LETTERS].

    word: its letters' middles are (x, y) [k,2].
    """
    found = torch.zeros(_num_tokens(grid, processor), MOST_LETTERS, dtype=torch.long)
    filled = [0] * len(found)
    for letter, square in zip(word, _squares(middles, size, grid, processor), strict=True):
        if filled[square] < MOST_LETTERS:
            found[square, filled[square]] = 1 + LETTERS.index(letter)
            filled[square] += 1
    return found


def nothing(grid: Grid, processor: Processor) -> dict[str, Tensor]:
    """What the tokens of a picture are not asked."""
    count = _num_tokens(grid, processor)
    return {
        "things": torch.full((count,), IGNORED),
        "letters": torch.full((count, MOST_LETTERS), IGNORED),
    }


def _squares(
    middles: Floats, size: tuple[int, int], grid: Grid, processor: Processor
) -> np.ndarray:
    """The number of the token behind each middle [k]."""
    rows, columns = (n // processor.merge_size for n in grid[1:])
    column = np.floor(middles[:, 0] / size[1] * columns).clip(0, columns - 1)
    row = np.floor(middles[:, 1] / size[0] * rows).clip(0, rows - 1)
    return (row * columns + column).astype(np.int64)


def _num_tokens(grid: Grid, processor: Processor) -> int:
    return grid[0] * grid[1] * grid[2] // processor.merge_size**2


def _of_each(scores: Tensor, labels: Tensor) -> Tensor:
    """The loss for every thing or letter that is there: most squares are empty, so a mean over all
    would be next to nothing. 0 where nothing is asked."""
    total = F.cross_entropy(scores.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels > 0).sum().clamp(min=1)

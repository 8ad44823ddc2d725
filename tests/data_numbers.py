"""The smallest data: rows that are their numbers, examples of as many tokens as wanted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np

from thinktalk.media.prompt import Prompt
from thinktalk.train.data import Dataset, Loader
from thinktalk.train.examples import IGNORED, Example
from thinktalk.train.rows import Conversation, Row
from thinktalk.train.survey import SILENT


@dataclass
class Numbers:
    """A source whose rows are their numbers."""

    count: int
    name: str = "numbers"

    def __len__(self) -> int:
        return self.count

    def row(self, index: int) -> Row:
        return Row(Conversation((), ()), extra={"number": index}, place=self.place(index))

    def place(self, index: int) -> str:
        return f"{self.name}:{index + 1}"

    def stamp(self) -> str:
        return f"{self.name} {self.count}"


@dataclass
class NumberMaker:
    """Makes of row n an example of length(n) tokens n."""

    length: Callable[[int], int] = lambda number: 5 + number * 7 % 40
    bad: frozenset[int] = frozenset()  # are found in the survey
    silent: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()  # are found when they are made
    measured: list[int] = field(default_factory=list)
    made: list[int] = field(default_factory=list)

    def measure(self, row: Row) -> int:
        self.measured.append(number := row.extra["number"])
        if number in self.bad:
            raise ValueError(f"number {number} is bad")
        return SILENT if number in self.silent else self.length(number)

    def make(self, row: Row) -> list[Example]:
        self.made.append(number := row.extra["number"])
        if number in self.broken:
            raise ValueError(f"number {number} is broken")
        ids = np.full(self.length(number), number)
        positions = np.tile(np.arange(len(ids)), (3, 1))
        return [Example(Prompt(ids), np.full_like(ids, IGNORED), positions)]

    def stamp(self) -> str:
        return "numbers"


def dataset(count: int = 50, **options: Any) -> Dataset:
    maker = options.pop("maker", None) or NumberMaker()
    return Dataset([Numbers(count)], maker, workers=2, **options)


def given_rows(loader: Loader, steps: int | None = None) -> list[list[int]]:
    """The rows of the next batches."""
    return [batch["samples"].tolist() for batch in islice(loader, steps)]


def flat(packs: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(packs))

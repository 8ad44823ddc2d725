"""The batches of a stage: drawn by a task or given by a Loader; this rank's parts of a step out.

A step consists of a number of batches, its parts. Part p belongs to rank p % world, so a step is
the same whether many ranks share its parts or one takes them all.
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol

import numpy as np

from thinktalk.parallel import Ranks

Batch = dict[str, Any]


class Batches(Protocol):
    """What data.Loader is: endless or not, and able to go on where a state was taken."""

    rank: int
    world: int

    def __iter__(self) -> Iterator[Batch]: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


def drawn(
    make: Callable[[np.random.Generator, int], Batch],
    *,
    ranks: Ranks,
    seed: int,
    size: int,
    parts: int,
    steps: range,
) -> Generator[list[Batch], None, None]:
    """The steps with these numbers, the next one made in a thread while this one is used.

    make(rng, size): one part; what it draws depends on seed, step and part alone.
    """

    def make_step(index: int) -> list[Batch]:
        numbers = part_numbers(ranks, parts)
        keys = [(seed, index, part) if parts > 1 else (seed, index) for part in numbers]
        return [make(np.random.default_rng(key), size) for key in keys]

    if not steps:
        return
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make_step, steps[0])
        for index in steps:
            step = coming.result()
            if index + 1 in steps:
                coming = pool.submit(make_step, index + 1)
            yield step


def given(
    loader: Batches, *, ranks: Ranks, parts: int, count: int
) -> Generator[list[Batch], None, None]:
    """`count` steps from the loader's state on; where it ends, fewer, the last with fewer parts."""
    if (loader.rank, loader.world) != (ranks.rank, ranks.world):
        raise ValueError(
            f"the loader serves rank {loader.rank} of {loader.world}, but this is rank "
            f"{ranks.rank} of {ranks.world}; make it with those of parallel.join()"
        )
    batches = iter(loader)
    for _ in range(count):
        step = list(islice(batches, parts // ranks.world))
        if not step:
            return
        yield step


def part_numbers(ranks: Ranks, parts: int) -> range:
    """Which parts of a step are this rank's, in the order in which a Loader gives them."""
    return range(ranks.rank, parts, ranks.world)

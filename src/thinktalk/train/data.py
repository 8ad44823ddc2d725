"""Sources of rows in; batches out, the same ones in the same order wherever and however it runs.

A Dataset knows the length of every row and fixes the order of an epoch. A Loader cuts the order
into packs, makes their examples in threads and gives this rank its share: every step takes as many
packs as there are ranks, each rank the one with its number. Neither the packs nor their order
depend on the number of ranks, so a run may go on with another one.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from thinktalk.train.examples import Example
from thinktalk.train.packing import collate, plan_packed, plan_padded
from thinktalk.train.rows import Row
from thinktalk.train.shards import Source, chained
from thinktalk.train.survey import BAD, BAD_ROW_ERRORS, SILENT, BadRow, reason_of, survey

LOG = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Batch = dict[str, Any]

REPORTED_ROWS = 10  # bad rows that are told one by one
WINDOW_ROWS = 4096  # neighbours in the shuffled order among which packs are made
KEPT_EPOCHS = 2  # whose packs are remembered
SPARE_ROWS = 100  # are tried where a batch would be empty


class Maker(Protocol):
    """What makes examples of rows; examples.ExampleMaker is one."""

    def make(self, row: Row) -> list[Example]:
        """Raises ValueError for a bad row."""
        ...

    def measure(self, row: Row) -> int:
        """The length of what make would return, without decoding media; SILENT where the row holds
        no speech, but only that is learned; ValueError if bad."""
        ...

    def stamp(self) -> str:
        """Changes when a length may change."""
        ...


class Dataset:
    """Rows of one or more sources, mixed.

    weights: how often the rows of each source are drawn, in any unit; by default every row once an
    epoch. An epoch draws as many rows as there are in all; a source that gets more than it has is
    repeated, one that gets less goes on in the next epoch. SILENT rows are counted and left out.
    Bad rows are logged and left out; more than max_bad_share of the others is a ValueError; so
    counts a row longer than max_length. folder: where what is known of the rows is kept.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        maker: Maker,
        *,
        weights: Sequence[float] | None = None,
        max_bad_share: float = 0.01,
        max_length: int | None = None,
        folder: Path | None = None,
        workers: int = 4,
    ):
        if not sources:
            raise ValueError("there is no training data; give at least one source")
        if weights is not None and (len(weights) != len(sources) or min(weights) <= 0):
            raise ValueError(
                f"weights are {list(weights)} for {len(sources)} sources; give one above 0 for each"
            )
        self.source, self.maker, self.max_bad_share = chained(sources), maker, max_bad_share
        surveys = [survey(s, maker, folder=folder, workers=workers) for s in sources]
        self.lengths = np.concatenate([lengths for lengths, _ in surveys])
        self.bad = [row for _, bad in surveys for row in bad]
        self._leave_out_longer_than(max_length)
        self._report()
        self._lock = threading.Lock()
        self._late: dict[int, str] = {}
        starts = np.cumsum([0, *map(len, sources)])
        bounds = pairwise(starts.tolist())
        self._good = [a + np.flatnonzero(self.lengths[a:b] > SILENT) for a, b in bounds]
        self._draws = _shares([len(good) for good in self._good], weights)

    def __len__(self) -> int:
        """Rows that an epoch draws."""
        return sum(self._draws)

    def epoch(self, number: int, *, seed: int) -> Ints:
        """The rows of an epoch, in order."""
        parts = [
            _drawn(good, first=number * count, count=count, seed=(seed, source))
            for source, (good, count) in enumerate(zip(self._good, self._draws, strict=True))
        ]
        rows = np.concatenate(parts)
        return rows[np.random.default_rng((seed, 0, number)).permutation(len(rows))]

    def spare(self) -> list[tuple[Example, int]]:
        """The examples of some row that can be used, and its number."""
        for row in islice((row for good in self._good for row in good.tolist()), SPARE_ROWS):
            if examples := self.examples(row):
                return [(example, row) for example in examples]
        raise ValueError("no row of the training data can be used; see the reasons above")

    def examples(self, row: int) -> list[Example]:
        """The examples of a row; none, and a word in the log, if its media turn out bad."""
        if row in self._late:
            return []
        try:
            return self.maker.make(self.source.row(row))
        except BAD_ROW_ERRORS as error:
            self._refuse(row, reason_of(error))
            return []
        except Exception as error:  # whatever it is, people must learn which row it is
            raise RuntimeError(f"{self.source.place(row)}: {error}") from error

    def _refuse(self, row: int, reason: str) -> None:
        with self._lock:
            self._late[row] = reason
            late = [BadRow(self.source.place(r), why) for r, why in self._late.items()]
        LOG.warning("skipped %s", late[-1])
        self._check_share([*self.bad, *late])

    def _leave_out_longer_than(self, max_length: int | None) -> None:
        for row in np.flatnonzero(self.lengths > (max_length or np.inf)):
            reason = f"it has {self.lengths[row]} tokens, but may have {max_length}; shorten it"
            self.bad.append(BadRow(self.source.place(int(row)), reason))
            self.lengths[row] = BAD

    def _report(self) -> None:
        if len(silent := np.flatnonzero(self.lengths == SILENT)):
            count, total, first = len(silent), len(self.source), self.source.place(int(silent[0]))
            if count == total:
                raise ValueError(
                    f"no reply in the {total} rows ({first} ...) is spoken, but that is what is "
                    "learned here; add speech or codes, and speaker, to the replies"
                )
            what = f"{count} of {total} rows, without a spoken reply: {first} ..."
            LOG.warning("left out %s", what)
        for row in self.bad[:REPORTED_ROWS]:
            LOG.warning("skipped %s", row)
        if len(self.bad) > REPORTED_ROWS:
            LOG.warning("skipped %d more rows", len(self.bad) - REPORTED_ROWS)
        self._check_share(self.bad)

    def _check_share(self, bad: list[BadRow]) -> None:
        total = np.count_nonzero(self.lengths != SILENT)
        if len(bad) > self.max_bad_share * total:
            listed = "\n".join(f"  {row}" for row in bad[:REPORTED_ROWS])
            raise ValueError(
                f"{len(bad)} of {total} rows cannot be used, more than the {self.max_bad_share:.1%}"
                f" that may be skipped; mend them, or raise max_bad_share. The first:\n{listed}"
            )


@dataclass(frozen=True)
class _Step:
    """A pack of this rank, and where the data stand behind its step. No rows: nothing is left."""

    rows: Ints
    epoch: int
    place: int


class Loader:
    """Batches of a dataset for one rank, as `packing.collate` describes them.

    batch_tokens: packs of up to so many tokens, in one packed row or (packed=False) padded;
    batch_size: packs of so many samples, padded. Both count for one rank and one step, and with
    both a pack keeps to both. epochs: how many to give; by default there is no end. Where they end
    and a rank has no pack left, and where all rows of a pack turn out bad, the batch is a spare
    one: its "idle" is True, and its loss shall not count.

    Iterating goes on from the state; breaking off loses nothing but what was made ahead.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        packed: bool | None = None,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        epochs: int | None = None,
        pad_id: int = 0,
        workers: int = 4,
        ahead: int = 4,
    ):
        if batch_tokens is None and batch_size is None:
            raise ValueError("how large is a batch? Give batch_tokens, batch_size or both")
        if any(n is not None and n < 1 for n in (batch_tokens, batch_size, workers, ahead)):
            raise ValueError("batch_tokens, batch_size, workers and ahead must be at least 1")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} does not exist among {world}")
        self.packed = batch_size is None if packed is None else packed
        if self.packed and batch_tokens is None:
            raise ValueError("packed rows need batch_tokens: how long may they get?")
        self.dataset, self.rank, self.world, self.seed = dataset, rank, world, seed
        self.batch_tokens, self.batch_size, self.epochs = batch_tokens, batch_size, epochs
        self.pad_id, self.workers, self.ahead = pad_id, workers, ahead
        longest = int(dataset.lengths.max())
        if batch_tokens is not None and longest > batch_tokens:
            raise ValueError(
                f"a row has {longest} tokens, but batch_tokens is {batch_tokens}; raise it, or "
                "leave such rows out by max_length"
            )
        self._epoch = self._place = 0
        self._packs: dict[int, list[Ints]] = {}
        self._stamps: dict[int, str] = {}

    def __iter__(self) -> Iterator[Batch]:
        coming: deque[tuple[Future[Batch], _Step]] = deque()
        steps = self._steps()
        with ThreadPoolExecutor(self.workers) as makers, ThreadPoolExecutor(1) as packer:
            try:
                while True:
                    for step in islice(steps, self.ahead - len(coming)):
                        made = [makers.submit(self.dataset.examples, int(r)) for r in step.rows]
                        coming.append((packer.submit(self._batch, made, step), step))
                    if not coming:
                        return
                    future, step = coming.popleft()
                    batch = future.result()
                    self._epoch, self._place = step.epoch, step.place
                    yield batch
            finally:
                packer.shutdown(wait=False, cancel_futures=True)
                makers.shutdown(wait=False, cancel_futures=True)

    def state(self) -> dict[str, Any]:
        """Where the data stand behind the last batch that was given: epoch and packs of it."""
        return {
            "epoch": self._epoch,
            "place": self._place,
            "seed": self.seed,
            "order": self._order_stamp(self._epoch),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where a state was taken, on any number of ranks.

        Raises ValueError if the remaining packs would be others: other data, seed or pack size.
        """
        epoch, place = int(state["epoch"]), int(state["place"])
        if state["seed"] != self.seed:
            raise ValueError(f"the data were shuffled with seed {state['seed']}, not {self.seed}")
        if state["order"] != self._order_stamp(epoch):
            raise ValueError(
                "the data, batch_tokens or batch_size are not those of the interrupted run, so "
                "what remains of its epoch is unknown; restore them, or begin a new run"
            )
        self._epoch, self._place = epoch, place

    def packs(self, epoch: int) -> list[Ints]:
        """The rows of every pack of an epoch, in order."""
        if epoch not in self._packs:
            if len(self._packs) == KEPT_EPOCHS:
                del self._packs[next(iter(self._packs))]
            self._packs[epoch] = self._planned(epoch)
        return self._packs[epoch]

    def _planned(self, epoch: int) -> list[Ints]:
        order = self.dataset.epoch(epoch, seed=self.seed)
        rng = np.random.default_rng((self.seed, 1, epoch))
        # a whole number of packs, where their size is fixed
        window = -(-WINDOW_ROWS // (self.batch_size or 1)) * (self.batch_size or 1)
        packs: list[Ints] = []
        for first in range(0, len(order), window):
            rows = order[first : first + window]
            lengths = self.dataset.lengths[rows].astype(np.int64)
            make_plan = plan_packed if self.packed else plan_padded
            plan = make_plan(lengths, batch_tokens=self.batch_tokens, batch_size=self.batch_size)
            packs += [rows[plan[number]] for number in rng.permutation(len(plan))]
        return packs

    def _steps(self) -> Iterator[_Step]:
        """This rank's packs from the state on. A step may reach into the next epoch."""
        epoch, place = self._epoch, self._place
        while self.epochs is None or epoch < self.epochs:
            mine: Ints = np.zeros(0, np.int64)
            for rank in range(self.world):
                if self.epochs is not None and epoch >= self.epochs:
                    break
                if rank == self.rank:
                    mine = self.packs(epoch)[place]
                place += 1
                if place == len(self.packs(epoch)):
                    epoch, place = epoch + 1, 0
            yield _Step(mine, epoch, place)

    def _batch(self, made: list[Future[list[Example]]], step: _Step) -> Batch:
        pairs = [
            (example, int(row))
            for row, future in zip(step.rows, made, strict=True)
            for example in future.result()
        ]
        idle = not pairs
        pairs = pairs or self.dataset.spare()
        batch = collate(
            [example for example, _ in pairs],
            samples=[row for _, row in pairs],
            pad_id=self.pad_id,
            packed=self.packed,
        )
        return batch | {"idle": torch.tensor(idle)}

    def _order_stamp(self, epoch: int) -> str:
        if epoch not in self._stamps:
            total = hashlib.sha256()
            for pack in self.packs(epoch):
                total.update(pack.tobytes())
            self._stamps = {epoch: total.hexdigest()}
        return self._stamps[epoch]


def _drawn(good: Ints, *, first: int, count: int, seed: tuple[int, ...]) -> Ints:
    """Rows first to first + count of a source that is shuffled anew whenever it is through."""
    parts = [np.zeros(0, np.int64)]
    while count:
        through, at = divmod(first, len(good))
        rng = np.random.default_rng((*seed, 2, through))
        parts.append(good[rng.permutation(len(good))[at : at + count]])
        first, count = first + len(parts[-1]), count - len(parts[-1])
    return np.concatenate(parts)


def _shares(counts: list[int], weights: Sequence[float] | None) -> list[int]:
    """How many rows an epoch draws of each source, as many as there are rows in all."""
    total = sum(counts)
    if not total:
        raise ValueError("no row of the training data can be used; see the reasons above")
    if weights is None:
        return counts
    if 0 in counts:
        number = counts.index(0) + 1
        raise ValueError(f"source {number} has a weight, but no row that can be used")
    exact = np.array(weights, np.float64) / sum(weights) * total
    shares = np.floor(exact).astype(int)
    largest = np.argsort(shares - exact, kind="stable")  # what was cut off most comes first
    shares[largest[: total - shares.sum()]] += 1
    return shares.tolist()

"""All rows of a source in; their lengths and what is wrong with them out, before training begins.

Results are kept block by block. Several processes share the work, and an interrupted survey goes on
where it stopped. Rows that were bad are looked at again every time: somebody may have mended them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from thinktalk.train.rows import Row
from thinktalk.train.shards import Source

try:
    import fcntl
except ImportError:  # without locks every process does all the work: slower, not wrong
    fcntl = None

LOG = logging.getLogger(__name__)

BLOCK_ROWS = 4096
POLL_S = 0.1
BAD = -1  # length of a row that cannot be used
SILENT = 0  # of one without a spoken reply, where nothing else is learned
# ValueError says what is wrong; the others come from rows that hold something quite unexpected.
BAD_ROW_ERRORS = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError)


class Measure(Protocol):
    """What tells the length of rows."""

    def measure(self, row: Row) -> int:
        """SILENT where nothing is said that shall be learned; raises ValueError for a bad row."""
        ...

    def stamp(self) -> str:
        """Changes when a length may change."""
        ...


@dataclass(frozen=True)
class BadRow:
    """A row that is skipped: file and line, and why."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def survey(
    source: Source, measure: Measure, *, folder: Path | None, workers: int
) -> tuple[NDArray[np.int32], list[BadRow]]:
    """The length of every row, BAD where it cannot be used, and the reasons."""
    firsts = range(0, len(source), BLOCK_ROWS)
    blocks: dict[int, dict[int, int | str]] = {}
    kept = None if folder is None else _kept_at(folder, source, measure)
    bar = tqdm(total=len(source), desc="checking rows", delay=2, disable=None)
    with ThreadPoolExecutor(workers) as pool:

        def look(rows: range | list[int]) -> dict[int, int | str]:
            found = pool.map(lambda row: _look(source, measure, row), rows)
            return dict(zip(rows, found, strict=True))

        while len(blocks) < len(firsts):
            before = len(blocks)
            for first in firsts:
                rows = range(first, min(first + BLOCK_ROWS, len(source)))
                if first not in blocks and (block := _block(rows, kept, look)) is not None:
                    blocks[first] = block
                    bar.update(len(rows))
            if len(blocks) == before:
                time.sleep(POLL_S)  # others are at it
    bar.close()
    lengths = np.full(len(source), BAD, np.int32)
    bad = []
    for block in blocks.values():
        for row, found in block.items():
            if isinstance(found, str):
                bad.append((row, BadRow(source.place(row), found)))
            else:
                lengths[row] = found
    return lengths, [entry for _, entry in sorted(bad, key=lambda pair: pair[0])]


def reason_of(error: Exception) -> str:
    """What is wrong with a row that raised one of BAD_ROW_ERRORS."""
    if isinstance(error, ValueError):
        return str(error)
    return f"it holds something unexpected ({type(error).__name__}: {error})"


def _look(source: Source, measure: Measure, row: int) -> int | str:
    """The length of a row, or what is wrong with it."""
    try:
        return measure.measure(source.row(row))
    except BAD_ROW_ERRORS as error:
        return reason_of(error)
    except Exception as error:  # whatever it is, people must learn which row it is
        raise RuntimeError(f"{source.place(row)}: {error}") from error


def _block(
    rows: range, kept: Path | None, look: Callable[[range | list[int]], dict[int, int | str]]
) -> dict[int, int | str] | None:
    """What is found in some rows, None while another process looks at them."""
    if kept is None:
        return look(rows)
    path = kept / f"{rows.start:09d}.json"
    with _claimed(path.with_suffix(".lock")) as mine:
        if not mine:
            return None
        if path.exists():
            found = dict(zip(rows, json.loads(path.read_text(encoding="utf-8")), strict=True))
            again = [row for row, what in found.items() if isinstance(what, str)]
            return found | look(again)
        found = look(rows)
        part = path.with_suffix(".part")
        try:
            part.write_text(json.dumps(list(found.values()), ensure_ascii=False), encoding="utf-8")
            part.replace(path)
        except OSError as error:  # most often a full disk
            LOG.warning("%s cannot be kept (%s)", path, error)
    return found


def _kept_at(folder: Path, source: Source, measure: Measure) -> Path:
    stamp = f"{source.stamp()}\n{measure.stamp()}\n{BLOCK_ROWS}"
    kept = folder / "surveys" / hashlib.sha256(stamp.encode()).hexdigest()
    kept.mkdir(parents=True, exist_ok=True)
    return kept


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether the file could be locked for this block; a lock ends with its process."""
    if fcntl is None:
        yield True
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True

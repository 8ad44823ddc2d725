"""Who owns which blocks of a key/value cache: rows that grow, are cut back, forked and freed.

One pool per network. A block may belong to several rows (a fork shares all of its parent's); it is
copied before one of them writes into it. The positions themselves are written by the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

import torch
from torch import Tensor

from thinktalk.config import DecoderConfig
from thinktalk.model.cache import BLOCK_POSITIONS, KVCache, StepPlan


class OutOfBlocksError(RuntimeError):
    """The pool has no free block left; rows are as they were."""


@dataclass(eq=False)
class Row:
    """A sequence in the cache: its blocks in order, and how many positions are stored."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0

    @property
    def run(self) -> int | None:
        """The position at which the blocks begin, if they lie one behind the other."""
        first = self.blocks[0] if self.blocks else 0
        in_order = self.blocks == list(range(first, first + len(self.blocks)))
        return first * BLOCK_POSITIONS if in_order else None


class BlockPool:
    def __init__(
        self,
        config: DecoderConfig,
        *,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ):
        self.cache = KVCache(config, num_blocks=num_blocks, dtype=dtype, device=device)
        self.device = torch.device(device)
        # the lowest goes first, so that a row's blocks mostly lie behind one another
        self._free = list(range(num_blocks))
        self._users = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_blocks(self) -> int:
        return len(self._users)

    def reserve(self, row: Row, num_positions: int) -> None:
        """Makes room for so many positions behind the row's last, in blocks that it alone owns.

        Raises OutOfBlocksError and changes nothing when the pool is too full.
        """
        partial = row.length // BLOCK_POSITIONS
        shared = (
            row.length % BLOCK_POSITIONS > 0
            and partial < len(row.blocks)
            and self._users[row.blocks[partial]] > 1
        )
        missing = -(-(row.length + num_positions) // BLOCK_POSITIONS) - len(row.blocks)
        if max(0, missing) + shared > len(self._free):
            raise OutOfBlocksError(f"{missing} blocks are missing, {len(self._free)} are free")
        if shared:
            copy = self._take()
            for values in (self.cache.keys, self.cache.values):
                values[:, self._span(copy)] = values[:, self._span(row.blocks[partial])]
            self._give(row.blocks[partial])
            row.blocks[partial] = copy
        row.blocks += [self._take() for _ in range(missing)]

    def rewind(self, row: Row, length: int) -> None:
        """Forgets the positions from `length` on."""
        assert length <= row.length, (length, row.length)
        row.length = length
        keep = -(-length // BLOCK_POSITIONS)
        for block in row.blocks[keep:]:
            self._give(block)
        del row.blocks[keep:]

    def fork(self, row: Row) -> Row:
        """A second row with the same past; what was reserved behind it stays the first one's."""
        shared = row.blocks[: -(-row.length // BLOCK_POSITIONS)]
        for block in shared:
            self._users[block] += 1
        return Row(shared, row.length)

    def release(self, row: Row) -> None:
        self.rewind(row, 0)

    def plan(self, rows: Sequence[Row], counts: Sequence[int]) -> StepPlan:
        """The step that appends counts[b] positions to each row; room must be reserved.

        The caller adds the counts to the rows' lengths once the step is done.
        """
        for row, count in zip(rows, counts, strict=True):
            room = len(row.blocks) * BLOCK_POSITIONS
            assert row.length + count <= room, (row.length, count, room)
        width = max(len(row.blocks) for row in rows)
        tables = [row.blocks + [0] * (width - len(row.blocks)) for row in rows]
        starts = [row.length for row in rows]

        return StepPlan(
            send(tables, self.device),
            send(starts, self.device),
            send(list(counts), self.device),
            max(starts) + max(counts),
            run=rows[0].run if len(rows) == 1 else None,
        )

    def read(self, row: Row) -> tuple[Tensor, Tensor]:
        """Keys and values of a row, [layers, length, K, D] each, on the CPU."""
        places = self._places(row)
        return self.cache.keys[:, places].cpu(), self.cache.values[:, places].cpu()

    def write(self, row: Row, keys: Tensor, values: Tensor) -> None:
        """Puts what `read` gave into an empty row."""
        self.release(row)
        self.reserve(row, keys.shape[1])
        row.length = keys.shape[1]
        places = self._places(row)
        self.cache.keys[:, places] = keys.to(self.cache.keys)
        self.cache.values[:, places] = values.to(self.cache.values)

    def _places(self, row: Row) -> Tensor:
        blocks = torch.tensor(row.blocks, dtype=torch.int64, device=self.device)
        places = blocks[:, None] * BLOCK_POSITIONS + torch.arange(
            BLOCK_POSITIONS, device=self.device
        )
        return places.flatten()[: row.length]

    def _span(self, block: int) -> slice:
        return slice(block * BLOCK_POSITIONS, (block + 1) * BLOCK_POSITIONS)

    def _take(self) -> int:
        block = heappop(self._free)
        self._users[block] = 1
        return block

    def _give(self, block: int) -> None:
        self._users[block] -= 1
        assert self._users[block] >= 0, block
        if not self._users[block]:
            heappush(self._free, block)


def send(numbers: object, device: torch.device) -> Tensor:
    """A tensor of the CPU, or nested lists of numbers, as a tensor on the device; nothing waits for
    what the device does meanwhile."""
    values = torch.as_tensor(numbers)
    if device.type == "cuda":  # only from pinned memory is that certain
        values = values.pin_memory()
    return values.to(device, non_blocking=True)

"""The block pool: rows keep what they hold, whoever shares, copies, cuts or frees blocks beside."""

import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)
from hypothesis.strategies import data, integers
from tiny import tiny_config

from thinktalk.live.blocks import BlockPool, OutOfBlocksError, Row
from thinktalk.model.cache import BLOCK_POSITIONS

CONFIG = tiny_config("7b").thinker_config.text_config
N = BLOCK_POSITIONS


def pool_of(num_blocks: int) -> BlockPool:
    return BlockPool(CONFIG, num_blocks=num_blocks, dtype=torch.float32, device="cpu")


def append(pool: BlockPool, row: Row, values: list[int]) -> None:
    """Stores values at the row's end, where the model would."""
    pool.reserve(row, len(values))
    if not values:
        return
    plan = pool.plan([row], [len(values)])
    new = torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
    shape = new.shape[:2] + pool.cache.keys.shape[2:]
    view = pool.cache.view(plan, len(values))
    for layer in range(len(pool.cache.keys)):
        pool.cache.keys[layer][view.write] = new.expand(shape) + layer
        pool.cache.values[layer][view.write] = -new.expand(shape) - layer
    row.length += len(values)


def stored(pool: BlockPool, row: Row) -> list[int]:
    """What a row holds, the same in all layers, keys and values."""
    keys, values = pool.read(row)
    for layer in range(len(keys)):
        torch.testing.assert_close(keys[layer] - layer, keys[0], rtol=0, atol=0)
    torch.testing.assert_close(values, -keys, rtol=0, atol=0)
    return keys[0, :, 0, 0].int().tolist()


def test_rows_grow_block_by_block() -> None:
    pool, row = pool_of(5), Row()
    append(pool, row, list(range(1, N)))
    assert pool.num_free == 4
    append(pool, row, [N, N + 1])
    assert pool.num_free == 3 and stored(pool, row) == list(range(1, N + 2))
    append(pool, row, [])
    assert pool.num_free == 3


def test_reserving_twice_takes_once() -> None:
    pool, row = pool_of(5), Row()
    for _ in range(3):
        pool.reserve(row, N + 1)
    assert pool.num_free == 3


def test_rewind_frees_what_is_empty() -> None:
    pool, row = pool_of(5), Row()
    append(pool, row, list(range(3 * N)))
    pool.rewind(row, 2 * N + 1)
    assert pool.num_free == 2
    pool.rewind(row, 2 * N)
    assert pool.num_free == 3 and stored(pool, row) == list(range(2 * N))
    append(pool, row, [7])
    assert stored(pool, row) == [*range(2 * N), 7]
    pool.release(row)
    assert pool.num_free == 5 and row.length == 0


def test_the_lowest_free_block_goes_first() -> None:
    """So that rows mostly lie in order, also after others have been freed."""
    pool, first, second = pool_of(6), Row(), Row()
    append(pool, first, list(range(3 * N)))
    append(pool, second, [1])
    pool.rewind(first, 0)
    append(pool, second, list(range(2 * N)))
    assert (first.blocks, second.blocks) == ([], [3, 0, 1])
    assert (first.run, second.run) == (0, None)
    append(pool, first, list(range(2 * N)))
    assert first.blocks == [2, 4] and first.run is None
    pool.rewind(first, N)
    assert first.run == 2 * N == pool.plan([first], [0]).run
    assert pool.plan([first, first], [0, 0]).run is None


def test_a_fork_shares_until_somebody_writes() -> None:
    """Full blocks for ever; of the last one the first writer takes a copy."""
    pool, row = pool_of(8), Row()
    past = list(range(2 * N + 3))
    append(pool, row, past)
    twin = pool.fork(row)
    assert pool.num_free == 5, "a fork costs nothing"
    append(pool, twin, [100])
    assert pool.num_free == 4 and twin.blocks[:2] == row.blocks[:2]
    append(pool, row, [200, 201])
    assert pool.num_free == 4, "the other one is alone with the first block by now"
    assert stored(pool, row) == [*past, 200, 201] and stored(pool, twin) == [*past, 100]
    pool.release(row)
    assert stored(pool, twin) == [*past, 100] and pool.num_free == 5
    pool.release(twin)
    assert pool.num_free == 8


def test_a_fork_has_no_part_in_what_is_reserved() -> None:
    """Room behind the last position, even whole blocks of it, is the first row's alone."""
    pool, row = pool_of(8), Row()
    append(pool, row, list(range(N)))
    pool.reserve(row, N)
    twin = pool.fork(row)
    append(pool, row, [1] * N)
    append(pool, twin, [2] * N)
    assert stored(pool, row)[N:] == [1] * N and stored(pool, twin)[N:] == [2] * N


def test_rows_are_known_by_themselves() -> None:
    """Two rows that hold the same are two rows."""
    assert Row() != Row() and Row([1], 3) not in [Row([1], 3)]


def test_a_full_pool_changes_nothing() -> None:
    pool, row, other = pool_of(3), Row(), Row()
    append(pool, row, list(range(N + 1)))
    append(pool, other, [5])
    before = list(row.blocks), row.length, stored(pool, row), pool.num_free
    with pytest.raises(OutOfBlocksError, match="1 blocks are missing, 0 are free"):
        pool.reserve(row, N)
    twin = pool.fork(row)
    with pytest.raises(OutOfBlocksError):
        pool.reserve(twin, 1)  # it needs a copy of the last block
    assert before == (list(row.blocks), row.length, stored(pool, row), pool.num_free)
    pool.release(other)
    append(pool, twin, [9])
    assert stored(pool, twin) == [*range(N + 1), 9]


def test_what_is_read_can_be_written_elsewhere() -> None:
    pool, row = pool_of(3), Row()
    append(pool, row, list(range(N + 5)))
    other = pool_of(4)
    append(other, Row(), [1])
    copy, empty = Row(), Row()
    other.write(copy, *pool.read(row))
    assert stored(other, copy) == list(range(N + 5)) and other.num_free == 1
    other.write(empty, *pool.read(Row()))
    assert (empty.blocks, empty.length) == ([], 0)
    with pytest.raises(OutOfBlocksError):
        other.write(empty, *pool.read(row))
    other.write(copy, *pool.read(row))
    assert stored(other, copy) == list(range(N + 5)) and other.num_free == 1


class Pool(RuleBasedStateMachine):
    """Any order of operations: every row holds what a plain list would."""

    rows = Bundle("rows")

    def __init__(self) -> None:
        super().__init__()
        self.pool = pool_of(12)
        self.model: dict[Row, list[int]] = {}
        self.next = 0

    @rule(target=rows)
    def open(self) -> Row:
        row = Row()
        self.model[row] = []
        return row

    @rule(row=rows, count=integers(0, 2 * N + 2), spare=integers(0, N))
    def append(self, row: Row, count: int, spare: int) -> None:
        values = list(range(self.next, self.next + count))
        try:
            self.pool.reserve(row, count + spare)
        except OutOfBlocksError:
            return
        append(self.pool, row, values)
        self.model[row] += values
        self.next = (self.next + count) % 9973

    @rule(row=rows, data=data())
    def rewind(self, row: Row, data) -> None:
        length = data.draw(integers(0, row.length))
        self.pool.rewind(row, length)
        del self.model[row][length:]

    @precondition(lambda self: len(self.model) < 6)
    @rule(target=rows, row=rows)
    def fork(self, row: Row) -> Row:
        twin = self.pool.fork(row)
        self.model[twin] = list(self.model[row])
        return twin

    @rule(row=consumes(rows))
    def release(self, row: Row) -> None:
        self.pool.release(row)
        del self.model[row]

    @invariant()
    def rows_hold_what_they_should(self) -> None:
        for row, values in self.model.items():
            assert stored(self.pool, row) == values

    @invariant()
    def no_block_is_lost_or_owned_by_nobody(self) -> None:
        used = {block for row in self.model for block in row.blocks}
        assert self.pool.num_free == self.pool.num_blocks - len(used)
        assert not used & set(self.pool._free)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)

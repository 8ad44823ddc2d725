"""However a row's tokens arrive, and whatever else is in the cache, its states are the same."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny import tiny_config
from torch import Tensor

from thinktalk.model.cache import BLOCK_POSITIONS, KVCache, StepPlan, row_plan, single_row
from thinktalk.model.decoder import Decoder

CONFIG = tiny_config("7b").thinker_config.text_config
LENGTH = 150  # two whole blocks and a part
NUM_ROWS = 4


def random_decoder() -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=1.5 / parameter.shape[1] ** 0.5)
    return decoder


DECODER = random_decoder()
TOKENS = torch.randn(NUM_ROWS, LENGTH, CONFIG.hidden_size)
# every axis of every row has its own positions, with jumps as between media
POSITIONS = torch.randint(0, 4, (3, NUM_ROWS, LENGTH)).cumsum(-1)
WHOLE = DECODER(TOKENS, positions=POSITIONS)  # without a cache


class Rows:
    """A cache whose rows advance as a caller tells: the shape of the live engine's use."""

    def __init__(self, num_rows: int = NUM_ROWS, *, shuffled: bool = True):
        blocks_per_row = -(-LENGTH // BLOCK_POSITIONS)
        num_blocks = num_rows * blocks_per_row
        order = torch.randperm(num_blocks) if shuffled else torch.arange(num_blocks)
        self.tables = order.view(num_rows, blocks_per_row)
        self.cache = KVCache(CONFIG, num_blocks=num_blocks, dtype=torch.float32)
        self.done = [0] * num_rows

    def step(self, counts: dict[int, int], *, padding: float = 0.0, width: int = 0) -> list[Tensor]:
        """The next counts[row] tokens of these rows together: their states [count,C] each."""
        width = max(width, *counts.values())
        tokens = torch.full((len(counts), width, CONFIG.hidden_size), padding)
        positions = torch.zeros(3, len(counts), width, dtype=torch.int64)
        for i, (row, count) in enumerate(counts.items()):
            new = slice(self.done[row], self.done[row] + count)
            tokens[i, :count], positions[:, i, :count] = TOKENS[row, new], POSITIONS[:, row, new]
        plan = StepPlan(
            tables=self.tables[list(counts)],
            starts=torch.tensor([self.done[row] for row in counts]),
            lengths=torch.tensor(list(counts.values())),
            context=max(self.done[row] for row in counts) + width,
        )
        hidden = DECODER(tokens, positions=positions, cache=self.cache, plan=plan)
        for row, count in counts.items():
            self.done[row] += count
        return [states[:count] for states, count in zip(hidden, counts.values(), strict=True)]


def pieces(size: int) -> list[int]:
    return [min(size, LENGTH - start) for start in range(0, LENGTH, size)]


@pytest.mark.parametrize("size", [1, 7, BLOCK_POSITIONS, LENGTH])
def test_prefill_in_chunks(size: int) -> None:
    rows = Rows(1)
    parts = [rows.step({0: count})[0] for count in pieces(size)]
    assert_near(torch.cat(parts), WHOLE[0])


def test_single_row() -> None:
    """What generate uses: prefill, then one token at a time."""
    cache, table = single_row(CONFIG, capacity=LENGTH, dtype=torch.float32, device="cpu")
    parts, start = [], 0
    for count in (LENGTH - 6, *[1] * 6):
        new = slice(start, start + count)
        plan = row_plan(table, start=start, num_tokens=count)
        parts += DECODER(TOKENS[:1, new], positions=POSITIONS[:, :1, new], cache=cache, plan=plan)
        start += count
    assert_near(torch.cat(parts), WHOLE[0])


def test_single_row_is_as_large_as_asked() -> None:
    cache, table = single_row(CONFIG, capacity=65, dtype=torch.bfloat16, device="cpu")
    shape = (CONFIG.num_hidden_layers, 2 * BLOCK_POSITIONS + 1, CONFIG.num_key_value_heads, 16)
    assert cache.keys.shape == cache.values.shape == shape
    assert cache.keys.dtype == torch.bfloat16 and table.tolist() == [[0, 1]]
    row_plan(table, start=127, num_tokens=1)
    with pytest.raises(AssertionError, match="127 \\+ 2 positions in a cache of 128"):
        row_plan(table, start=127, num_tokens=2)


@pytest.mark.parametrize("seed", range(10))
def test_ragged_batches(seed: int) -> None:
    """Rows advance by different numbers of tokens, join and pause, in blocks in any order."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    rows, found = Rows(), [[] for _ in range(NUM_ROWS)]
    while left := [row for row in range(NUM_ROWS) if rows.done[row] < LENGTH]:
        chosen = rng.sample(left, rng.randint(1, len(left)))
        sizes = {row: rng.choice((1, 5, 33, 64, LENGTH)) for row in chosen}
        counts = {row: min(size, LENGTH - rows.done[row]) for row, size in sizes.items()}
        states = rows.step(counts, padding=torch.nan, width=rng.choice((0, 70)))
        for row, part in zip(counts, states, strict=True):
            found[row].append(part)
    for row in range(NUM_ROWS):
        assert_near(torch.cat(found[row]), WHOLE[row])


def test_padding_is_never_stored() -> None:
    rows = Rows(2, shuffled=False)
    rows.step({0: 3, 1: 40}, padding=torch.nan)
    rows.step({0: 1, 1: 70}, padding=torch.nan)
    held = rows.cache.keys[:, :-1].unflatten(1, (2, -1))  # without the place for padding
    for row, count in ((0, 4), (1, 110)):
        assert held[:, row, :count].abs().sum((0, 2, 3)).min() > 0
        assert not held[:, row, count:].any()


def test_a_step_of_other_rows_leaves_a_row_bit_identical() -> None:
    rows = Rows()
    rows.step({row: 60 for row in range(NUM_ROWS)})
    own = flat(rows.tables[1])
    before = rows.cache.keys[:, own].clone(), rows.cache.values[:, own].clone()
    rows.step({0: 50, 2: 1, 3: 90}, padding=torch.nan)
    assert torch.equal(rows.cache.keys[:, own], before[0])
    assert torch.equal(rows.cache.values[:, own], before[1])


def test_blocks_are_reused_without_cleaning() -> None:
    """A row starts anew over the numbers of another one, which were larger and went further."""
    rows = Rows(2)
    rows.cache.keys.fill_(1e4)
    rows.cache.values.fill_(-1e4)
    rows.step({0: LENGTH, 1: 20})
    rows.done[0] = 0
    rows.tables[0] = rows.tables[0].flip(0)
    parts = [rows.step({0: 9, 1: 30})[0], rows.step({0: 40, 1: 2})[0]]
    assert_near(torch.cat(parts), WHOLE[0, :49])


def test_blocks_in_order_are_read_where_they_are() -> None:
    """No copy of the context in every layer of every step; blocks in disorder give the same."""
    cache = KVCache(CONFIG, num_blocks=9, dtype=torch.float32)
    cache.keys.normal_()
    heads, size = CONFIG.num_key_value_heads, CONFIG.head_size
    new = torch.randn(1, heads, 1, size)
    read = {}
    for blocks, run in (([4, 5, 6], 4), ([6, 4, 5], None), ([0, 1, 2], 0)):
        run = None if run is None else run * BLOCK_POSITIONS
        plan = replace(row_plan(torch.tensor([blocks]), start=LENGTH, num_tokens=1), run=run)
        read[tuple(blocks)], _ = cache.view(plan, 1).update(0, new, new)
    whole, shuffled, first = read.values()
    assert whole.shape == shuffled.shape == first.shape == (1, heads, LENGTH + 1, size)
    assert whole.data_ptr() == cache.keys[0, 4 * BLOCK_POSITIONS].data_ptr()
    assert first.data_ptr() == cache.keys.data_ptr()
    assert shuffled.untyped_storage().data_ptr() != cache.keys.untyped_storage().data_ptr()
    places = [torch.arange(BLOCK_POSITIONS) + block * BLOCK_POSITIONS for block in (6, 4, 5)]
    stored = cache.keys[0, torch.cat(places)[: LENGTH + 1]]
    assert torch.equal(shuffled[0, :, :-1], stored.transpose(0, 1)[:, :-1])
    assert torch.equal(whole[0, :, -1], new[0, :, 0])


def test_rewind() -> None:
    """What comes after an earlier position takes the place of what was there."""
    rows = Rows(1)
    rows.step({0: 100})
    rows.done[0] = 30
    [states] = rows.step({0: 60})
    assert_near(states, WHOLE[0, 30:90])


def test_block_tables_may_be_of_different_length() -> None:
    """Short tables are filled up with any block: what stands there is out of a row's sight."""
    rows = Rows(2)
    rows.step({0: 130, 1: 20})
    rows.tables[1, 1:] = rows.tables[0, 0]
    _, states = rows.step({0: 4, 1: 4})
    assert_near(states, WHOLE[1, 20:24])


def test_a_mask_instead_of_a_cache() -> None:
    """Training packs several conversations into a row; the mask keeps them apart."""
    mask = torch.ones(90, 90, dtype=torch.bool).tril()
    mask[50:, :50] = False
    packed = DECODER(TOKENS[:1, :90], positions=POSITIONS[:, :1, :90], mask=mask)
    second = DECODER(TOKENS[:1, 50:90], positions=POSITIONS[:, :1, 50:90])
    assert_near(packed[:, :50], WHOLE[:1, :50])
    assert_near(packed[:, 50:], second)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def flat(table: Sequence[int] | Tensor) -> Tensor:
    """The cache positions of some blocks."""
    starts = torch.as_tensor(table)[:, None] * BLOCK_POSITIONS
    return (starts + torch.arange(BLOCK_POSITIONS)).flatten()
